"""Count the real rows anew and render the committed cards (their templates, facts and findings lie beside this file)::

python -m rlhflow_utils data --profile slices --data-root folder
python data_cards/render.py runs/slices-data/preference_data
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.data.cards import FOLDER, load_facts, read_pairs, render, rules_table, standard_sets
from rlhflow_utils.data.filters import DROPPED
from rlhflow_utils.data.mixtures import seeded_order
from rlhflow_utils.data.overview import PAPER_TABLE1, funnel
from rlhflow_utils.guide.tables import Formatted, markdown_table

AUDIT_SEED, AUDITED = 0, 100  # kept pairs of a source that a reader goes through
AT_HAND = "on the rows at hand (profile `slices`), not on the whole set"


def collect_counts(data: Path) -> dict[str, Any]:
    """``{source: {native_rows, rows_in, dropped, rows_out, lengths}}`` of a finished folder."""
    counts = funnel(read_pairs(data))
    for row in json.loads((data / "table1.json").read_text(encoding="utf-8")):
        del counts[row["source"]]["splits"]
        lengths = {k: v for k, v in row.items() if k not in ("source", "paper", "completion", "annotator")}
        counts[row["source"]]["lengths"] = lengths
    return counts


def draw_audit(data: Path) -> dict[str, Any]:
    """Source -> the row ids to read: `AUDITED` pairs that pass the filters, drawn by a seed, and all dropped ones."""
    drawn = {}
    for source, rows in read_pairs(data).groupby("source", sort=False):
        passed = rows[~rows.fate.str.startswith(DROPPED) | rows.fate.str.endswith("_overlap")].row_id.tolist()
        kept = [passed[i] for i in sorted(seeded_order(passed, AUDIT_SEED)[:AUDITED])]
        dropped = rows[~rows.row_id.isin(passed)].groupby("fate").row_id.apply(list)
        by_reason = {str(fate).removeprefix(DROPPED): ids for fate, ids in dropped.items()}
        drawn[str(source)] = {"kept": kept, "dropped": by_reason}
    return {"profile": "slices", "seed": AUDIT_SEED, "sources": drawn}


def load_audit() -> dict[str, Any]:
    """Source -> what a reader found in its rows (``audit.yaml``), how many were read (``audit.json``) and not read."""
    findings = yaml.safe_load((FOLDER / "audit.yaml").read_text(encoding="utf-8"))
    rows = json.loads((FOLDER / "audit.json").read_text(encoding="utf-8"))["sources"]
    counts = json.loads((FOLDER / "counts.json").read_text(encoding="utf-8"))
    overlap = {name: sum(n for reason, n in counts[name]["dropped"].items() if "overlap" in reason) for name in rows}
    return {
        name: found | {"kept": len(rows[name]["kept"]), "dropped": sum(map(len, rows[name]["dropped"].values())),
                       "overlap": overlap[name]} for name, found in findings.items()
    }  # fmt: skip


def lengths_table(name: str, ours: Mapping[str, Any] | None) -> str:
    """Table 1: the paper's line and ours; empty where there is neither."""
    columns = ("prompts", "prompt_length", "chosen_length", "rejected_length", "pairs")
    lines = {"paper, Table 1": PAPER_TABLE1.get(name), "rows at hand": ours}
    rows = [
        {"": whose, **{c.removesuffix("_length"): line[c] for c in columns}} for whose, line in lines.items() if line
    ]
    return markdown_table(rows) if rows else ""


def render_all() -> dict[str, str]:
    """File name -> card, for every source, mixture and published set in the facts."""
    facts, audit = load_facts(), load_audit()
    counts = json.loads((FOLDER / "counts.json").read_text(encoding="utf-8"))
    sources, cards = facts["sources"], {}
    for name, fact in sources.items():
        counted, paper = counts.get(name), PAPER_TABLE1.get(name)
        lengths = counted["lengths"] if counted else None
        cards[fact["file"]] = render(
            "source", f"{name}, filtered preference pairs", [fact["licence"]],
            counted["rows_out"] if counted else paper["pairs"] if paper else None,
            name=name, facts=fact, rules=rules_table([counted] if counted else [], AT_HAND), ours=lengths,
            lengths=lengths_table(name, lengths), audit=audit.get(name),
        )  # fmt: skip
    for name, fact in facts["mixtures"].items():
        members = fact["sources"]
        known = sum(PAPER_TABLE1[member]["pairs"] for member in members if member in PAPER_TABLE1)
        rows = [{
            "source": Formatted(f"[{member}]({sources[member]['file']}.md)"), "licence": sources[member]["licence"],
            "pairs in the paper's Table 1": PAPER_TABLE1[member]["pairs"] if member in PAPER_TABLE1 else None,
            "kept of the rows at hand": f"{counts[member]['rows_out']:,} of {counts[member]['rows_in']:,}"
            if member in counts else None,
        } for member in members]  # fmt: skip
        cards[name] = render(
            "mixture", f"{name}, preference mixture", [sources[member]["licence"] for member in members], known,
            name=name, facts=fact, members=markdown_table(rows), known=known, sources=sources,
            at_hand=len(set(members) & set(counts)),
            rules=rules_table([counts[member] for member in members if member in counts], AT_HAND),
        )  # fmt: skip
    for name, fact in facts["published"].items():
        title = f"{name}, {fact['kind']}"
        sets = fact["sets"] or standard_sets().values()
        cards[fact["file"]] = render("published", title, [fact["licence"]], None, name=name, facts=fact, sets=sets)
    return {f"{name}.md": card for name, card in cards.items()}


def render_index() -> str:
    """``README.md``: a line for each card."""
    facts = load_facts()
    counts = json.loads((FOLDER / "counts.json").read_text(encoding="utf-8"))
    mixtures, rows = facts["mixtures"], []
    for name, fact in [*facts["sources"].items(), *facts["published"].items()]:
        member = ", ".join(mixture for mixture, each in mixtures.items() if name in each["sources"])
        basis = [word for word in ("sourced", "reconstructed") if word in fact.get("pairs", "").lower()]
        counted, role = counts.get(name, {}), member or fact.get("role") or fact["kind"]
        rows.append({
            "card": Formatted(f"[{name}]({fact['file']}.md)"), "role": Formatted(role),
            "rows at hand": counted.get("native_rows"), "pairs kept": counted.get("rows_out"),
            "licence": fact["licence"], "basis of the pair rule": ", ".join(basis) or None,
        })  # fmt: skip
    together = " and ".join(f"[{mixture}]({mixture}.md)" for mixture in mixtures)
    return f"""# Data cards

A card for each source, each published set and both mixtures ({together}).

* *Rows at hand* are the real rows of the profile `slices`. All others are on the hub.
* *Sourced*: the paper or its authors' cards state the rule that makes pairs. *Reconstructed*: they do not; ours is the
  simplest rule that fits.
* *Licence* is what the source or its page on the hub states. Check it there before you use the rows.

`render.py` writes this page and the cards.

{markdown_table(rows)}
"""


def main(data: Path) -> None:
    """Write ``counts.json``, ``audit.json`` and every card anew, from a finished folder of the profile `slices`."""
    for name, content in (("counts", collect_counts(data)), ("audit", draw_audit(data))):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for file, card in {**render_all(), "README.md": render_index()}.items():
        (FOLDER / file).write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
