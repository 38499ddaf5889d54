"""Every figure of the guide, drawn from saved results: one function per figure, each returns the Figure.

Nothing is computed here beyond what a title says. `caption` goes below the figure, small: state there which world and
model the numbers come from.
"""

from rlhflow_utils.guide.figures.judges import (
    calibration_curves,
    funnel,
    length_agreement,
    length_bias,
    length_distributions,
    loss_curves,
    mixture_composition,
    prompt_map,
    reward_histogram,
    rewardbench_bars,
    rewardbench_subsets,
)
from rlhflow_utils.guide.figures.policies import (
    chapter_times,
    pair_length_change,
    policy_bars,
    proxy_against_gold,
    response_lengths,
    reward_gap_histogram,
    win_rate_against_length,
    win_rate_over_iterations,
)

__all__ = [
    "calibration_curves",
    "chapter_times",
    "funnel",
    "length_agreement",
    "length_bias",
    "length_distributions",
    "loss_curves",
    "mixture_composition",
    "pair_length_change",
    "policy_bars",
    "prompt_map",
    "proxy_against_gold",
    "response_lengths",
    "reward_gap_histogram",
    "reward_histogram",
    "rewardbench_bars",
    "rewardbench_subsets",
    "win_rate_against_length",
    "win_rate_over_iterations",
]  # fmt: skip
