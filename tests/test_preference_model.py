"""The pairwise preference model: format, labels, both orders, ranking."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import MODEL, WORDS, artifact, prompts, save_policy

from rlhflow_utils.guide.settings import PreferenceModelSettings
from rlhflow_utils.models.chat import encode_prompt, load_tokenizer, render
from rlhflow_utils.models.forward import load_model
from rlhflow_utils.models.preference_model import (
    Comparison,
    answer_ids,
    chosen_first,
    format_comparison,
    knock_out,
    load_compare,
    preference_probability,
    rank_responses,
    round_robin,
    training_tokens,
)
from rlhflow_utils.training.stages import tokenise

DIALOGUE = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "What is red?"},
]
QUALITY = {"bad": 0, "poor": 1, "fair": 2, "good": 3, "best": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


def test_an_answer_may_open_with_an_empty_thought(model: Path, tmp_path: Path) -> None:
    """As Qwen3's template writes it; A and B are then read after it."""
    tokenizer = load_tokenizer(model)
    thought = "'<think></think>' + message['content'] if message['role'] == 'assistant' else message['content']"
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", f"({thought})")
    opening, labels = answer_ids(tokenizer)
    assert tokenizer.decode(opening) == "<think></think>"
    assert tokenizer.convert_ids_to_tokens(labels) == ["A", "B"]
    prompt, network, p = prompts(1)[0]["prompt"], load_model(model, "causal"), []
    for order in (("red", "blue"), ("blue", "red")):
        ids = encode_prompt(format_comparison(prompt, *order), tokenizer) + opening
        with torch.inference_mode():
            p.append(float(network(torch.tensor([ids])).logits[0, -1, labels].softmax(-1)[0]))
    judge = shutil.copytree(model, tmp_path / "judge")
    tokenizer.save_pretrained(judge)
    # Its own template goes before the profile's.
    settings = MODEL.model_copy(update={"chat_template": load_tokenizer(model).chat_template})
    [found] = preference_probability(judge, [(prompt, "red", "blue")], 500, settings)
    assert found == pytest.approx((p[0] + 1 - p[1]) / 2, abs=1e-5)


def test_pairs_that_read_the_same_in_both_orders_are_dropped(model: Path) -> None:
    rows = [{**_pair("0"), "rejected": _pair("0")["chosen"]}, _pair("1")]
    function = partial(training_tokens, tokenizer=load_tokenizer(model), seed=0)
    kept, dropped = tokenise(Dataset.from_list(rows), function, 500)
    assert (len(kept), dropped["identical_tokens"]) == (1, 1)
    assert sorted(kept.column_names) == ["input_ids", "labels", "length"]


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    words = WORDS.split()
    pairs = [(" ".join(words[: 1 + i % 4]), " ".join(words[5 : 7 + i % 3])) for i in range(7)]
    return [(row["prompt"], a, b) for row, (a, b) in zip(prompts(7), pairs, strict=True)]


class Oracle:
    """Knows the better of two responses; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = self.calls = 0

    def __call__(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.asked += len(comparisons)
        self.calls += 1
        return [0.5 if QUALITY[a] == QUALITY[b] else 0.9 if QUALITY[a] > QUALITY[b] else 0.1 for _, a, b in comparisons]


def test_question_is_written_as_in_the_paper() -> None:
    [message] = format_comparison(DIALOGUE, "A colour.", "A fruit.")
    assert message == {
        "role": "user",
        "content": "[CONTEXT] <turn> user\n Hi.\n\n<turn> assistant\n Hello.\n\n<turn> user\n What is red?"
        " [RESPONSE A] A colour. [RESPONSE B] A fruit.",
    }


def test_labels_are_one_token_each(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    opening, labels = answer_ids(tokenizer)
    assert (opening, tokenizer.convert_ids_to_tokens(labels)) == ([], ["A", "B"])
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] * 2")
    with pytest.raises(ValueError, match=r"'A' and 'B' must differ in one token, .* set model\.chat_template"):
        answer_ids(tokenizer)


def test_training_rows_put_the_loss_on_answer_and_end_of_turn_alone(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    rows = [_pair(f"r{index}") for index in range(20)]
    answers = set()
    for row in rows:
        tokens = training_tokens(row, tokenizer, seed=3)
        first = chosen_first(3, f"demo:{row['row_id']}")
        question = format_comparison(DIALOGUE, *(("good", "bad") if first else ("bad", "good")))
        label = answer_ids(tokenizer)[1][0 if first else 1]
        assert tokens["input_ids"] == [*encode_prompt(question, tokenizer), label, tokenizer.eos_token_id]
        assert tokens["labels"][-2:] == [label, tokenizer.eos_token_id]
        assert set(tokens["labels"][:-2]) == {-100}
        assert tokens["input_ids"].count(tokenizer.bos_token_id) == 1
        answers.add(label)
    assert answers == set(answer_ids(tokenizer)[1])


def test_order_is_a_fair_coin_that_depends_on_seed_and_row_alone(model: Path) -> None:
    coins = [chosen_first(1, f"row{index}") for index in range(2000)]
    assert coins == [chosen_first(1, f"row{index}") for index in range(2000)]
    assert 900 < sum(coins) < 1100  # 4.5 standard deviations
    other = [chosen_first(2, f"row{index}") for index in range(2000)]
    assert 900 < sum(a == b for a, b in zip(coins, other, strict=True)) < 1100


def test_probability_is_read_after_the_generation_prompt_in_both_orders(
    model: Path, comparisons: list[Comparison]
) -> None:
    network, tokenizer = load_model(model, "causal", MODEL), load_tokenizer(model)

    def asked_alone(prompt: Sequence[dict[str, str]], a: str, b: str) -> float:
        text = render(format_comparison(prompt, a, b), tokenizer, add_generation_prompt=True)
        assert text.endswith("<|assistant|>")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logits = network(ids).logits[0, -1]
        token_a, token_b = tokenizer.convert_tokens_to_ids(["A", "B"])
        return float(torch.sigmoid(logits[token_a] - logits[token_b]))

    expected = [(asked_alone(x, a, b) + 1 - asked_alone(x, b, a)) / 2 for x, a, b in comparisons]
    assert max(expected) - min(expected) > 0.01
    for batch_tokens in (1, 150, 10_000):
        assert preference_probability(model, comparisons, batch_tokens) == pytest.approx(expected, abs=1e-5)


def test_swapping_the_responses_mirrors_the_probability(model: Path, comparisons: list[Comparison]) -> None:
    compare = load_compare(model, 1000)
    swapped = compare([(x, b, a) for x, a, b in comparisons])
    assert [1 - p for p in swapped] == pytest.approx(compare(comparisons), abs=1e-6)


def test_equal_responses_are_a_tie(model: Path) -> None:
    assert preference_probability(model, [(DIALOGUE, "good", "good")], 1000) == [0.5]


def test_nothing_is_truncated_and_what_is_too_long_has_no_probability(model: Path) -> None:
    found = preference_probability(model, [(DIALOGUE, "sky " * 200, "sky"), (DIALOGUE, "red", "sky")], 1000)
    assert found == [None, pytest.approx(preference_probability(model, [(DIALOGUE, "red", "sky")], 1000)[0], abs=1e-6)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_knock_out_finds_the_planted_best_with_n_minus_one_comparisons(count: int) -> None:
    groups = []
    for place in range(count):
        group = ["bad", "poor", "fair", "good", "bad", "poor", "fair", "good"][:count]
        group[place] = "best"
        groups.append(group)
    oracle = Oracle()
    assert knock_out(oracle, [DIALOGUE] * count, groups) == list(range(count))
    assert oracle.asked == count * (count - 1)
    assert oracle.calls == (count - 1).bit_length()  # all prompts of a round go in one batch


def test_knock_out_of_equals_is_won_by_the_first() -> None:
    assert knock_out(Oracle(), [DIALOGUE], [["fair", "fair", "fair"]]) == [0]


def test_round_robin_scores_are_mean_probabilities() -> None:
    [scores, alone] = round_robin(Oracle(), [DIALOGUE, DIALOGUE], [["fair", "best", "fair"], ["bad"]])
    assert scores == pytest.approx([(0.1 + 0.5) / 2, 0.9, (0.5 + 0.1) / 2])
    assert alone == [0.0]


@pytest.mark.parametrize("tournament", ["round_robin", "knock_out"])
def test_stage_ranks_the_responses_to_every_prompt(model: Path, tmp_path: Path, tournament: str) -> None:
    texts = [WORDS[:9], WORDS[20:31], WORDS[40:48], WORDS[60:75]]
    rows = [{**row, "responses": texts} for row in prompts(3)]
    settings = PreferenceModelSettings(mixtures=["mix1"], batch_tokens=500, global_batch_size=1, trainer={})
    responses = artifact(tmp_path / "responses", rows=rows)
    ranked = rank_responses(model, responses, settings, tournament, MODEL, into=tmp_path / "scores").dataset()
    every_prompt, compare = [row["prompt"] for row in rows], load_compare(model, 500)
    assert list(ranked["prompt_id"]) == ["p0", "p1", "p2"]
    if tournament == "round_robin":
        for found, wanted in zip(ranked["rewards"], round_robin(compare, every_prompt, [texts] * 3), strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)
    else:
        winners = knock_out(compare, every_prompt, [texts] * 3)
        assert list(ranked["rewards"]) == [[float(index == winner) for index in range(4)] for winner in winners]


def _pair(row_id: str, chosen: str = "good", rejected: str = "bad") -> dict[str, object]:
    return {
        "prompt": DIALOGUE,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "source": "demo",
        "row_id": row_id,
    }
