"""A reward model that others trained: its template, its outputs, its positions; in chapters 05, 06 and the loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODEL, POSITIONS, artifact, prompts, save_policy, save_reward_model
from tiny_training import build_tiny_model
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from rlhflow_utils.evaluation import reward_models, rewardbench
from rlhflow_utils.evaluation.rewardbench import run_benchmark
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run
from rlhflow_utils.models.chat import encode_conversation, load_tokenizer
from rlhflow_utils.models.reward_model import load_scorer, score_responses
from rlhflow_utils.online.pair_building import build_preference_pairs, rank
from rlhflow_utils.training.trainers import TrainingJob, load_model

# Like Qwen's: it goes on behind the end of turn.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
OUTPUTS = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
OURS = MODEL.model_copy(
    update={"chat_template": TEMPLATE.replace(": ", "> "), "pad_token": "<|of_another_vocabulary|>"}
)
ANSWERS = ["red", "green blue", "one two three", "the sky"]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with one output, one with five."""
    folder = tmp_path_factory.mktemp("public")
    policy = save_policy(folder / "policy")
    for name, outputs in (("one", ["reward"]), ("five", OUTPUTS)):
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(
            policy, num_labels=len(outputs), id2label=dict(enumerate(outputs))
        )
        with torch.no_grad():
            model.score.weight.normal_(0, 0.3)
        model.save_pretrained(folder / name)
        tokenizer = AutoTokenizer.from_pretrained(policy)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    return {"one": folder / "one", "five": folder / "five", "policy": policy}


def by_transformers(folder: Path, conversations: list[Any], place: int = 0) -> list[float]:
    """As a model card on the hub scores: the tokenizer's template, one conversation at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    rewards = []
    for prompt, answer in conversations:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
        with torch.inference_mode():
            rewards.append(model(input_ids=ids).logits[0, place].item())
    return rewards


CONVERSATIONS = [(row["prompt"], answer) for row in prompts(3) for answer in ANSWERS]


def test_its_own_template_is_read_to_the_end(public: dict[str, Path]) -> None:
    expected = by_transformers(public["one"], CONVERSATIONS)
    assert max(expected) - min(expected) > 0.1
    assert load_scorer(public["one"], 200, OURS)(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    assert load_scorer(public["one"], 200)(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)


def test_without_a_template_of_its_own_it_gets_the_profile_s(public: dict[str, Path], tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "bare", public["policy"])
    for file in folder.glob("*template*"):
        file.unlink()
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    with pytest.raises(ValueError, match=r"set model\.chat_template to a Jinja template"):
        load_scorer(folder, 200)
    found = load_scorer(folder, 200, MODEL.model_copy(update={"chat_template": TEMPLATE}))(CONVERSATIONS)
    (tmp_path / "bare" / "chat_template.jinja").write_text(TEMPLATE)
    assert found == pytest.approx(by_transformers(folder, CONVERSATIONS), abs=1e-5)


def test_one_of_several_outputs_is_named_or_counted(public: dict[str, Path]) -> None:
    for output, place in (("coherence", 2), (4, 4), (0, 0), ("helpfulness", 0)):
        found = load_scorer(public["five"], 200, output=output)(CONVERSATIONS)
        assert found == pytest.approx(by_transformers(public["five"], CONVERSATIONS, place), abs=1e-5)
    for wrong in (None, "helpful", 5, -1):
        with pytest.raises(
            ValueError, match=r"has the outputs helpfulness, correctness, .*reward_model\.output"
        ) as caught:
            load_scorer(public["five"], 200, output=wrong)
        assert "\n" not in str(caught.value)
    assert load_scorer(public["one"], 200, output="helpfulness")(CONVERSATIONS[:1])[0] is not None  # its only one


def test_a_model_trained_here_is_scored_where_training_pooled(tmp_path: Path) -> None:
    """At the end of turn, though the template goes on behind it."""
    start = build_tiny_model(tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(start)
    profile = load_profile("tiny")
    job = TrainingJob(kind="reward", model=str(start), dataset="", output="", seed=0, training=profile.reward_model,
                      model_settings=profile.model)  # fmt: skip
    model = load_model(str(start), job, frozen=False)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    prompt, answer = CONVERSATIONS[0]
    ids = encode_conversation(prompt, answer, load_tokenizer(tmp_path / "rm"))
    assert ids[-1] == tokenizer.eos_token_id
    with torch.inference_mode():
        expected = model.eval()(input_ids=torch.tensor([ids])).logits[0, 0].item()
    assert load_scorer(tmp_path / "rm", 200)([(prompt, answer)]) == pytest.approx([expected], abs=1e-5)
    assert by_transformers(tmp_path / "rm", [(prompt, answer)]) != pytest.approx([expected], abs=1e-5)


def test_in_chapters_05_and_06_and_as_ranker_and_judge(public: dict[str, Path], tmp_path: Path) -> None:
    changes = {"reward_model.model": str(public["five"]), "reward_model.output": "correctness",
               "pair_building.length_penalty": 0.0, "evaluation.judge": "reward_model",
               "evaluation.judge_model": str(public["five"])}  # fmt: skip
    run = Run("09_iterative_dpo", load_profile("tiny", changes), tmp_path)
    profile, reward_model = run.profile, run.reward_model()
    assert reward_model == run.judge_model() == public["five"]
    more = {"lengths": [len(text) for text in ANSWERS], "response_ids": [[1]] * 4, "finish_reasons": ["stop"] * 4}
    rows = [{**row, **more, "responses": ANSWERS, "prompt_ids": [1]} for row in prompts(4)]
    rows[2]["responses"] = [*ANSWERS[:3], "sky " * POSITIONS]
    responses = artifact(tmp_path / "responses", rows=rows)
    scores = rank(run, reward_model, responses, into=run / "iter1_scores")
    assert scores.rows["prompts"] == {"rows_in": 4, "rows_out": 3, "dropped": {"too_long_for_model": 1}}
    expected = by_transformers(public["five"], [(rows[0]["prompt"], text) for text in ANSWERS], 1)
    assert scores.dataset()["rewards"][0] == pytest.approx(expected, abs=1e-5)
    [pair, *_] = build_preference_pairs(scores, profile.pair_building, 0, into=run / "iter1_pairs").dataset()
    assert pair["chosen"][0]["content"] == ANSWERS[expected.index(max(expected))]
    kept = score_responses(reward_model, responses, profile.reward_model, profile.model, keep=True, into=run / "kept")
    assert kept.rows["prompts"] == {"rows_in": 4, "rows_out": 4, "dropped": {}}
    assert (kept.dataset()["rewards"][2][3], kept.metrics["too_long_for_model"]) == (None, 1)
    bias = reward_models.measure_length_bias(scores, profile.evaluation, 0, into=run / "length_bias_public")
    assert bias.rows["prompts"]["rows_in"] == 3

    def pair_of(chosen: str, rejected: str) -> dict[str, Any]:
        sides = {"chosen": chosen, "rejected": rejected}
        return {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}

    pairs = [{"prompt": rows[0]["prompt"], "skill": None, **pair_of(*each)} for each in
             (ANSWERS[:2], ANSWERS[2:], ("red", "sky " * POSITIONS))]  # fmt: skip
    held_out = artifact(tmp_path / "pairs", rows=pairs, key="pairs")
    tested = reward_models.evaluate_judge(
        reward_model, "bt", held_out, profile.reward_model, profile.model, 0.9, into=run / "bt_public_test"
    )
    assert tested.rows["pairs"] == {"rows_in": 3, "rows_out": 2, "dropped": {"too_long_for_model": 1}}
    right = [expected[0] > expected[1], expected[2] > expected[3]]
    assert tested.metrics["accuracy"] == sum(right) / 2
    (tmp_path / "root").mkdir()
    native = [{"prompt": rows[0]["prompt"][0]["content"], "chosen": a, "rejected": b, "subset": "hep-go"}
              for a, b in (ANSWERS[:2], ANSWERS[2:])]  # fmt: skip
    (tmp_path / "root" / "rewardbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in native))
    bench = rewardbench.evaluate_rewardbench(
        reward_model, "bt", profile.rewardbench, tmp_path / "root", 200, profile.model, 0.9, "correctness",
        into=run / "rewardbench_bt_public",
    )  # fmt: skip
    assert bench.metrics["overall"] == sum(right) / 2


STRICT = TEMPLATE.replace(
    "{% for", "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}{% for", 1
)


def test_rows_that_its_template_refuses_are_dropped_and_counted(public: dict[str, Path], tmp_path: Path) -> None:
    """In scores, on held-out pairs and on three benchmarks; apart from the rows that are too long."""
    folder = shutil.copytree(public["one"], tmp_path / "strict")
    (folder / "chat_template.jinja").write_text(STRICT)
    turns = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    rows = [{**row, "responses": ANSWERS[:2]} for row in prompts(4)]
    rows[1]["prompt"] = [*turns, *rows[1]["prompt"]]
    rows[2]["responses"] = ["red", "sky " * POSITIONS]
    both = {"too_long_for_model": 1, "refused_by_template": 1}
    profile = load_profile("tiny", {"evaluation.bootstrap_samples": 20})
    scored = [(row["prompt"], text) for row in rows for text in row["responses"]]
    rewards = load_scorer(folder, 200, OURS)(scored)
    assert [reward is None for reward in rewards] == [False, False, True, True, False, True, False, False]
    settings = (profile.reward_model, profile.model)
    responses = artifact(tmp_path / "responses", rows=rows)
    scores = score_responses(folder, responses, *settings, into=tmp_path / "scores")
    assert scores.rows["prompts"] == {"rows_in": 4, "rows_out": 2, "dropped": both}
    kept = score_responses(folder, responses, *settings, keep=True, into=tmp_path / "kept")
    assert (kept.dataset()["rewards"][1], kept.metrics["refused_by_template"]) == ([None, None], 1)

    def sides(row: dict[str, Any]) -> dict[str, Any]:
        return {side: [{"role": "assistant", "content": row["responses"][place]}]
                for place, side in enumerate(("chosen", "rejected"))}  # fmt: skip

    pairs = artifact(tmp_path / "pairs", rows=[{"prompt": row["prompt"], "skill": None, **sides(row)} for row in rows])
    tested = reward_models.evaluate_judge(folder, "bt", pairs, *settings, 0.9, into=tmp_path / "tested")
    assert tested.rows["pairs"] == {"rows_in": 4, "rows_out": 2, "dropped": both}
    bench = [{"prompt": row["prompt"], "chosen": row["responses"][0], "rejected": row["responses"][1],
              "subset": "hep-go", "domain": "code"} for row in rows]  # fmt: skip
    lists = [{**row, "id": i, "chosen": [row["chosen"]], "rejected": [row["rejected"], "a", "b"], "subset": "Math"}
             for i, row in enumerate(bench)]  # fmt: skip
    styles = [{**row, "chosen": ["one", "two", *row["chosen"]]} for row in lists]
    for name, native in (("rewardbench", bench), ("rewardbench_2", lists), ("rm_bench", styles)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in native))
        schema = {"rewardbench": "reward_bench", "rewardbench_2": "reward_bench_2"}.get(name, name)
        source = {f"rewardbench.{'sources' if name == 'rewardbench' else name}":
                  [{"name": name, "schema": schema, "files": [f"{name}.jsonl"]}]}  # fmt: skip
        done = run_benchmark(name, folder, "bt", load_profile("slices", source), tmp_path, tmp_path / f"done_{name}")
        [account] = done.rows.values()
        assert {reason: count for reason, count in account["dropped"].items() if count} == both
    pm = public["policy"]  # reads the turns as a text of its own
    judged = run_benchmark("rm_bench", pm, "pm", load_profile("slices", source), tmp_path, tmp_path / "done_pm")
    assert judged.rows["rows"]["dropped"] == {"too_long_for_model": 1, "no_partner": 0}


# --- encoders -------------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": POSITIONS, "num_labels": 1}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
            "position_biased_input": False, "type_vocab_size": 0, "norm_rel_ebd": "layer_norm",
            "pooler_hidden_size": 32}  # fmt: skip
ENCODERS = {
    "deberta": lambda **more: DebertaV2Config(**SIZES, **RELATIVE, **more),
    "bert": lambda **more: BertConfig(**SIZES, **more),
    "modernbert": lambda **more: ModernBertConfig(**SIZES, **more, global_attn_every_n_layers=2, local_attention=8),
    "roberta": lambda **more: RobertaConfig(**SIZES, **more),
    "t5": lambda **more: T5Config(
        d_model=32, d_ff=64, num_layers=1, num_heads=2, num_labels=1, decoder_start_token_id=0, **more
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_read_as_transformers_reads_it(name: str, public: dict[str, Path], tmp_path: Path) -> None:
    """`tokenizer(question, answer)`, as the card of OpenAssistant's reward-model-deberta-v3 says; BERT has no EOS."""
    base = AutoTokenizer.from_pretrained(public["policy"])
    special = {"cls_token": "<|bos|>", "sep_token": "<|end|>", "pad_token": "<|pad|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer, **special, **({"eos_token": "<|end|>"} if name == "t5" else {}),
        chat_template="{{ cls_token }}{% for m in messages %}{{ m['content'] + sep_token }}{% endfor %}",
    )  # fmt: skip
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|bos|>", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>", pair="<|bos|> $A <|end|> $B <|end|>", special_tokens=ends
    )
    ids = {"bos_token_id": ends[0][1], "eos_token_id": ends[1][1], "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(ENCODERS[name](vocab_size=len(tokenizer), **ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1 if name == "t5" else 6)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = [(prompt[0]["content"], answer) for prompt, answer in CONVERSATIONS]
    with torch.inference_mode():
        inputs = [tokenizer(*pair, return_tensors="pt", return_token_type_ids=False) for pair in asked]
        expected = [model(**each).logits[0, 0].item() for each in inputs]
    assert max(expected) - min(expected) > 0.05
    for batch_tokens in (1, 1000):
        assert load_scorer(tmp_path, batch_tokens, MODEL)(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    assert load_scorer(tmp_path, 1000)(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    (tmp_path / "bad").mkdir()
    shutil.copytree(tmp_path, tmp_path / "bad", dirs_exist_ok=True, ignore=shutil.ignore_patterns("bad"))
    weights = load_file(tmp_path / "model.safetensors")
    head = next(each for each in weights if each.startswith(("classif", "classification_head")))
    weights["ranker.weight"] = weights.pop(head)
    save_file(weights, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing weights .'{head}'.*unexpected weights .'ranker.weight'"):
        load_scorer(tmp_path / "bad", 1000)


def test_where_nothing_fits_there_is_one_line(public: dict[str, Path], tmp_path: Path) -> None:
    rows = [{**row, "responses": ["sky " * POSITIONS]} for row in prompts(2)]
    settings = load_profile("tiny").reward_model
    with pytest.raises(ValueError, match=r"none of 2 rows fits into the model's positions \(max_position_embeddings"):
        score_responses(public["one"], artifact(tmp_path / "r", rows=rows), settings, MODEL, into=tmp_path / "scores")
