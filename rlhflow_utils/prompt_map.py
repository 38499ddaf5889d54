"""The prompt map (paper, Fig. 7): prompts as points in a plane, near where their words are alike.

The paper embeds with a hosted model and draws with a web service. Here (deviation) the embedding is latent semantic
analysis: TF-IDF of words, its leading singular vectors, then the two principal axes. It needs no hub and no model.
`project` takes any other embedding just as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhflow_utils.decontamination import words_of

Matrix = NDArray[np.float64]
TOPICS = 20  # singular vectors kept of TF-IDF


def embed(texts: Sequence[str], seed: int = 0) -> Matrix:
    """Rows of `TOPICS` numbers (fewer for few texts), one a text, by latent semantic analysis.

    Weights are log(1 + count) log(N / documents), rows of unit length; words of one text alone are left out.

    Raises:
        ValueError: fewer than three texts, or no word occurs in two of them.
    """
    from scipy.sparse.linalg import svds

    weights = _tf_idf(texts)
    count = min(TOPICS, min(weights.shape) - 1)
    if len(texts) < 3 or count < 1:
        raise ValueError(f"a prompt map needs at least three prompts that share words, found {len(texts)}")
    start = np.random.default_rng(seed).standard_normal(min(weights.shape))
    left, sizes, _ = svds(weights, k=count, v0=start)
    return np.asarray(left[:, ::-1] * sizes[::-1])


def _tf_idf(texts: Sequence[str]) -> Any:
    from scipy.sparse import csr_array

    counts = [Counter(words_of(text)) for text in texts]
    documents = Counter(word for row in counts for word in row)
    column = {word: i for i, word in enumerate(sorted(word for word, n in documents.items() if n > 1))}
    entries = [(i, column[w], np.log1p(n) * np.log(len(texts) / documents[w]))
               for i, row in enumerate(counts) for w, n in row.items() if w in column]  # fmt: skip
    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    weights = csr_array((np.asarray(values, float), (rows, columns)), shape=(len(texts), max(len(column), 1)))
    norms = np.sqrt(weights.power(2).sum(axis=1))
    return csr_array(weights.multiply((1 / np.where(norms > 0, norms, 1))[:, None]))


def project(embeddings: Matrix) -> Matrix:
    """The two principal axes of some embeddings, shape (n, 2); signs are fixed so that runs look alike."""
    centred = embeddings - embeddings.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes[:2].T
    if points.shape[1] < 2:
        points = np.column_stack([points, np.zeros(len(points))])
    signs = np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])
    return np.asarray(points * np.where(signs == 0, 1, signs))


def prompt_map(prompts: Sequence[tuple[str, str]], seed: int = 0) -> list[dict[str, Any]]:
    """``[{source, x, y}]`` for (source, text) of some prompts."""
    points = project(embed([text for _, text in prompts], seed))
    return [
        {"source": source, "x": round(float(x), 4), "y": round(float(y), 4)}
        for (source, _), (x, y) in zip(prompts, points, strict=True)
    ]
