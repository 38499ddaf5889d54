"""A stage's key follows the code it runs, through imports, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhflow_utils.guide import code_hash


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package: work -> tools -> deep; `other` is apart."""
    folder = tmp_path / "pack"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "work.py").write_text("from pack import tools\n\ndef run():\n    return tools.two()\n")
    (folder / "tools.py").write_text("def two():\n    from pack.sub.deep import ONE\n    return ONE + ONE\n")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "deep.py").write_text("ONE = 1\n")
    (folder / "other.py").write_text("X = 1\n")
    monkeypatch.setattr(code_hash, "PACKAGE_FOLDER", folder)
    monkeypatch.setattr(code_hash, "PACKAGE", "pack")
    return folder


def test_code_anywhere_below_an_import_changes_the_hash(package: Path) -> None:
    before = code_hash.hash_code("pack.work")
    (package / "sub" / "deep.py").write_text("ONE = 2\n")  # reached through a lazy import
    assert code_hash.hash_code("pack.work") != before


def test_unrelated_modules_do_not_matter(package: Path) -> None:
    before = code_hash.hash_code("pack.work")
    (package / "other.py").write_text("X = 2\n")
    assert code_hash.hash_code("pack.work") == before


def test_comments_docstrings_and_layout_do_not_matter(package: Path) -> None:
    before = code_hash.hash_code("pack.work")
    header = '"""A module."""\n# Why.\nfrom pack import tools\n\n\n'
    text = header + 'def run():\n    """A function."""\n    return (tools.two())\n'
    (package / "work.py").write_text(text)
    assert code_hash.hash_code("pack.work") == before


def test_imports_for_type_checking_do_not_count(package: Path) -> None:
    before = code_hash.hash_code("pack.tools")
    source = (package / "tools.py").read_text()
    header = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import other\n"
    assert code_hash.package_imports(header + source) == {"pack.sub.deep"}
    (package / "tools.py").write_text(header + source)
    with_header = code_hash.hash_code("pack.tools")
    assert with_header != before  # the header itself is code
    (package / "other.py").write_text("X = 3\n")
    assert code_hash.hash_code("pack.tools") == with_header


@pytest.mark.parametrize(
    ("source", "package_of_file", "found"),
    [
        ("import pack.tools", "pack", {"pack.tools"}),
        ("import os, json", "pack", set()),
        ("from pack.tools import two", "pack", {"pack.tools"}),
        ("from pack import tools, other", "pack", {"pack.tools", "pack.other"}),
        ("from . import deep", "pack.sub", {"pack.sub.deep"}),
        ("from .deep import ONE", "pack.sub", {"pack.sub.deep"}),
        ("from ..tools import two", "pack.sub", {"pack.tools"}),
        ("def f():\n    from pack import other", "pack", {"pack.other"}),
    ],
)
def test_imports_are_found_without_importing(package: Path, source: str, package_of_file: str, found: set[str]) -> None:
    assert code_hash.package_imports(source, package_of_file) == found


def test_a_hash_of_values_ignores_the_order_of_keys_only() -> None:
    assert code_hash.hash_value({"a": 1, "b": [1, 2]}) == code_hash.hash_value({"b": [1, 2], "a": 1})
    assert code_hash.hash_value({"b": [1, 2]}) != code_hash.hash_value({"b": [2, 1]})
    assert len(code_hash.hash_value(None)) == 16


def test_a_folder_is_hashed_by_names_and_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "rows.jsonl").write_text("{}\n")
    assert code_hash.hash_path(tmp_path / "one") == code_hash.hash_path(tmp_path / "two")
    (tmp_path / "two" / "sub" / "rows.jsonl").write_text('{"a": 1}\n')
    assert code_hash.hash_path(tmp_path / "one") != code_hash.hash_path(tmp_path / "two")
    (tmp_path / "two" / "sub" / "rows.jsonl").rename(tmp_path / "two" / "sub" / "other.jsonl")
    (tmp_path / "two" / "sub" / "other.jsonl").write_text("{}\n")
    assert code_hash.hash_path(tmp_path / "one") != code_hash.hash_path(tmp_path / "two")


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_hash, "LARGE_FILE", 3)
    file = tmp_path / "weights"
    file.write_text("aaaa")
    before = code_hash.hash_path(file)
    assert code_hash.hash_path(file) == before
    file.write_text("aaaaa")
    assert code_hash.hash_path(file) != before


def test_the_real_training_stages_depend_on_what_they_train_with() -> None:
    closure = code_hash._closure("rlhflow_utils.training.stages")
    wanted = {"training.trainers", "models.chat", "models.preference_model", "guide.stage", "guide.profile"}
    assert {f"rlhflow_utils.{name}" for name in wanted} <= closure
    assert "rlhflow_utils.evaluation.rewardbench" not in closure
