"""The parts that dataset cards are made of: front matter, rules with their basis and counts, lengths, audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rlhflow_utils import filters
from rlhflow_utils.source_statistics import PAPER_TABLE1

Counts = Mapping[str, Any]
SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
STANDARD_ROW = (
    "Rows are in the standard preference format: `prompt` (turns, ending with the user), `chosen`, `rejected` (the "
    "answer as one assistant turn), `chosen_score`, `rejected_score` (native scores or null), `source`, `row_id`."
)
OTHER_REASONS = {
    "too_long": filters.is_too_long.__doc__ or "",
    "duplicate_pair": "The prompt and both answers were kept before. Reconstructed.",
    "swapped_duplicate": "The pair was kept before with the opposite label. Reconstructed.",
    "too_many_pairs": "The prompt has its number of pairs. Sourced for SHP (at most 5, its card).",
    "evaluation_overlap": "The prompt opens like an evaluation prompt. Reconstructed.",
    "ngram_overlap": "The prompt shares long runs of words with an evaluation prompt. Reconstructed.",
}


def header(title: str, licences: Sequence[str], pairs: int | None) -> str:
    """YAML front matter, as the hub reads it; `pairs` sets the size category."""
    different = sorted(set(licences))
    licence = different[0] if len(different) == 1 else "other"
    front: dict[str, Any] = {"pretty_name": title, "language": ["en"], "license": licence}
    if licence == "other":  # the hub asks for a name beside "other"
        front["license_name"] = "mixed" if len(different) > 1 else "see-the-source"
    front["tags"] = ["preference", "rlhf", "reward-model"]
    front["size_categories"] = [_size(pairs)] if pairs is not None else ["unknown"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _size(pairs: int) -> str:
    return next(label for limit, label in SIZES if pairs < limit)


def hub_link(hub_id: str | None) -> str:
    """A link to a dataset, or the words for none."""
    return f"[{hub_id}](https://huggingface.co/datasets/{hub_id})" if hub_id else "local files"


def revision_text(hub_id: str | None, revision: str | None) -> str:
    """The commit that is read, or how to pin one."""
    if hub_id is None:
        return "no hub revision"
    return f"revision: `{revision}`" if revision else "revision: not pinned (`python -m rlhflow_utils pin` writes it)"


def rule_text(reason: str) -> tuple[str, str]:
    """What a drop reason means, and its basis (sourced, reconstructed), from the rule's docstring."""
    document = OTHER_REASONS.get(reason) or (filters.RULES[reason].__doc__ or "")
    text = " ".join(document.split())
    meaning = text.removeprefix("Reason ``too_long``: ").split(". ")[0].removesuffix(".")
    words = [word for word in ("sourced", "reconstructed") if word in text.lower()]
    return meaning, " in part, else ".join(words)


def rules_section(
    counts: Counts | None, where: str = "on the rows at hand (profile `slices`), not on the whole set"
) -> list[str]:
    """Every rule in its order, with its basis, and the pairs that it took from the rows at hand."""
    reasons = [*filters.RULES, *OTHER_REASONS]
    lines = ["## Filters", ""]
    if counts is None:
        lines += [
            "No run over these rows has been recorded here yet.",
            "",
            "| reason | meaning | basis |",
            "|---|---|---|",
        ]
    else:
        lines += [
            f"Counted {where}: {counts['native_rows']:,} native rows gave {counts['rows_in']:,} candidate pairs, of "
            f"which {counts['rows_out']:,} were kept. The first rule that a pair fails takes it.", "",
            "| reason | pairs dropped | meaning | basis |", "|---|---:|---|---|",
        ]  # fmt: skip
    for reason in reasons:
        meaning, basis = rule_text(reason)
        number = "" if counts is None else f" {counts['dropped'].get(reason, 0):,} |"
        lines.append(f"| `{reason}` |{number} {meaning} | {basis} |")
    return [*lines, ""]


def summed(counts: Mapping[str, Counts]) -> Counts | None:
    """The counts of several sources together; None where there is none."""
    if not counts:
        return None
    dropped: Counter[str] = sum((Counter(row["dropped"]) for row in counts.values()), Counter())
    totals = {key: sum(row[key] for row in counts.values()) for key in ("native_rows", "rows_in", "rows_out")}
    return totals | {"dropped": dict(dropped)}


def lengths_section(name: str, counts: Counts | None, difference: str | None) -> list[str]:
    """Table 1, the paper's line and ours, and why they differ."""
    paper = PAPER_TABLE1.get(name)
    ours = counts["lengths"] if counts else None
    if not paper and not ours:
        return []
    unit = f"ours in {ours['unit']}; the paper's unit is not stated" if ours else "the paper does not state the unit"
    lines = ["## Size and lengths", "", f"Mean lengths: {unit}. Measured before held-out prompts are taken out.", ""]
    lines += ["| | prompts | prompt | chosen | rejected | pairs |", "|---|---:|---:|---:|---:|---:|"]
    if paper:
        lines.append(f"| paper, Table 1 | {paper[0]:,} | {paper[1]} | {paper[2]} | {paper[3]} | {paper[6]:,} |")
    if ours:
        lengths = " | ".join(str(ours[f"{part}_length"]) for part in ("prompt", "chosen", "rejected"))
        lines.append(f"| rows at hand | {ours['prompts']:,} | {lengths} | {ours['pairs']:,} |")
        lines += ["", f"The chosen answer has more characters in {ours['length_agreement']:.1%} of the pairs kept."]
    if difference:
        lines += ["", f"On the paper's count: {difference}."]
    return [*lines, ""]


def audit_section(audit: Mapping[str, Any] | None) -> list[str]:
    """What a reader found in the rows."""
    if audit is None:
        return []
    drawn = f"{audit['kept']} kept pairs drawn by a seed and all {audit['dropped']} dropped ones were gone through"
    lines = ["## Audit", "", f"{drawn} (`audit.json` names the rows).", ""]
    lines += [f"- {' '.join(finding.split())}" for finding in audit["findings"]]
    if audit["doubtful"]:
        lines.append(f"- Kept but doubtful: {', '.join(f'`{row}`' for row in audit['doubtful'])}.")
    if audit["lost"]:
        lines.append(f"- Dropped although sound: {', '.join(f'`{row}`' for row in audit['lost'])}.")
    return [*lines, ""]


def members_table(
    members: Sequence[str], sources: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Counts]
) -> list[str]:
    """The sources of a mixture: licence, the paper's pairs, and the pairs kept of the rows at hand."""
    lines = ["| source | licence | pairs in the paper's Table 1 | kept of the rows at hand |", "|---|---|---:|---:|"]
    for member in members:
        pairs = f"{PAPER_TABLE1[member][6]:,}" if member in PAPER_TABLE1 else "not stated"
        kept = (
            f"{counts[member]['rows_out']:,} of {counts[member]['rows_in']:,}" if member in counts else "none at hand"
        )
        lines.append(f"| [{member}]({sources[member]['file']}.md) | {sources[member]['licence']} | {pairs} | {kept} |")
    return [*lines, ""]


def run_members(
    made: Mapping[str, Any], members: Mapping[str, Counts], sources: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The sources of a finished mixture: where each is from, its licence, candidate pairs, and pairs in the mixture."""
    lines = ["| source | read from | licence | candidate pairs | pairs here |", "|---|---|---|---:|---:|"]
    for name, row in members.items():
        facts = sources.get(name, {})
        link, licence = hub_link(facts.get("hub_id")), facts.get("licence", "unknown")
        lines.append(f"| {name} | {link} | {licence} | {row['rows_in']:,} | {made['sources'][name]:,} |")
    return [*lines, ""]


def provenance_section(manifest: Mapping[str, Any]) -> list[str]:
    """Which run made the rows; nothing where there is no manifest."""
    if not manifest:
        return []
    known = {key: manifest.get(key) for key in ("profile", "stage", "key", "seed", "commit")}
    return ["## Provenance", "", ", ".join(f"{key} `{value}`" for key, value in known.items()) + ".", ""]
