"""The paper's published results, as it prints them (arXiv 2405.07863). None: not reported, or not established."""

from __future__ import annotations

# Table 1: prompts, mean lengths of prompt, preferred and rejected answer (tokens of an unnamed tokenizer), pairs.
# It stands in `source_statistics.py`, beside the code that measures ours.

# RewardBench, LLaMA-3-8B (README of RLHFlow/RLHF-Reward-Modeling): per cent. Prompting is below both in every section
# (paper 2.3); its own numbers could not be established.
REWARDBENCH: dict[str, dict[str, float | None]] = {
    "bt": {"chat": 99.4, "chat_hard": 65.1, "safety": 87.8, "reasoning": 86.4},
    "pm": {"chat": 98.3, "chat_hard": 65.8, "safety": 89.7, "reasoning": 94.7},
    "prompting": {"chat": None, "chat_hard": None, "safety": None, "reasoning": None},
}

# Figure 5: mean over prompts of the Pearson correlation between length and reward.
LENGTH_BIAS = {"UltraRM-13B": 0.19, "BT RM, mix2": 0.06}

# Table 4: length-controlled AlpacaEval-2 (%), MT-Bench (1-10), Arena-Hard (%).
CHAT_BENCHMARKS = {
    "SFT": (10.2, 7.69, 5.6),
    "offline DPO": (22.5, 8.17, 22.4),
    "iterative DPO": (37.2, 8.46, 29.1),
    "LLaMA-3-8B-it": (22.9, 8.16, 20.6),
}

ACADEMIC_TASKS = ("gsm8k", "mmlu", "humaneval", "truthfulqa", "arc", "mbpp")
# Table 5: GSM-8K 8-shot, MMLU 5, HumanEval 0, TruthfulQA 0, ARC 25, MBPP 0 (%).
ACADEMIC = {
    "SFT": (74.2, 64.7, 65.2, 53.4, 61.4, 62.3),
    "offline DPO": (79.8, 64.5, 63.4, 61.8, 65.2, 60.3),
    "iterative DPO": (80.7, 65.3, 64.6, 60.4, 64.3, 60.8),
    "LLaMA-3-8B-it": (79.6, 66.0, 61.6, 43.9, 59.5, 61.1),
}

# Table 6: LC AlpacaEval-2, Arena-Hard, mean length (no unit is named), of the three ablation rows.
ABLATIONS = {
    "ours": (37.2, 29.1, 656),
    "concise (lambda = 0.001)": (41.9, 22.1, 382),
    "with UltraRM-13B": (20.7, 24.3, 745),
}
# The academic columns of Table 6. TruthfulQA of "ours" is 60.4 in Table 5 and 62.2 here: the paper contradicts itself.
ABLATIONS_ACADEMIC = {
    "ours": (80.7, 65.3, 64.6, 62.2, 64.3, 60.8),
    "concise (lambda = 0.001)": (78.8, 65.5, 66.5, 60.4, 65.1, 62.4),
    "with UltraRM-13B": (78.9, 64.9, 63.7, 59.9, 63.6, 60.8),
}
