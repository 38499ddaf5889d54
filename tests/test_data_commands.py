"""The commands data, pin and push-data: offline up to the network, and against a hub that answers on this machine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset, load_from_disk
from huggingface_hub import DatasetCard

from rlhflow_utils.__main__ import main
from rlhflow_utils.data.cards import (
    FACTS,
    Repository,
    export_mixture,
    mixture_card,
    open_revisions,
    pin_files,
    pin_text,
    push_mixture,
)
from rlhflow_utils.data.command import with_published_sets
from rlhflow_utils.data.overview import explain_table1, side_by_side, table1_of
from rlhflow_utils.guide.profile import PROFILES_FOLDER, load_profile
from rlhflow_utils.guide.settings import HubSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers /api/datasets/<id> and /api/models/<id> with a commit; knows nothing of ids that end in -missing."""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].removeprefix("/api/datasets/").removeprefix("/api/models/")
        status = 404 if name.endswith("-missing") else 200
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


def pin_file(folder: Path, *hub_ids: str) -> Path:
    lines = [f"  - {{name: {i}, hub_id: {i}, revision: null}}  # why: null" for i in hub_ids]
    path = folder / "sources.yaml"
    path.write_text("sources:  # revision: null in a comment\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- pin ----------------------------------------------------------------------------------------------------------


def test_only_the_null_is_replaced() -> None:
    text = (
        "a: {hub_id: x/y, revision: null, split: null}  # revision: null\n"
        "b:\n  revision: ~\n  hub_id: x/z\n"
        "c: {hub_id: x/y, revision: abc}\n"
        "d: {hub_id: null, revision: null}\n"
        "e: {hub_id: x/w, revision: null}\n"
    )
    found = {Repository("dataset", "x/y"): "1" * 40, Repository("dataset", "x/z"): "2" * 40}
    pinned = pin_text(text, found)
    assert pinned == (
        f"a: {{hub_id: x/y, revision: {'1' * 40}, split: null}}  # revision: null\n"
        f"b:\n  revision: {'2' * 40}\n  hub_id: x/z\n"
        "c: {hub_id: x/y, revision: abc}\n"
        "d: {hub_id: null, revision: null}\n"
        "e: {hub_id: x/w, revision: null}\n"
    )
    assert [place.repository.hub_id for place in open_revisions(pinned)] == ["x/w"]


@pytest.mark.parametrize("name", ["gemma-2b", "llama3-8b"])
def test_a_pinned_profile_is_the_same_profile_with_revisions(name: str, tmp_path: Path) -> None:
    text = (PROFILES_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    wanted = [place.repository for place in open_revisions(text)]
    assert len(set(wanted)) >= 14  # eleven preference sources, SFT, prompts, Nectar, and benchmarks
    pinned = pin_text(text, dict.fromkeys(wanted, COMMIT))
    (tmp_path / "p.yaml").write_text(pinned, encoding="utf-8")
    profile = load_profile(str(tmp_path / "p.yaml"))
    assert {source.revision for source in profile.data.preference_sources} == {COMMIT}
    assert pinned.replace(f"revision: {COMMIT}", "revision: null") == text
    # One key cannot pin two repositories: LLaMA-3 starts its RM from the Instruct model.
    assert profile.model.revision == (COMMIT if name == "gemma-2b" else None)


def test_the_published_sets_can_be_pinned() -> None:
    places = open_revisions(FACTS.read_text(encoding="utf-8"))
    names = {place.repository.hub_id for place in places}
    assert {"hendrydong/preference_700K", "RLHFlow/SHP-standard", "RLHFlow/iterative-prompt-v1-iter3-20K"} <= names


def test_pin_asks_the_hub_and_writes(hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pin_file(tmp_path, "x/one", "x/two", "x/one")
    assert pin_files([path]) == 2
    assert [row["revision"] for row in yaml.safe_load(path.read_text(encoding="utf-8"))["sources"]] == [COMMIT] * 3
    assert f"dataset x/two: {COMMIT}" in capsys.readouterr().out


def test_one_repository_that_is_missing_leaves_every_file_as_it_was(hub: None, tmp_path: Path) -> None:
    path = pin_file(tmp_path, "x/one", "x/two-missing")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"cannot resolve the dataset x/two-missing.*nothing was written") as caught:
        pin_files([path])
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("is_offline", [True, False])
def test_without_a_network_pin_says_how_to_go_on(
    is_offline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    before = (PROFILES_FOLDER / "gemma-2b.yaml").read_bytes()
    assert main(["pin", "--profile", "gemma-2b"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot resolve the ")
    assert error.count("\n") == 1
    assert (PROFILES_FOLDER / "gemma-2b.yaml").read_bytes() == before


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
    raw = yaml.safe_load((PROFILES_FOLDER / "slices.yaml").read_text(encoding="utf-8"))
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
    assert main(["data", "--profile", str(small_profile(folder)), "--out", str(out)]) == 0
    return out


def test_one_line_builds_and_prints_table_1_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "--profile", str(small_profile(tmp_path)), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| Argilla-Math \| 30 \| 30 \| 28 \| (\d+) \| (\d+) \| 2 \| empty_turn 1, tie 1 \|", out)
    assert "| Argilla-Math | paper | 2,352 | 36.5 | 276.5 | 265.3 | LLM | GPT-4 | 2,418 |" in out
    assert "| Argilla-Math | ours | 28 | 2.00 | 2.00 | 3.00 | LLM | GPT-4 | 28 |" in out
    assert "ours in words; the paper's unit is not stated" in out
    assert "Argilla-Math: 1.2% of the paper's pairs; local rows" in out


def test_local_rows_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load((PROFILES_FOLDER / "slices.yaml").read_text(encoding="utf-8"))["data"]["preference_sources"]
    local = [source for source in raw if source["hub_id"] is None]
    overrides = [f"data.preference_sources={json.dumps(local)}", "data.main_mixture=mix2",
                 f"data.mixtures={json.dumps({'mix2': [s['name'] for s in local]})}"]  # fmt: skip
    assert main(["data", "--profile", "slices", *(a for text in overrides for a in ("--set", text))]) == 1
    assert "give their folder with --data-root" in capsys.readouterr().err


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
    from rlhflow_utils.data.overview import SourceLengths

    sums = {"SHP": SourceLengths(pairs=2, prompt=4, chosen=6, rejected=5, prompts={"a"}), "Own": SourceLengths()}
    rows = table1_of(sums, "tokens", "google/gemma-2b-it")
    lines = side_by_side(rows)
    assert [(line["dataset"], line[""], line["pairs"]) for line in lines] == [
        ("SHP", "paper", 93301), ("SHP", "ours", 2), ("Own", "ours", 0)
    ]  # fmt: skip
    first, second = explain_table1(rows, "hub", {"SHP": "their card's rule"})
    assert "tokens of google/gemma-2b-it" in first
    assert second == "SHP: 0.0% of the paper's pairs; their card's rule"
    assert "simulated" in explain_table1(rows, "world", {})[1]


# --- push-data ----------------------------------------------------------------------------------------------------


def test_an_exported_mixture_loads_like_the_hubs_copy(finished: Path, tmp_path: Path) -> None:
    card = mixture_card(finished, "mix")
    target = export_mixture(finished, "mix", card, tmp_path / "repository", rows_per_file=4)
    train = load_from_disk(str(finished / "mix"))
    names = sorted(path.name for path in (target / "data").glob("train-*"))
    assert len(names) == -(-len(train) // 4) > 1
    read = load_dataset(str(target), cache_dir=str(tmp_path / "cache"))
    assert read["train"].to_list() == train.to_list()
    assert read["test"].to_list() == load_from_disk(str(finished / "test")).to_list()
    data = DatasetCard(card).data.to_dict()
    assert data["license"] == "unknown"
    assert data["size_categories"] == ["n<1K"]
    funnel = json.loads((finished / "funnel.json").read_text(encoding="utf-8"))
    assert f"{funnel['mixtures']['mix']['rows_out']} preference pairs" in card
    assert "| `tie` | 1 |" in card
    assert "| Argilla-Math | paper | 2,352 |" in card


def test_push_stops_at_the_network_with_one_line(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push-data", str(finished), "--mixture", "mix", "--namespace", "someone"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: pushing someone/rlhf-workflow-mix failed")
    assert error.count("\n") == 1
    assert (finished / "mix-hub" / "README.md").read_text(encoding="utf-8") == mixture_card(finished, "mix")
    assert main(["push-data", str(finished), "--mixture", "mix9", "--namespace", "someone"]) == 1
    assert "no mixture 'mix9'" in capsys.readouterr().err


def test_push_needs_a_namespace(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"hub\.namespace"):
        push_mixture(finished, "mix", HubSettings(push=True, namespace=None, private=True))
