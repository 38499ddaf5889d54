"""Table 1: how long prompts and answers of each source are, beside the paper's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlhflow_utils.data.filters import words_of
from rlhflow_utils.models.chat import Message, prompt_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


TokenLength = Callable[[list[str]], list[int]]  # texts -> their lengths

# Paper, Table 1: prompts, mean lengths of prompt, preferred and rejected answer, kinds, pairs. Its unit of length is
# not stated; it is presumably tokens.
PAPER_COLUMNS = (
    "prompts", "prompt_length", "chosen_length", "rejected_length", "completion", "annotator", "pairs"
)  # fmt: skip
PAPER_TABLE1: dict[str, tuple[int, float, float, float, str, str, int]] = {
    "HH-RLHF": (115092, 160.4, 82.2, 73.6, "LLM", "Human", 115396),
    "SHP": (31003, 186.2, 173.6, 88.8, "Human", "Human", 93301),
    "HelpSteer": (8592, 530.0, 116.4, 89.3, "LLM", "Human", 37131),
    "PKU-SafeRLHF": (6975, 21.5, 70.4, 74.6, "LLM", "Human", 26874),
    "UltraFeedback": (63591, 161.5, 279.5, 211.1, "LLM", "GPT-4", 340025),
    "UltraInteract": (76086, 507.4, 396.6, 416.7, "LLM", "GPT-4", 161927),
    "CodeUltraFeedback": (9938, 172.8, 427.6, 400.6, "LLM", "GPT-3.5", 50156),
    "Argilla-Math": (2352, 36.5, 276.5, 265.3, "LLM", "GPT-4", 2418),
    "OpenOrca": (6791, 153.3, 165.4, 260.5, "LLM", "GPT-4", 6926),
    "Capybara": (14740, 634.5, 348.4, 401.9, "LLM", "GPT-4", 14811),
}
# Sources outside Table 1, whose kinds are known from their own descriptions.
OTHER_KINDS = {
    "Summarization": ("LLM and human", "Human"),
    "PandaLM": ("LLM", "Human"),
    "FineGrainedRLHF": ("LLM", "Human"),
}


@dataclass
class SourceLengths:
    """Running sums over the pairs of one source."""

    pairs: int = 0
    prompt: int = 0
    chosen: int = 0
    rejected: int = 0
    longer: int = 0
    prompts: set[str] = field(default_factory=set)

    def add(self, key: str, lengths: tuple[int, int, int], chosen_is_longer: bool) -> None:
        """Count one pair: its prompt's key, the lengths of prompt, chosen and rejected."""
        self.pairs += 1
        self.prompt += lengths[0]
        self.chosen += lengths[1]
        self.rejected += lengths[2]
        self.longer += chosen_is_longer
        self.prompts.add(key)


def word_lengths(texts: list[str]) -> list[int]:
    """Lengths in words, where no tokenizer is at hand."""
    return [len(text.split()) for text in texts]


def token_lengths(tokenizer: PreTrainedTokenizerBase) -> TokenLength:
    """Lengths in tokens of this tokenizer, without special tokens."""

    def lengths(texts: list[str]) -> list[int]:
        if not texts:
            return []
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [len(ids) for ids in encoded]

    return lengths


def prompt_text(prompt: list[Message]) -> str:
    """The contents of a prompt, one turn a line; what Table 1 and the length filter measure."""
    return "\n".join(message["content"] for message in prompt)


def measure(pairs: list[tuple[list[Message], str, str]], token_length: TokenLength) -> list[tuple[int, int, int]]:
    """Lengths of prompt, chosen and rejected of each (prompt, chosen, rejected)."""
    flat = [text for prompt, chosen, rejected in pairs for text in (prompt_text(prompt), chosen, rejected)]
    lengths = token_length(flat)
    return [(lengths[i], lengths[i + 1], lengths[i + 2]) for i in range(0, len(lengths), 3)]


def table1(
    rows: Iterable[Mapping[str, Any]], token_length: TokenLength, unit: str = "tokens", tokenizer: str | None = None
) -> list[dict[str, Any]]:
    """Table 1 over standard preference rows, one entry per source.

    Args:
        rows: standard rows (`prompt`, `chosen`, `rejected`, `source`).
        token_length: lengths of texts.
        unit: what it counts in.
        tokenizer: name of the tokenizer, where lengths are in tokens.
    """
    sums: dict[str, SourceLengths] = {}
    for row in rows:
        chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
        (lengths,) = measure([(row["prompt"], chosen, rejected)], token_length)
        entry = sums.setdefault(row["source"], SourceLengths())
        entry.add(prompt_key(row["prompt"]), lengths, len(chosen) > len(rejected))
    return table1_of(sums, unit, tokenizer)


def table1_of(sums: Mapping[str, SourceLengths], unit: str, tokenizer: str | None = None) -> list[dict[str, Any]]:
    """Entries ``{source, unit, tokenizer, prompts, prompt_length, ..., length_agreement, paper}``.

    `length_agreement` is the share of pairs whose chosen answer has more characters; `paper` holds Table 1's row, or
    null where the source is not in it.
    """
    return [_entry(source, sums[source], unit) | {"tokenizer": tokenizer} for source in sums]


def _entry(source: str, sums: SourceLengths, unit: str) -> dict[str, Any]:
    paper = PAPER_TABLE1.get(source)
    completion, annotator = paper[4:6] if paper else OTHER_KINDS.get(source, (None, None))
    return {
        "source": source,
        "unit": unit,
        "prompts": len(sums.prompts),
        "prompt_length": _mean(sums.prompt, sums.pairs),
        "chosen_length": _mean(sums.chosen, sums.pairs),
        "rejected_length": _mean(sums.rejected, sums.pairs),
        "completion": completion,
        "annotator": annotator,
        "pairs": sums.pairs,
        "length_agreement": _mean(sums.longer, sums.pairs, 3),
        "paper": dict(zip(PAPER_COLUMNS, paper, strict=True)) if paper else None,
    }


def _mean(total: int, count: int, digits: int = 1) -> float | None:
    return round(total / count, digits) if count else None


def side_by_side(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 1 with two lines a source, the paper's and ours, under the paper's columns.

    Args:
        rows: what `table1_of` gave (``table1.json``).
    """
    lines = []
    for row in rows:
        if row["paper"]:
            lines.append(_line(row["source"], "paper", row["paper"]))
        lines.append(_line(row["source"], "ours", row))
    return lines


def _line(source: str, whose: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": source, "": whose, "prompts": row["prompts"], "prompt len.": row["prompt_length"],
        "preferred len.": row["chosen_length"], "rejected len.": row["rejected_length"],
        "completion": row["completion"], "annotator": row["annotator"], "pairs": row["pairs"],
    }  # fmt: skip


def explain_table1(rows: Iterable[Mapping[str, Any]], origin: str, differences: Mapping[str, str]) -> list[str]:
    """Why ours differs from the paper: one line for the lengths, then one a source.

    Args:
        rows: what `table1_of` gave.
        origin: ``world`` (simulated rows), ``files`` (local copies, perhaps slices) or ``hub``.
        differences: source -> what is known about the paper's count (`data_cards/facts.yaml`).
    """
    rows = list(rows)
    lines = []
    if rows:
        unit = f"tokens of {rows[0]['tokenizer']}" if rows[0]["tokenizer"] else str(rows[0]["unit"])
        lines.append(
            f"Lengths: ours in {unit}; the paper's unit is not stated (presumably tokens of an unnamed tokenizer)."
        )
    if origin == "world":
        return [
            *lines,
            "Rows: ours are simulated, in the source's native schema; their number and length are built in.",
        ]
    for row in (row for row in rows if row["paper"]):
        share = row["pairs"] / row["paper"]["pairs"]
        known = differences.get(row["source"], "")
        local = "local rows, perhaps a part of the source; " if origin == "files" else ""
        lines.append(f"{row['source']}: {share:.1%} of the paper's pairs; {local}{known}".rstrip("; "))
    return lines
