"""The same reward model on the same rows: our scores against those of the `rewardbench` package (0.1.4).

The reference was recorded by `benchmarks/rewardbench_reference.py`, in an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlhflow_utils.evaluation import rewardbench as rb
from rlhflow_utils.guide.profile import load_profile

FIXTURE = Path(__file__).parent / "fixtures" / "rewardbench"
SECTIONS = {"chat_hard": "Chat Hard", "safety": "Safety", "reasoning": "Reasoning"}


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return dict(json.loads((FIXTURE / "reference.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def rows(data_root: Path) -> list[rb.Row]:
    return rb.load_benchmark(load_profile("slices").rewardbench, data_root)[0]


@pytest.fixture(scope="module")
def pairs(rows: list[rb.Row]) -> pd.DataFrame:
    return rb.judge_rows(rows, "bt", FIXTURE / "model", batch_tokens=16_384)


def test_the_committed_model_is_small() -> None:
    assert sum(file.stat().st_size for file in (FIXTURE / "model").iterdir()) < 300_000


def test_scores_equal_the_package_s(pairs: pd.DataFrame, reference: dict[str, Any]) -> None:
    """All 1,543 pairs, to 1e-4; the model spreads its scores far wider than that."""
    assert len(pairs) == sum(map(len, reference["scores"].values())) == 1543
    for pair in pairs.itertuples():
        theirs = reference["scores"][pair.subset][pair.row_id]
        assert [pair.chosen, pair.rejected] == pytest.approx(theirs, abs=1e-4), pair.row_id
    values = [score for subset in reference["scores"].values() for pair in subset.values() for score in pair]
    assert max(values) - min(values) > 1


def test_accuracies_and_sections_equal_the_package_s(pairs: pd.DataFrame, reference: dict[str, Any]) -> None:
    summary = rb.summarise(pairs, confidence=0.95)
    ours = {subset: score["value"] for subset, score in summary["subsets"].items()}
    assert ours == pytest.approx(reference["accuracies"], abs=1e-12)
    assert set(ours) == set(reference["accuracies"])
    for section, name in SECTIONS.items():
        assert summary["sections"][section]["value"] == pytest.approx(reference["sections"][name], abs=1e-12)
    assert summary["sections"]["chat"] is None
    # The package gives 0 to a section without rows and has no overall score to compare with.
    assert reference["sections"]["Chat"] == 0


def test_scores_do_not_depend_on_the_batch(pairs: pd.DataFrame, rows: list[rb.Row]) -> None:
    some = list(range(0, len(rows), 25))
    alone = rb.judge_rows([rows[index] for index in some], "bt", FIXTURE / "model", batch_tokens=1)
    pd.testing.assert_frame_equal(alone, pairs.iloc[some].reset_index(drop=True), rtol=0, atol=1e-5)
