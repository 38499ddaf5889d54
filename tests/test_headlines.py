"""The headline numbers: which fell out of their bands, and the table of machines."""

from __future__ import annotations

import json

import pytest

from rlhflow_utils.guide.headlines import BANDS, machine_rows, outside_bands
from rlhflow_utils.guide.stage import PROJECT


def test_a_number_outside_its_band_is_named() -> None:
    published = dict.fromkeys(BANDS, 0.8)
    moved = {**published, "rewardbench_bt.overall": 0.775, "iter3_evaluation.accuracy": 0.83}
    assert outside_bands(moved, published) == ["rewardbench_bt.overall: 0.775, published 0.800, may differ by 0.02"]


def test_the_spread_over_machines_stands_beside_the_band() -> None:
    runs = [{"name": name, "metrics": dict.fromkeys(BANDS, value)} for name, value in (("a", 0.5), ("b", 0.75))]
    first = machine_rows(runs)[0]
    assert first == {"metric": next(iter(BANDS)), "a": 0.5, "b": 0.75, "spread": pytest.approx(0.25), "band": 0.02}


def test_the_published_run_has_every_headline() -> None:
    published = json.loads((PROJECT / "results" / "tiny" / "summary.json").read_text(encoding="utf-8"))["summary"]
    assert outside_bands(published, published) == []
