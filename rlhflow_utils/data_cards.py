"""Hugging Face dataset cards, one per source and mixture, rendered from facts and counts.

``data_cards/facts.yaml`` holds what is known about each source, ``data_cards/counts.json`` what a run counted. To count
anew and render the cards::

    python -m rlhflow_utils.data_cards runs/slices/01_preference_data
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils import card_sections
from rlhflow_utils.card_sections import Counts
from rlhflow_utils.config import load_profile
from rlhflow_utils.source_statistics import PAPER_TABLE1, side_by_side
from rlhflow_utils.tables import markdown_table

FOLDER = Path(__file__).resolve().parent.parent / "data_cards"
Facts = Mapping[str, Any]


def load_facts(folder: Path = FOLDER) -> dict[str, dict[str, Facts]]:
    """``{"sources": {name: facts}, "mixtures": {name: facts}}``."""
    facts: dict[str, dict[str, Facts]] = yaml.safe_load((folder / "facts.yaml").read_text(encoding="utf-8"))
    return facts


def load_counts(folder: Path = FOLDER) -> dict[str, Any]:
    """What `collect_counts` found in the committed run."""
    counts: dict[str, Any] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return counts


def collect_counts(stage_folder: Path) -> dict[str, Any]:
    """``{source: {native_rows, rows_in, dropped, rows_out, lengths}}`` of a finished chapter 01."""
    pairs = json.loads((stage_folder / "funnel.json").read_text(encoding="utf-8"))["pairs"]
    table = json.loads((stage_folder / "table1.json").read_text(encoding="utf-8"))
    wanted = ("native_rows", "rows_in", "dropped", "rows_out")
    counts = {source: {key: row[key] for key in wanted} for source, row in pairs.items()}
    for row in table:
        keep = {k: v for k, v in row.items() if k not in ("source", "paper", "completion", "annotator")}
        counts[row["source"]]["lengths"] = keep
    return counts


def load_audit(folder: Path = FOLDER) -> dict[str, Any]:
    """Source -> what a reader found in its rows (``audit.yaml``) and how many rows that were (``audit.json``)."""
    findings = yaml.safe_load((folder / "audit.yaml").read_text(encoding="utf-8"))
    rows = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["sources"]
    return {
        name: found | {"kept": len(rows[name]["kept"]), "dropped": sum(map(len, rows[name]["dropped"].values()))}
        for name, found in findings.items()
    }


def pinned_revisions(profile: str = "llama3-8b") -> dict[str, str | None]:
    """Hub id -> revision of the data sources of a profile; None: not pinned."""
    data = load_profile(profile).data
    sources = [*data.preference_sources, *data.sft_sources, *data.prompt_sources]
    sources += [data.offline_source] if data.offline_source else []
    return {source.hub_id: source.revision for source in sources if source.hub_id}


def render_source_card(
    name: str, facts: Facts, counts: Counts | None, audit: Facts | None = None, revision: str | None = None
) -> str:
    """The card of one source.

    Args:
        name: of the source.
        facts: its entry of ``facts.yaml``.
        counts: its entry of ``counts.json``; None where no run has counted it.
        audit: its entry of `load_audit`; None where no rows were at hand to read.
        revision: the hub commit that the profiles read; None: not pinned.
    """
    paper = PAPER_TABLE1.get(name)
    pairs = counts["rows_out"] if counts else paper[6] if paper else None
    parts = [
        card_sections.header(f"{name}, filtered preference pairs", [facts["licence"]], pairs),
        f"# {name}", "", facts["origin"], "",
        f"- Read from: {card_sections.hub_link(facts['hub_id'])}; "
        f"{card_sections.revision_text(facts['hub_id'], revision)}",
        f"- Licence: {facts['licence']}",
        f"- Native schema: {facts['fields']}; converter: `{facts['schema']}`",
        f"- Pairs: {facts['pairs']}", "",
        card_sections.STANDARD_ROW, "",
        *card_sections.rules_section(counts), *card_sections.lengths_section(name, counts, facts.get("difference")),
        *card_sections.audit_section(audit),
        "## Known problems", "", *([f"- {problem}" for problem in facts["problems"]] or ["None known."]), "",
    ]  # fmt: skip
    return "\n".join(parts)


def render_mixture_card(name: str, facts: Facts, sources: Mapping[str, Facts], counts: Mapping[str, Counts]) -> str:
    """The card of a mixture: its sources, the paper's counts, and what the rows at hand gave."""
    members = facts["sources"]
    known = [PAPER_TABLE1[member][6] for member in members if member in PAPER_TABLE1]
    at_hand = {member: counts[member] for member in members if member in counts}
    parts = [
        card_sections.header(f"{name}, preference mixture", [sources[m]["licence"] for m in members], sum(known)),
        f"# {name}", "", facts["text"], "",
        *card_sections.members_table(members, sources, counts),
        f"Together {sum(known):,} pairs in Table 1.", "",
        card_sections.STANDARD_ROW, "",
        "Added to the paper's recipe: held-out pairs are split off by a hash of the first user turn, and training "
        "pairs that repeat an evaluation prompt are dropped (`evaluation_overlap`, `ngram_overlap`).", "",
        *card_sections.rules_section(card_sections.summed(at_hand)),
        "## Known problems", "",
        *[f"- {member}: {problem}" for member in members for problem in sources[member]["problems"]], "",
        "Each licence above applies to its rows. `unknown` means that none was established here: look it up first.", "",
    ]  # fmt: skip
    return "\n".join(parts)


def render_run_card(
    mixture: str,
    sources: Mapping[str, Facts],
    funnel: Mapping[str, Any],
    table: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> str:
    """The card that goes to the hub with a finished mixture.

    Args:
        mixture: name of the mixture.
        sources: facts of the sources (``facts.yaml``); a source without an entry has the licence ``unknown``.
        funnel: the run's ``funnel.json``.
        table: the run's ``table1.json``.
        provenance: the stage's manifest; empty where the command `data` made the rows.
    """
    made, pairs = funnel["mixtures"][mixture], funnel["pairs"]
    members = {name: pairs[name] for name in made["sources"]}
    licences = [sources.get(name, {}).get("licence", "unknown") for name in members]
    lengths = [row for row in table if row["source"] in members]
    parts = [
        card_sections.header(f"{mixture}, preference mixture", licences, made["rows_out"]),
        f"# {mixture}", "",
        f"{made['rows_out']:,} preference pairs to train reward models (recipe of arXiv 2405.07863).",
        "", *card_sections.run_members(made, members, sources), card_sections.STANDARD_ROW, "",
        *card_sections.rules_section(card_sections.summed(members), "in this run"),
        "## Lengths", "", markdown_table(side_by_side(lengths)), "", *card_sections.provenance_section(provenance),
    ]  # fmt: skip
    return "\n".join(parts)


def render_published_card(name: str, facts: Facts, sets: Sequence[Mapping[str, str | None]]) -> str:
    """The card of sets (`hub_id`, `revision`) that the paper's authors published and this guide reads as they are."""
    links = [
        f"- {card_sections.hub_link(found['hub_id'])}; "
        f"{card_sections.revision_text(found['hub_id'], found['revision'])}"
        for found in sets
    ]
    parts = [
        card_sections.header(f"{name}, {facts['kind']}", [facts["licence"]], None),
        f"# {name}", "", facts["origin"], "", *links,
        f"- Licence: {facts['licence']}", f"- Native schema: {facts['fields']}; converter: `{facts['schema']}`",
        f"- Use: {facts['use']}", "",
        "No rows of it are at hand here, so nothing is counted.", "",
        "## Known problems", "", *[f"- {problem}" for problem in facts["problems"]], "",
    ]  # fmt: skip
    return "\n".join(parts)


def render_all(folder: Path = FOLDER) -> dict[str, str]:
    """File name -> card, for every source, mixture and published set in the facts."""
    facts, counts, audit, revisions = load_facts(folder), load_counts(folder), load_audit(folder), pinned_revisions()
    cards = {
        f"{fact['file']}.md": render_source_card(
            name, fact, counts.get(name), audit.get(name), revisions.get(fact["hub_id"])
        )
        for name, fact in facts["sources"].items()
    }
    cards |= {
        f"{name}.md": render_mixture_card(name, fact, facts["sources"], counts)
        for name, fact in facts["mixtures"].items()
    }
    standard = [fact["standard"] for fact in facts["sources"].values() if "standard" in fact]
    return cards | {
        f"{fact['file']}.md": render_published_card(name, fact, fact["sets"] or standard)
        for name, fact in facts["published"].items()
    }


def write_cards(folder: Path = FOLDER) -> list[Path]:
    """Render every card into the folder."""
    paths = []
    for name, card in render_all(folder).items():
        (folder / name).write_text(card, encoding="utf-8")
        paths.append(folder / name)
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rlhflow_utils.data_cards runs/<run>/01_preference_data")
    found = json.dumps(collect_counts(Path(sys.argv[1])), indent=1, ensure_ascii=False)
    (FOLDER / "counts.json").write_text(found + "\n", encoding="utf-8")
    print("\n".join(path.name for path in write_cards()))
