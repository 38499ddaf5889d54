"""Hashes of what a stage depends on: code, configuration values, files.

The code hash of a module covers the modules of this package that it imports, directly or through others. It is taken
from the syntax tree, so comments and docstrings may change without re-running anything, and no module is imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
PACKAGE = PACKAGE_FOLDER.name
LARGE_FILE = 64 * 2**20


def hash_value(value: Any) -> str:
    """16 hex digits of any JSON value; the order of mapping keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_code(module: str) -> str:
    """Hash of a module of this package together with every module of the package that it imports."""
    return hash_value({name: _hash_module(_module_path(name)) for name in sorted(_closure(module))})


def hash_source(source: str) -> str:
    """Hash of Python text, blind to comments, docstrings and layout."""
    return hash_value(ast.dump(_without_docstrings(ast.parse(source))))


def package_imports(source: str, package_of_file: str = PACKAGE) -> set[str]:
    """Dotted names of this package's modules that `source` imports, lazily or not (not for type checking alone)."""
    tree = ast.parse(source)
    skipped = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(_existing(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package_of_file)
            found.update(_existing(f"{base}.{alias.name}") for alias in node.names)
    return {name for name in found if name}


def hash_path(path: Path) -> str:
    """Hash of a file or of all files under a folder, by content; files over 64 MiB by size and time of change."""
    if path.is_file():
        return _hash_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return hash_value([[p.relative_to(path).as_posix(), _hash_file(p)] for p in files])


def _hash_file(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > LARGE_FILE:
        return hash_value([stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _closure(module: str) -> set[str]:
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _module_path(name)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        queue.extend(package_imports(path.read_text(encoding="utf-8"), package))
    return seen


@lru_cache(maxsize=512)
def _hash_text(text: str) -> str:
    return hash_source(text)


def _hash_module(path: Path) -> str:
    return _hash_text(path.read_text(encoding="utf-8"))


def _module_path(name: str) -> Path:
    relative = Path(*name.split(".")[1:])
    file = PACKAGE_FOLDER / relative.with_suffix(".py") if relative.parts else PACKAGE_FOLDER / "__init__.py"
    return file if file.is_file() else PACKAGE_FOLDER / relative / "__init__.py"


def _existing(name: str) -> str:
    """The longest prefix of a dotted name that is a module of this package, or an empty string."""
    if name.split(".")[0] != PACKAGE:
        return ""
    while "." in name and not _module_path(name).is_file():
        name = name.rpartition(".")[0]
    return name


def _absolute(node: ast.ImportFrom, package_of_file: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package_of_file.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree
