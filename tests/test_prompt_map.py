"""The prompt map: an embedding against weights written out, a projection by hand, alike prompts near each other."""

from __future__ import annotations

import numpy as np
import pytest

from rlhflow_utils.data.filters import words_of
from rlhflow_utils.data.overview import embed, project, prompt_map

CITIES = ["what is the capital of France", "what is the capital of Chile", "name the capital city of Chile",
          "is Paris the capital of France", "which city is the capital"]  # fmt: skip
SUMS = ["add 3 and 4 now", "add 5 and 4 now", "please add 3 and 5", "now add 9 and 3 please", "add 9 and 5"]


def dense_tf_idf(texts: list[str]) -> np.ndarray:
    """The same weights, written out word by word."""
    rows = [words_of(text) for text in texts]
    vocabulary = sorted({word for row in rows for word in row if sum(word in other for other in rows) > 1})
    idf = {word: np.log(len(texts) / sum(word in row for row in rows)) for word in vocabulary}
    weights = np.array([[np.log1p(row.count(word)) * idf[word] for word in vocabulary] for row in rows])
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def test_the_embedding_keeps_the_geometry_of_its_leading_singular_vectors() -> None:
    texts = CITIES + SUMS
    dense = dense_tf_idf(texts)
    left, sizes, _ = np.linalg.svd(dense, full_matrices=False)
    ours = embed(texts)
    count = ours.shape[1]
    assert count == min(dense.shape) - 1
    expected = left[:, :count] * sizes[:count]
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-9)


def test_projection_by_hand() -> None:
    # Three points around their mean, turned into three dimensions: the longer axis comes first.
    points = np.array([[0, 4.0, 0], [0, -2.0, 1.0], [0, -2.0, -1.0]])
    np.testing.assert_allclose(project(points), [[4, 0], [-2, 1], [-2, -1]], atol=1e-12)
    np.testing.assert_allclose(project(7 - points), project(points), atol=1e-12)  # signs are fixed
    assert project(np.array([[1.0], [3.0]])).tolist() == [[1.0, 0.0], [-1.0, 0.0]]


def test_prompts_of_a_kind_lie_together() -> None:
    points = prompt_map([*[("cities", text) for text in CITIES], *[("sums", text) for text in SUMS]], seed=1)
    place = np.array([[point["x"], point["y"]] for point in points])
    cities, sums = place[:5], place[5:]
    spread = max(np.linalg.norm(group - group.mean(axis=0), axis=1).mean() for group in (cities, sums))
    assert np.linalg.norm(cities.mean(axis=0) - sums.mean(axis=0)) > 1.5 * spread
    assert points == prompt_map([("cities", text) for text in CITIES] + [("sums", text) for text in SUMS], seed=1)


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "two", "three", "four"], ["", "", "", ""]])
def test_nothing_in_common_is_an_error(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="at least three prompts that share words"):
        embed(texts)
