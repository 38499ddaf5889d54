"""Stages: folders that are whole or absent, skipped when nothing they depend on has changed.

A stage is a function, the profile sections it may read, its input folders and its options. Those four, with the seed
and the code of the function's module, make its key. A finished stage is `runs/<run>/<stage>/` with a
`manifest.json` that holds the key and everything behind it. While it runs, it lives in `runs/<run>/.partial/`,
under a name that contains the key: a run that was killed finds its shards and checkpoints there again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhflow_utils.guide.code_hash import hash_code, hash_path, hash_source, hash_value, package_imports
from rlhflow_utils.guide.profile import Profile, load_profile, set_dotted, validate_profile
from rlhflow_utils.guide.provenance import PROJECT, provenance, quiet_libraries

STAGE_LINE = "▸ "  # the runner forwards lines that begin so to the terminal
Metric = float | int | str | None


class Sections:
    """The profile as one stage may see it: reading an undeclared section is an error."""

    def __init__(self, profile: Profile, reads: Sequence[str], stage: str) -> None:
        self._stage = stage
        for name in reads:
            setattr(self, name, getattr(profile, name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"stage {self._stage} reads profile section {name!r} but does not declare it in `reads`")


@dataclass
class Stage:
    """What a stage function is given, and where it reports."""

    name: str
    profile: Any
    inputs: dict[str, Path]
    out: Path
    seed: int
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def account(self, name: str, rows_in: int, rows_out: int, dropped: Mapping[str, int] | None = None) -> None:
        """Record where rows went.

        Raises:
            ValueError: rows in are not rows out plus rows dropped.
        """
        lost = dict(dropped or {})
        if rows_in != rows_out + sum(lost.values()):
            raise ValueError(f"stage {self.name}, {name}: {rows_in} rows in, {rows_out} out, dropped {lost}: not equal")
        self.rows[name] = {"rows_in": rows_in, "rows_out": rows_out, "dropped": lost}

    def metric(self, key: str, value: Metric) -> None:
        """Record a headline metric under its flat key, such as ``03.bt.accuracy``."""
        self.metrics[key] = value


@dataclass(frozen=True)
class StageFolder:
    """A finished stage."""

    path: Path
    manifest: dict[str, Any]
    skipped: bool = False

    @property
    def metrics(self) -> dict[str, Metric]:
        return dict(self.manifest["metrics"])

    @property
    def rows(self) -> dict[str, Any]:
        return dict(self.manifest["rows"])

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))


class Run:
    """One run folder, seen from one chapter: runs stages, finds finished ones, remembers what the chapter used."""

    def __init__(self, chapter: str, profile: Profile, run_dir: Path, overrides: Mapping[str, Any] | None = None):
        self.chapter = chapter
        self.profile = profile
        self.run_dir = run_dir
        self.overrides = dict(overrides or {})
        self.used: dict[str, str] = {}
        self.saved: dict[str, float] = {}  # seconds that skipped stages of this chapter once took
        self._started = time.time()

    def stage(
        self,
        name: str,
        function: Callable[..., None],
        reads: Sequence[str] = (),
        inputs: Mapping[str, StageFolder | Path | str] | None = None,
        **options: Any,
    ) -> StageFolder:
        """Run a stage, or skip it when a folder with the same key exists.

        Args:
            name: folder name under the run.
            function: called as ``function(stage, **options)``; its module's code enters the key.
            reads: profile sections that the function may read; they enter the key.
            inputs: finished stages, or folders and files from outside (hashed by content).
            options: JSON values passed to the function; they enter the key.
        """
        recipe = {
            "function": f"{function.__module__}.{function.__qualname__}",
            "reads": sorted(reads),
            "inputs": {key: _describe_input(value, self.run_dir) for key, value in (inputs or {}).items()},
            "options": options,
            "overrides": self.overrides,
        }
        key = stage_key(name, recipe, self.profile, self.run_dir)
        final = self.run_dir / name
        done = _read_manifest(final)
        if done and done["key"] == key:
            print(f"{STAGE_LINE}{name}: unchanged, skipped", flush=True)
            self.used[name] = key
            if done["chapter"] == self.chapter:
                self.saved[name] = done["wall_seconds"]
            return StageFolder(final, done, skipped=True)
        partial = _partial_folder(self.run_dir, name, key)
        if not _read_manifest(partial):  # killed between finishing and publishing: only the publishing is left
            self._execute(name, function, recipe, key, partial)
        _publish(partial, final)
        self.used[name] = key
        manifest = _read_manifest(final)
        assert manifest is not None
        return StageFolder(final, manifest)

    def folder(self, name: str) -> StageFolder:
        """A finished stage of an earlier chapter.

        Raises:
            FileNotFoundError: it is not there; the message names the chapter to run.
        """
        path = self.run_dir / name
        manifest = _read_manifest(path)
        if manifest is None:
            raise FileNotFoundError(
                f"stage {name} is missing from {_relative(self.run_dir)}: run chapter {name[:2]} first"
            )
        self.used[name] = manifest["key"]
        return StageFolder(path, manifest)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Run:
        """The same run with some profile values changed (an ablation arm); stages it runs count for this chapter."""
        raw = self.profile.model_dump(by_alias=True)
        for key, value in overrides.items():
            set_dotted(raw, key, value, f"chapter {self.chapter}")
        arm = Run(self.chapter, validate_profile(raw, self.profile.name), self.run_dir, {**self.overrides, **overrides})
        arm.used, arm.saved = self.used, self.saved
        return arm

    def finish(self) -> None:
        """Record that the chapter ran through, with the stages it used: the runner's ground for skipping it."""
        record = {"chapter": self.chapter, "stages": self.used, "saved_seconds": round(sum(self.saved.values()), 1)}
        write_json(self.run_dir / "chapters" / f"{self.chapter}.json", record)
        print(f"chapter {self.chapter} finished: {len(self.used)} stages, {time.time() - self._started:.0f} s")

    def _execute(
        self, name: str, function: Callable[..., None], recipe: dict[str, Any], key: str, partial: Path
    ) -> None:
        resumed = " (resuming)" if partial.exists() else ""
        print(f"{STAGE_LINE}{name}: running{resumed}", flush=True)
        partial.mkdir(parents=True, exist_ok=True)
        inputs = {k: _input_path(v, self.run_dir) for k, v in recipe["inputs"].items()}
        view = Sections(self.profile, recipe["reads"], name)
        stage = Stage(name, view, inputs, partial, stage_seed(self.profile.seed, name))
        started = time.time()
        function(stage, **recipe["options"])
        wall = round(time.time() - started, 1)
        config = {section: _section_value(self.profile, section) for section in recipe["reads"]}
        manifest = {
            "stage": name, "chapter": self.chapter, "key": key, **recipe, "config": config,
            "config_hash": hash_value(config), "input_hashes": _input_hashes(recipe["inputs"], self.run_dir),
            "seed": stage.seed, "profile": self.profile.name, "rows": stage.rows, "metrics": stage.metrics,
            "wall_seconds": wall, **provenance(),
        }  # fmt: skip
        write_json(partial / "manifest.json", manifest)
        print(f"{STAGE_LINE}{name}: done in {wall:.0f} s", flush=True)


def open_run(chapter: str, profile: str, run_dir: str, seed: int, overrides: Mapping[str, Any]) -> Run:
    """What every chapter calls first: the profile, validated, and the run folder (relative paths: to the project)."""
    quiet_libraries()
    return Run(chapter, load_profile(profile, dict(overrides), seed), PROJECT / run_dir)


def stage_key(name: str, recipe: Mapping[str, Any], profile: Profile, run_dir: Path) -> str:
    """The key of a stage from its recipe: what would change its result, and nothing else."""
    return hash_value(
        {
            "name": name,
            "function": recipe["function"],
            "code": hash_code(_module_of(recipe["function"])),
            "config": {section: _section_value(profile, section) for section in recipe["reads"]},
            "inputs": _input_hashes(recipe["inputs"], run_dir),
            "options": recipe["options"],
            "seed": stage_seed(profile.seed, name),
        }
    )


def is_current(name: str, profile: Profile, run_dir: Path) -> bool:
    """Whether a finished stage still has the key it would get now. Imports nothing heavy."""
    manifest = _read_manifest(run_dir / name)
    if manifest is None:
        return False
    if manifest["overrides"]:
        raw = profile.model_dump(by_alias=True)
        for key, value in manifest["overrides"].items():
            set_dotted(raw, key, value)
        profile = validate_profile(raw, profile.name)
    return bool(stage_key(name, manifest, profile, run_dir) == manifest["key"])


def stage_seed(seed: int, name: str) -> int:
    """A seed for one stage, split off the run's seed."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16) % (2**31)


def chapter_hash(source: str) -> str:
    """Hash of a chapter's code cells and of the package code that they import."""
    modules = sorted(package_imports(source))
    return hash_value([hash_source(source), {name: hash_code(name) for name in modules}])


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run folder: two runs at once would overwrite each other's partial stages.

    Raises:
        RuntimeError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"{_relative(run_dir)} is in use by another run: wait for it, or choose another folder with RUN_DIR=…"
            ) from error
        yield


def _module_of(function: str) -> str:
    from rlhflow_utils.guide.code_hash import _existing

    return _existing(function)


def _section_value(profile: Profile, section: str) -> Any:
    value = getattr(profile, section)
    return value.model_dump(by_alias=True, mode="json") if hasattr(value, "model_dump") else value


def _describe_input(value: StageFolder | Path | str, run_dir: Path) -> str:
    """How a manifest names an input: `stage:<name>`, `path:<path>` or `id:<hub id>`."""
    if isinstance(value, StageFolder):
        return f"stage:{value.path.name}"
    if isinstance(value, Path) or Path(value).exists():
        path = Path(value).resolve()
        if not path.exists():
            raise FileNotFoundError(f"input {value} does not exist")
        return f"path:{_relative(path)}"
    return f"id:{value}"


def _input_path(described: str, run_dir: Path) -> Path:
    kind, _, value = described.partition(":")
    return run_dir / value if kind == "stage" else PROJECT / value if kind == "path" else Path(value)


def _input_hashes(inputs: Mapping[str, str], run_dir: Path) -> dict[str, str]:
    hashes = {}
    for key, described in inputs.items():
        path = _input_path(described, run_dir)
        if described.startswith("stage:"):
            manifest = _read_manifest(path)
            hashes[key] = manifest["key"] if manifest else "missing"
        elif described.startswith("path:"):
            hashes[key] = hash_path(path) if path.exists() else "missing"
        else:
            hashes[key] = described
    return hashes


def _relative(path: Path) -> str:
    """A path as manifests and messages show it: relative to the project where it lies inside or beside it."""
    return os.path.relpath(path, PROJECT)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _partial_folder(run_dir: Path, name: str, key: str) -> Path:
    """The working folder of a stage; those of the same stage under other keys are stale and removed."""
    partial = run_dir / ".partial" / f"{name}@{key}"
    stale = [folder for folder in partial.parent.glob(f"{name}@*") if folder != partial]
    for folder in sorted(stale, reverse=True):
        # Renamed first: were this killed half-way, the remains must not pass for work to go on from.
        removed = folder if folder.suffix == ".removed" else folder.rename(folder.with_name(f"{folder.name}.removed"))
        shutil.rmtree(removed)
    return partial


def _publish(partial: Path, final: Path) -> None:
    old = partial.parent / f"{final.name}.old"
    if final.exists():
        if old.exists():
            shutil.rmtree(old)
        os.replace(final, old)
    os.replace(partial, final)
    if old.exists():
        shutil.rmtree(old)
