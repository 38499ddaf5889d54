"""The house: rooms import to their left only, one room trains, and everything stays small."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhflow_utils.guide.stage import PACKAGE, PACKAGE_FOLDER, PROJECT, package_imports

ROOMS = ("guide", "models", "simulator", "data", "training", "online", "evaluation", "claims", "__main__")
FILES = {
    path.relative_to(PACKAGE_FOLDER).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE_FOLDER.rglob("*.py"))
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}


def _imports(name: str) -> set[str]:
    """Modules of the package that a module imports; a package counts as its `__init__`."""
    found = {each.removeprefix(f"{PACKAGE}.") for each in package_imports(TEXTS[name])}
    return {each if each in FILES else f"{each}.__init__" for each in found} & set(FILES) - {name}


def _functions() -> Iterator[tuple[str, int]]:
    for name, text in TEXTS.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", int(node.end_lineno or 0) - node.lineno + 1


def test_the_tree_is_eight_rooms_and_a_door() -> None:
    folders = sorted(path.name for path in PACKAGE_FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")
    assert folders == sorted(ROOMS[:-1])
    assert sorted(path.name for path in PACKAGE_FOLDER.glob("*.py")) in (
        ["__init__.py", "__main__.py"],
        ["__main__.py"],
    )


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_a_room_imports_from_rooms_to_its_left_only(name: str) -> None:
    own = ROOMS.index(name.split(".")[0])
    against = {each for each in _imports(name) - {"__init__"} if ROOMS.index(each.split(".")[0]) > own}
    assert not against, f"{name} imports {sorted(against)}"
    relative = [node for node in ast.walk(ast.parse(TEXTS[name])) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"{name}: absolute imports only"


def test_no_import_cycle() -> None:
    waiting = {name: _imports(name) for name in FILES if not name.endswith("__init__")}
    while free := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert not waiting, f"among {sorted(waiting)}"


def test_one_room_imports_trl() -> None:
    for name, text in TEXTS.items():
        imported = {
            module.split(".")[0]
            for node in ast.walk(ast.parse(text))
            for module in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        assert "trl" not in imported or name.startswith("training."), name


def test_the_house_stays_small() -> None:
    assert len([name for name in FILES if not name.endswith("__init__")]) <= 54
    assert sum(len(text.splitlines()) for text in TEXTS.values()) <= 11_619
    lengths = dict(_functions())
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median(lengths.values()) <= 8


def test_the_tree_names_every_module() -> None:
    """The tree in CONTRIBUTING.md is the map."""
    tree = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The tree")[2]
    missing = [name for name, path in FILES.items() if path.stem != "__init__" and f"{path.name}" not in tree]
    assert not missing
    assert all(Path(PROJECT / folder).is_dir() for folder in ("notebooks", "profiles", "results", "tests"))
