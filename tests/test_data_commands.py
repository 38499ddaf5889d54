"""The commands data, pin and push-data: offline up to the network, and against a hub that answers on this machine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from datasets import load_from_disk
from huggingface_hub import DatasetCard

from rlhflow_utils.data import cards
from rlhflow_utils.data.cards import mixture_card, pin, push_mixture, run_data, with_published_sets
from rlhflow_utils.data.overview import explain_table1, side_by_side, table1
from rlhflow_utils.guide.profile import PROFILES, load_profile
from rlhflow_utils.guide.settings import HubSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers /api/datasets/<id> and /api/models/<id> with a commit; knows nothing of the id `missing`."""

    missing = ""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].removeprefix("/api/datasets/").removeprefix("/api/models/")
        status = 404 if name == self.missing else 200
        body = json.dumps({"id": name, "sha": COMMIT} if status == 200 else {"error": "Repository not found"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine in place of the real one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


# --- pin ----------------------------------------------------------------------------------------------------------


def test_pin_writes_every_repository_of_the_profiles_and_cards(
    hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "REVISIONS", tmp_path / "revisions.yaml")
    judged = {"evaluation.judge_model": "someone/judge"}
    monkeypatch.setattr(cards, "load_profile", lambda name: load_profile(name, judged))
    number = pin()
    text = (tmp_path / "revisions.yaml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    assert text.startswith("# Commits of the hub repositories")
    assert len(found) == number
    assert set(found.values()) == {COMMIT}
    # Two repositories, two entries.
    models = {"meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", "someone/judge"}
    published = {"hendrydong/preference_700K", "RLHFlow/SHP-standard", "RLHFlow/iterative-prompt-v1-iter3-20K"}
    sources = {source.hub_id for source in load_profile("llama3-8b").data.preference_sources}
    assert models | published | sources | {"berkeley-nest/Nectar"} <= set(found)


def test_one_repository_that_is_missing_leaves_the_file_as_it_was(
    hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "REVISIONS", tmp_path / "revisions.yaml")
    monkeypatch.setattr(Hub, "missing", "stanfordnlp/SHP")
    with pytest.raises(
        RuntimeError, match=r"cannot resolve the dataset stanfordnlp/SHP.*nothing was written"
    ) as caught:
        pin()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "revisions.yaml").exists()


@pytest.mark.parametrize("is_offline", [True, False])
def test_without_a_network_pin_says_how_to_go_on(is_offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    before = (PROFILES / "revisions.yaml").read_bytes()
    with pytest.raises(RuntimeError, match=r"cannot resolve the .*go online") as caught:
        pin()
    assert "\n" not in str(caught.value)
    assert (PROFILES / "revisions.yaml").read_bytes() == before


# --- data ---------------------------------------------------------------------------------------------------------


def small_profile(folder: Path) -> Path:
    """A profile on hand-written rows: a source of the paper, 30 pairs, two of them dirty."""
    rows = [
        {"instruction": f"Question {i}?", "chosen_response": f"right {i}", "rejected_response": f"wrong answer {i}",
         "chosen_rating": 8.0, "rejected_rating": 8.0 if i == 3 else 5.0}
        for i in range(30)
    ]  # fmt: skip
    rows[4]["rejected_response"] = " "
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw = load_profile("slices").model_dump(by_alias=True)
    source = {"name": "Argilla-Math", "schema": "argilla_math", "hub_id": None, "hub_config": None, "revision": None,
              "split": None, "files": ["rows.jsonl"]}  # fmt: skip
    raw["data"] |= {
        "root": str(folder), "preference_sources": [source], "sft_sources": [], "evaluation_prompts": 2,
        "mixtures": {"mix": ["Argilla-Math"]}, "main_mixture": "mix",
        "partition": {"test": 0.2, "sft": 0.0, "prompts": 0.3, "judge": 0.0},
    }  # fmt: skip
    raw["data"]["decontamination"]["sources"] = []
    raw["evaluation"]["judge_model"] = "some/reward-model"  # no pairs are held apart to train one
    (folder / "small.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command `data` leaves."""
    folder = tmp_path_factory.mktemp("rows")
    out = tmp_path_factory.mktemp("out")
    return run_data(str(small_profile(folder)), str(out), {}, None)


def test_one_line_builds_and_prints_table_1_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    profile = small_profile(tmp_path / "rows")
    for _ in range(2):  # the second time the stage is found again
        run_data(str(profile), str(tmp_path / "out"), {}, None)
        out = capsys.readouterr().out
    assert "preference_data: unchanged, skipped" in out
    assert re.search(
        r"\| Argilla-Math \| 30 \| 30 \| 28 \| (?:\w+ \d+, )+train \d+ \| 2 \| empty_turn 1, tie 1 \|", out
    )
    assert "| Argilla-Math | paper | 2,352 | 36.5 | 276.5 | 265.3 | LLM | GPT-4 | 2,418 |" in out
    assert "| Argilla-Math | ours | 28 | 2.00 | 2.00 | 3.00 | LLM | GPT-4 | 28 |" in out
    assert "ours in words; the paper's unit is not stated" in out
    assert "Argilla-Math: 1.2% of the paper's pairs; local rows" in out


def test_local_rows_are_asked_for_by_name(tmp_path: Path) -> None:
    local = [s.model_dump(by_alias=True) for s in load_profile("slices").data.preference_sources if s.hub_id is None]
    overrides = {
        "data.preference_sources": local, "data.mixtures": {"mix1": ["PandaLM"], "mix2": ["PandaLM"]},
    }  # fmt: skip
    with pytest.raises(ValueError, match="give their folder with --data-root"):
        run_data("slices", str(tmp_path), overrides, None)


def test_published_sets_take_the_place_of_the_raw_sources() -> None:
    profile = with_published_sets(load_profile("llama3-8b"), "standard")
    sources = {source.name: source for source in profile.data.preference_sources}
    assert len(sources) == 10
    assert sources["SHP"].hub_id == "RLHFlow/SHP-standard"
    assert {source.schema_name for source in sources.values()} == {"rlhflow_standard"}
    assert profile.data.mixtures == {"standard": list(sources)}
    (only,) = with_published_sets(load_profile("gemma-2b"), "700k").data.preference_sources
    assert only.hub_id == "hendrydong/preference_700K"


def test_side_by_side_has_two_lines_for_a_source_of_the_paper() -> None:
    lengths = {"prompt_length": 2, "chosen_length": 3, "rejected_length": 3, "chosen_longer": False}
    pairs = pd.DataFrame([{"source": "SHP", "fate": "train", "prompt_id": "a", **lengths}] * 2)
    rows = table1(pairs, ["SHP", "Own"], "google/gemma-2b-it")
    lines = side_by_side(rows)
    assert [(line["dataset"], line[""], line["pairs"]) for line in lines] == [
        ("SHP", "paper", 93301), ("SHP", "ours", 2), ("Own", "ours", 0)
    ]  # fmt: skip
    first, second = explain_table1(rows, "hub", {"SHP": "their card's rule"})
    assert "tokens of google/gemma-2b-it" in first
    assert second == "SHP: 0.0% of the paper's pairs; their card's rule"
    assert "simulated" in explain_table1(rows, "world", {})[1]


# --- push-data ----------------------------------------------------------------------------------------------------


def test_the_card_of_a_mixture_counts_the_run(finished: Path) -> None:
    card = mixture_card(finished, "mix")
    data = DatasetCard(card).data.to_dict()
    assert (data["license"], data["size_categories"]) == ("apache-2.0", ["n<1K"])
    assert f"{len(load_from_disk(str(finished / 'mix')))} preference pairs" in card
    assert "| `tie` | 1 |" in card
    assert "| Argilla-Math | paper | 2,352 |" in card
    assert "seed `0`" in card


def test_push_stops_at_the_network_with_one_line(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    settings = HubSettings(push=True, namespace="someone", private=True)
    with pytest.raises(RuntimeError, match="pushing someone/rlhf-workflow-mix failed") as caught:
        push_mixture(finished, "mix", settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no mixture 'mix9'"):
        push_mixture(finished, "mix9", settings)


def test_push_needs_a_namespace(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"hub\.namespace"):
        push_mixture(finished, "mix", HubSettings(push=True, namespace=None, private=True))
