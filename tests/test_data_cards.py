"""The committed cards are what the renderer makes of the facts, the counts are true, and the cards are valid."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import DatasetCard

from rlhflow_utils.data.cards import FOLDER, load_facts, rule_text, run_data
from rlhflow_utils.data.filters import RULES
from rlhflow_utils.data.overview import PAPER_TABLE1
from rlhflow_utils.data.sources import CONVERTERS
from rlhflow_utils.guide.profile import load_profile

RENDER = SimpleNamespace(**runpy.run_path(str(FOLDER / "render.py")))


def committed(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_committed_cards_match_the_renderer() -> None:
    cards = {**RENDER.render_all(), "README.md": RENDER.render_index()}
    assert {path.name for path in FOLDER.glob("*.md")} == set(cards)
    for name, card in cards.items():
        found = (FOLDER / name).read_text(encoding="utf-8")
        assert found == card, f"{name} is stale: see the head of data_cards/render.py"


def test_front_matter_is_what_the_hub_reads() -> None:
    for name, text in RENDER.render_all().items():
        data = DatasetCard(text).data.to_dict()
        assert all(data[key] for key in ("license", "pretty_name", "tags")), name
        assert data["language"] == ["en"]
        assert len(data["size_categories"]) == 1


def test_the_index_has_a_line_for_every_card() -> None:
    index = RENDER.render_index()
    assert all(f"({name})" in index for name in RENDER.render_all())
    counted = json.loads((FOLDER / "counts.json").read_text(encoding="utf-8"))["HH-RLHF"]
    line = next(line for line in index.splitlines() if line.startswith("| [HH-RLHF]"))
    numbers = f"{counted['native_rows']:,} | {counted['rows_out']:,}"
    assert line == f"| [HH-RLHF](hh-rlhf.md) | mix1, mix2 | {numbers} | mit | sourced |"


def test_an_audit_names_the_dropped_pairs_that_were_not_read() -> None:
    card = RENDER.render_all()["hh-rlhf.md"]
    assert "all 61 that a rule of quality dropped" in card
    assert "The 31 dropped for their overlap with an evaluation prompt were not looked at." in card


def test_every_source_of_the_paper_and_of_the_profiles_has_a_card() -> None:
    facts = load_facts()
    assert set(PAPER_TABLE1) <= set(facts["sources"])
    for name in ("tiny", "slices", "gemma-2b", "llama3-8b"):
        settings = load_profile(name).data
        for source in settings.preference_sources:
            fact = facts["sources"][source.name]
            assert source.schema_name in fact["schema"]
            assert source.schema_name in CONVERTERS
            if name not in ("tiny", "slices"):
                assert source.hub_id == fact["hub_id"]
    for name in ("tiny", "gemma-2b", "llama3-8b"):
        mixtures = load_profile(name).data.mixtures
        assert {mixture: fact["sources"] for mixture, fact in facts["mixtures"].items()} == mixtures


def test_a_card_says_of_each_rule_whether_it_is_sourced() -> None:
    assert rule_text("tie") == ("Both answers are equally good by the native label", "sourced")
    assert rule_text("zero_width")[1] == "reconstructed"
    assert rule_text("meaningless")[1] == "sourced in part, else reconstructed"
    for reason in [*RULES, *load_facts()["reasons"]]:
        assert all(rule_text(reason)), reason
    cards = RENDER.render_all()
    for name, fact in load_facts()["sources"].items():
        card = cards[f"{fact['file']}.md"]
        assert all(f"| `{reason}` |" in card for reason in [*RULES, *load_facts()["reasons"]]), name


def test_counts_and_audit_are_those_of_the_real_rows(data_root: Path, tmp_path: Path) -> None:
    data = run_data("slices", str(tmp_path), {"data.root": str(data_root)}, None)
    assert RENDER.collect_counts(data) == committed("counts.json")
    record = RENDER.draw_audit(data)
    assert record == committed("audit.json")
    for source in record["sources"].values():
        assert len(set(source["kept"])) == 100
        assert not set(source["kept"]) & {row for rows in source["dropped"].values() for row in rows}


def test_every_audited_source_has_findings_about_rows_that_were_drawn() -> None:
    record = committed("audit.json")["sources"]
    audit = RENDER.load_audit()
    assert set(audit) == set(record)
    for name, found in audit.items():
        assert found["findings"]
        assert set(found["doubtful"]) <= set(record[name]["kept"])
        assert set(found["lost"]) <= {row for rows in record[name]["dropped"].values() for row in rows}


def test_a_mixture_card_sums_its_sources() -> None:
    counts = committed("counts.json")
    together = counts["HH-RLHF"]["rows_in"] + counts["UltraFeedback"]["rows_in"]
    assert f"gave {together:,} candidate pairs" in RENDER.render_all()["mix1.md"]
