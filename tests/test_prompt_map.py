"""The prompt map: alike prompts near each other, the same points from the same seed, nothing from nothing."""

from __future__ import annotations

import numpy as np
import pytest

from rlhflow_utils.data.overview import prompt_map

CITIES = ["what is the capital of France", "what is the capital of Chile", "name the capital city of Chile",
          "is Paris the capital of France", "which city is the capital"]  # fmt: skip
SUMS = ["add 3 and 4 now", "add 5 and 4 now", "please add 3 and 5", "now add 9 and 3 please", "add 9 and 5"]


def test_prompts_of_a_kind_lie_together() -> None:
    prompts = [*[("cities", text) for text in CITIES], *[("sums", text) for text in SUMS]]
    points = prompt_map(prompts, seed=1)
    assert [point["source"] for point in points] == ["cities"] * 5 + ["sums"] * 5
    place = np.array([[point["x"], point["y"]] for point in points])
    cities, sums = place[:5], place[5:]
    spread = max(np.linalg.norm(group - group.mean(axis=0), axis=1).mean() for group in (cities, sums))
    assert np.linalg.norm(cities.mean(axis=0) - sums.mean(axis=0)) > 1.5 * spread
    assert points == prompt_map(prompts, seed=1)


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "two", "three", "four"], ["", "", "", ""]])
def test_nothing_in_common_is_no_map(texts: list[str]) -> None:
    assert prompt_map([("S", text) for text in texts], seed=0) == []
