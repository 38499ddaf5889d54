"""Training, generation and scoring of an 8B-shaped model on one GPU: speed, share of the GPU's peak, memory.

The weights are random, so no hub is needed; what is measured does not depend on their values. The trainers are the
guide's own, with the arguments of the profile `gemma-2b` (one GPU, LoRA) but for the sizes below. ::

    python benchmarks/gpu.py --folder scratch            # 70 GB of disk; writes results/gpu/<device>.json
    python benchmarks/gpu.py --folder scratch --shape small --only sft_lora,dpo_lora

The share of peak counts what the method needs, not what gradient checkpointing computes again: with N parameters in
matrices, 2 N operations a token forward, as many for the gradients of activations and, where all weights train, as many
for those of weights; attention adds 2 · layers · hidden · length a token and pass (causal).
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.run import quiet_libraries
from rlhflow_utils.guide.stage import PROJECT, provenance, write_json
from rlhflow_utils.models.chat import encode_conversation
from rlhflow_utils.models.reward_model import load_scorer
from rlhflow_utils.online.engines import Request, open_sampler
from rlhflow_utils.training.capacity import TABLE, matrices
from rlhflow_utils.training.trainers import TrainingJob, build_trainer

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": TABLE["architectures"]["meta-llama/Meta-Llama-3-8B"],
    "small": {
        "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "intermediate_size": 1024, "tie_word_embeddings": False,
    },
}  # fmt: skip
STEPS = 4  # the first one is not counted


class StepSeconds(TrainerCallback):  # type: ignore[misc]
    """The duration of each optimiser step, to its end on the GPU."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
        synchronize()
        self.started = time.perf_counter()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self.started)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bench:
    """One shape on this machine: the folders of its model and RM, and what was measured."""

    def __init__(self, folder: Path, shape: str, out: Path) -> None:
        self.folder, self.shape, self.out = folder, shape, out
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(PROJECT / "models" / "tiny-base")
        self.config = LlamaConfig(
            **{name: size for name, size in SHAPES[shape].items() if name != "model_type"},
            max_position_embeddings=8192, dtype="bfloat16", bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        body = sum(n * m for n, m in matrices(self.config))
        self.matrices = self.config.num_hidden_layers * body + self.config.hidden_size * self.config.vocab_size
        self.results: dict[str, Any] = {}
        self.draw = random.Random(0)

    def save_models(self) -> None:
        """A causal LM with random weights in bfloat16, and the same with a score head, as folders."""
        if (self.folder / "rm" / "config.json").is_file():
            return
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.set_default_dtype(torch.bfloat16)
            causal = LlamaForCausalLM(self.config)
            torch.set_default_dtype(torch.float32)
        scorer = LlamaForSequenceClassification(LlamaConfig(**{**SMALLEST, "num_labels": 1}))
        config = LlamaConfig(**{**self.config.to_dict(), "num_labels": 1})
        scorer.config, scorer.model = config, causal.model
        scorer.score = torch.nn.Linear(self.config.hidden_size, 1, bias=False, dtype=torch.bfloat16)
        for model, name in ((causal, "policy"), (scorer, "rm")):
            model.save_pretrained(self.folder / name)
            self.tokenizer.save_pretrained(self.folder / name)

    def ids(self, low: int, high: int) -> list[int]:
        return [self.draw.randrange(300, self.config.vocab_size) for _ in range(self.draw.randint(low, high))]

    def operations(self, tokens: int, length: float, passes: int) -> float:
        attention = 2 * self.config.num_hidden_layers * self.config.hidden_size * length
        return passes * tokens * (2 * self.matrices + attention)

    def measure(self, name: str, case: Callable[[], dict[str, Any]]) -> None:
        """Run one case and write all results; a case that fails is a line among them."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.time()
        try:
            found = case()
        except Exception as error:
            traceback.print_exc()
            found = {"error": " ".join(str(error).split())[:300]}
        if torch.cuda.is_available():
            found |= {"peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
        self.results[name] = found | {"wall_seconds": round(time.time() - started, 1)}
        print(name, self.results[name], flush=True)
        write_json(self.out, {"shape": self.shape, "provenance": provenance(), "cases": self.results})

    def train(self, kind: Any, section: str, rows: list[dict[str, Any]], tokens: int, overrides: dict[str, Any]) -> Any:
        """Seconds of a step, tokens a second and share of peak of a trainer of the guide."""
        folder = self.folder / "job"
        Dataset.from_list(rows).save_to_disk(str(folder / "data"))
        profile: Profile = load_profile("gemma-2b", {"launch": None, **SIZES, **overrides})
        settings = getattr(profile, section)
        model = profile.model.model_copy(update={"chat_template": None})
        policy = str(self.folder / "policy")
        job = TrainingJob(
            kind=kind, model=policy, ref_model=policy if kind == "dpo" else None, dataset=str(folder / "data"),
            output=str(folder), seed=0, training=settings, model_settings=model,
        )  # fmt: skip
        trainer, times = build_trainer(job), StepSeconds()
        trainer.add_callback(times)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # of training, without loading
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        seconds = statistics.median(times.seconds[1:])
        passes = 3 if settings.peft is None else 2
        done = self.operations(tokens, tokens / max(1, len(rows)), passes)
        return {
            "step_seconds": round(seconds, 3), "steps": len(times.seconds), "tokens_a_step": tokens // STEPS,
            "tokens_per_second": round(tokens / STEPS / seconds), "share_of_peak": self.share(done / STEPS / seconds),
            "losses": [round(loss, 4) for loss in losses],
        }  # fmt: skip

    def share(self, operations_per_second: float) -> float | None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        peak = next((gpu["tflops"] for label, gpu in TABLE["gpus"].items() if label.split("-")[0] in name), None)
        return round(operations_per_second / peak / 1e12, 3) if peak else None

    def sft(self, **overrides: Any) -> dict[str, Any]:
        """Blocks of 4,096 packed tokens, two a step."""
        rows = []
        for _ in range(2 * STEPS):
            ids = self.ids(4096, 4096)
            rows.append({"input_ids": ids, "labels": ids})
        return self.train("sft", "sft", rows, 4096 * 2 * STEPS, overrides)

    def reward(self, **overrides: Any) -> dict[str, Any]:
        """Eight pairs a step; a conversation has 200 to 1,000 tokens."""
        rows = [{f"{side}_ids": self.ids(200, 1000) for side in ("chosen", "rejected")} for _ in range(8 * STEPS)]
        tokens = sum(len(ids) for row in rows for ids in row.values())
        return self.train("reward", "reward_model", rows, tokens, overrides)

    def dpo(self, **overrides: Any) -> dict[str, Any]:
        """Eight pairs a step; a prompt has 50 to 400 tokens, an answer 100 to 600."""
        rows = [
            {"prompt_ids": self.ids(50, 400), **{f"{side}_ids": self.ids(100, 600) for side in ("chosen", "rejected")}}
            for _ in range(8 * STEPS)
        ]
        tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
        return self.train("dpo", "dpo", rows, tokens, overrides)

    def generate(self, prompts: int = 32, n: int = 8, length: int = 128) -> dict[str, Any]:
        """The transformers backend: n answers each to prompts of 256 tokens, all in one batch."""
        profile = load_profile("gemma-2b", {"generation.backend": "transformers", "generation.engine": {}})
        settings = profile.generation.model_copy(
            update={"sampling": {"n": n, "top_p": 1.0, "max_tokens": length}, "batch_size": prompts * n}
        )
        model = profile.model.model_copy(update={"chat_template": None})
        request = Request([self.ids(256, 256) for _ in range(prompts)], list(range(prompts)), [1.0] * n)
        with open_sampler(self.folder / "policy", settings, model) as sampler:
            sampler(Request(request.prompts[:2], request.seeds[:2], [1.0]))
            synchronize()
            started = time.perf_counter()
            answers = sampler(request)
            synchronize()
            seconds = time.perf_counter() - started
        made = sum(len(ids) for group in answers for ids in group)
        speed = round(made / seconds)
        return {"answers": prompts * n, "tokens": made, "seconds": round(seconds, 2), "tokens_per_second": speed}

    def score(self, answers: int = 256) -> dict[str, Any]:
        """Rewards of conversations of about 700 tokens in batches of 32,768."""
        words = "".join(self.tokenizer.decode([token]) for token in range(20, 400)).split()
        texts = [" ".join(self.draw.choices(words, k=self.draw.randint(20, 200))) for _ in range(answers)]
        prompt = [{"role": "user", "content": "Tell me."}]
        lengths = [len(encode_conversation(prompt, text, self.tokenizer)) for text in texts]
        profile = load_profile("gemma-2b")
        scorer = load_scorer(self.folder / "rm", 32768, profile.model.model_copy(update={"chat_template": None}))
        scorer([(prompt, text) for text in texts[:8]])
        started = time.perf_counter()
        rewards = scorer([(prompt, text) for text in texts])
        seconds = time.perf_counter() - started
        done = self.operations(sum(lengths), statistics.mean(lengths), 1)
        return {
            "answers": len(rewards), "tokens": sum(lengths), "seconds": round(seconds, 2),
            "answers_per_second": round(len(rewards) / seconds, 1), "tokens_per_second": round(sum(lengths) / seconds),
            "share_of_peak": self.share(done / seconds),
        }  # fmt: skip


SMALLEST = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
SIZES: dict[str, Any] = {
    "sft.global_batch_size": 2, "reward_model.global_batch_size": 8, "dpo.global_batch_size": 8,
    "sft.trainer.report_to": "none", "reward_model.trainer.report_to": "none", "dpo.trainer.report_to": "none",
    "dpo.trainer.num_train_epochs": 1,
}  # fmt: skip
ALL_WEIGHTS = {"sft.peft": None, "reward_model.peft": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder for the models")
    parser.add_argument("--shape", default="llama3-8b", choices=SHAPES)
    parser.add_argument("--only", help="cases, separated by commas")
    parser.add_argument("--out", type=Path, help="the file of the results")
    arguments = parser.parse_args()
    quiet_libraries()
    device = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    out = arguments.out or PROJECT / "results" / "gpu" / f"{device}.json"
    bench = Bench(arguments.folder, arguments.shape, out)
    started = time.time()
    bench.save_models()
    print(f"models written in {time.time() - started:.0f} s", flush=True)
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "sft_lora": bench.sft, "reward_lora": bench.reward, "dpo_lora": bench.dpo, "score": bench.score,
        "generate": bench.generate, "sft_lora_liger": lambda: bench.sft(**{"sft.trainer.use_liger_kernel": True}),
        "sft_all_weights": lambda: bench.sft(**ALL_WEIGHTS),
    }  # fmt: skip
    for name in arguments.only.split(",") if arguments.only else cases:
        bench.measure(name, cases[name])
    print(json.dumps(bench.results))


if __name__ == "__main__":
    main()
