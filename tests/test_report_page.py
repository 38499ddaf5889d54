"""Texts of rows, prompts and answers in tables and in `report.html`: shown as they are, in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from rlhflow_utils.guide.chapters import execute
from rlhflow_utils.guide.publishing import METADATA, write_report
from rlhflow_utils.guide.tables import markdown_table

SCRIPT = "<script>document.title = 'ran'</script>"
HOSTILE = (
    f"{SCRIPT}<img src=x onerror=\"document.title = 'ran'\"> a | b `|` \\| c\n# d\r\n| e | [f](javascript:g) ![h](i) "
    "**j** _k_ l_m_n ~~o~~ $p$ \\(q\\) &lt; &amp; <!-- r\u2028--> ``` "
    "https://x.example/y?z=<b> www.x.example a@x.example"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CELLS = """
import pandas as pd
from IPython.display import Markdown, display
from rlhflow_utils.guide import tables
text = {text!r}
row = {{"source": "x", "prompt": text, "chosen": [{{"role": "assistant", "content": text}}]}}
tables.show([row, {{"source": text, "prompt": text[:40], "chosen": None}}], "A row.")
tables.show([{{text: "answer"}}])
print(text)
display(pd.DataFrame([row]))
display(Markdown(text))
"""


def test_no_text_breaks_a_table() -> None:
    lines = markdown_table([{"n": 1, "text": HOSTILE}, {"n": 2, "text": "plain"}]).split("\n")
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {3}
    assert not set("<>`*$[\\") & set("".join(lines))


def _page(path: Path, folder: Path) -> BeautifulSoup:
    """A page as a browser shows it, after its scripts."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--virtual-time-budget=1000"]
    command = [str(CHROMIUM), *options, "--dump-dom", path.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150)
    return BeautifulSoup(found.stdout, "html.parser")


@pytest.mark.timeout(400)
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_hostile_texts_are_shown_literally_and_run_nowhere(tmp_path: Path) -> None:
    """Through a kernel, the export and a browser. The last cell's Markdown is the text itself, as by a mistake."""
    chapter = "12_reproduction_report.ipynb"
    cells = ["PROFILE = 'tiny'", CELLS.format(text=HOSTILE)]
    blank = {"cell_type": "code", "execution_count": None, "outputs": []}
    notebook = {
        "cells": [
            {**blank, "id": f"cell-{i}", "source": text, "metadata": {"tags": ["parameters"] if i == 0 else []}}
            for i, text in enumerate(cells)
        ],
        "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip
    (tmp_path / chapter).write_text(json.dumps(notebook), encoding="utf-8")
    execute(tmp_path / chapter, tmp_path / "run" / "notebooks" / chapter, {})
    assert write_report(tmp_path / "run")

    page = _page(tmp_path / "run" / "report.html", tmp_path / "browser")
    assert page.title is not None
    assert page.title.text == "RLHF Workflow"
    shown, as_header = page.find_all("table")[:2]
    literal = " ".join(HOSTILE.splitlines())
    rows = [[cell.text for cell in line.find_all(["td", "th"])] for line in shown.find_all("tr")]
    assert rows[0] == ["source", "prompt", "chosen"]
    assert rows[1][:2] == ["x", literal]
    assert rows[1][2] == str([{"role": "assistant", "content": HOSTILE}])
    assert rows[2] == [literal, HOSTILE[:40], "–"]
    assert [cell.text for cell in as_header.find_all(["td", "th"])] == [literal, "answer"]
    for table in (shown, as_header):
        assert {tag.name for tag in table.find_all(True)} <= {"thead", "tbody", "tr", "th", "td"}

    (tmp_path / "control.html").write_text(f"<title>before</title>{SCRIPT}", encoding="utf-8")
    control = _page(tmp_path / "control.html", tmp_path / "browser")
    assert control.title is not None
    assert control.title.text == "ran", "this browser runs scripts where a page lets it"
