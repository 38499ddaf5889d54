"""Figures: the right marks for the right numbers, titles that say what is seen, and files that render."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables as paper
from rlhflow_utils.guide.figures.style import METHOD_COLOURS, colour_of, edges_through_zero, short_count

RNG = np.random.default_rng(0)


def _estimate(value: float, half: float = 0.03) -> dict[str, float]:
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": 600}


def _policy(value: float) -> dict[str, Any]:
    return {"accuracy": _estimate(value), "length_adjusted_win_rate": _estimate(value)}


FUNNEL = {
    "hh_rlhf": {"rows_in": 100, "rows_out": 80, "dropped": {"tie": 15, "empty_turn": 5}},
    "shp": {"rows_in": 50, "rows_out": 50, "dropped": {"tie": 0}},
}
SECTIONS = {
    "bt": {"chat": _estimate(0.9), "chat_hard": None, "safety": _estimate(0.8), "overall": _estimate(0.85)},
    "pm": {"chat": _estimate(0.95), "chat_hard": None, "safety": _estimate(0.7), "overall": _estimate(0.83)},
}
STUDY = {
    "lengths": [[3, 1, 2], [1, 2, 3], [5, 6, 7]],
    "rewards": [[3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]],
    "correlations": [1.0, -1.0, math.nan],
}
TABLE = {
    "predicted": [0.2, 0.8], "observed": [0.25, 0.75], "ci_low": [0.1, 0.6], "ci_high": [0.4, 0.9], "count": [10, 30],
}  # fmt: skip
POLICIES = {
    "gold win rate": {"SFT": _estimate(0.5), "iterative": _estimate(0.7)},
    "exact match": {"SFT": _estimate(0.8), "iterative": None},
}
LOSSES = {"mix1": [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}, {"train_runtime": 3.0}]}
MAP = [{"source": "a", "x": 0.0, "y": 1.0}, {"source": "b", "x": 2.0, "y": 3.0}, {"source": "a", "x": 4.0, "y": 5.0}]
POINTS = {"SFT": {"accuracy": _estimate(0.5), "mean_length": _estimate(60, 2)}}

# Longer, equally long and shorter chosen answers: 70 of 100 and 10 ties, 4 of 8, 80 of 400.
AGREEMENT = {
    "shp": {"chosen": [2.0] * 65 + [1.0] * 10 + [0.0] * 25, "rejected": [1.0] * 100},
    "a": {"chosen": [2.0] * 4 + [0.0] * 4, "rejected": [1.0] * 8},
    "b": {"chosen": [2.0] * 80 + [0.0] * 320, "rejected": [1.0] * 400},
}
FIGURES: dict[str, tuple[Callable[[], Figure], str]] = {
    "funnel": (lambda: plotting.funnel(FUNNEL, "c"), "Filtering drops 13.3 % of 150 pairs"),
    "length_distributions": (
        lambda: plotting.length_distributions({"shp": {"chosen": [5, 6, 9], "rejected": [1, 2, 3]}}, caption="c"),
        "Chosen answers are longer on average in 1 of 1 sources",
    ),
    "mixture_composition": (
        lambda: plotting.mixture_composition({"mix1": {"a": 30, "b": 10}, "mix2": {"a": 5}}, "c"),
        "mix1 from 2 and mix2 from 1 sources",
    ),
    "length_agreement": (
        lambda: plotting.length_agreement(AGREEMENT, "c"),
        "lean to the longer answer in 1 of 3 bars, to the shorter in 1",
    ),
    "prompt_map": (lambda: plotting.prompt_map(MAP, "c"), "3 prompts of 2 sources"),
    "loss_curves": (lambda: plotting.loss_curves(LOSSES, caption="c"), "The training loss falls"),
    "reward_histogram": (
        lambda: plotting.reward_histogram([2.0, 3.0, 1.0, 4.0], [1.0, 1.0, 2.0, 0.0], "c"),
        "higher in 75.0 % of 4 pairs",
    ),
    "calibration_curves": (lambda: plotting.calibration_curves({"BT": TABLE}, "c"), "BT 0.050"),
    "rewardbench_bars": (lambda: plotting.rewardbench_bars(SECTIONS, paper.REWARDBENCH, "c"), "BT 85.0 %, PM 83.0 %"),
    "rewardbench_subsets": (
        lambda: plotting.rewardbench_subsets({"bt": {"hep-go": _estimate(0.5), "hep-js": _estimate(0.6)}}, "c"),
        "by subset",
    ),
    "length_bias": (lambda: plotting.length_bias({"mix1": STUDY, "mix2": STUDY}, caption="c"), "+0.00 (mix1)"),
    "reward_gap_histogram": (
        lambda: plotting.reward_gap_histogram({"best_vs_worst": [1.0, 2.0, 3.0]}, "c"),
        "best vs worst: half of the pairs differ by 2.00 or more",
    ),
    "pair_length_change": (
        lambda: plotting.pair_length_change({"λ = 0": [0, 5, 5, -5]}, caption="c"),
        "λ = 0: the chosen answer is longer in 50 % of the pairs",
    ),
    "response_lengths": (
        lambda: plotting.response_lengths([[3, 5], [7, 9]], [[0.7, 1.0], [0.7, 1.0]], caption="c"),
        "Half of the 4 responses have at most 6 characters",
    ),
    "progress_over_iterations": (
        lambda: plotting.progress_over_iterations(_policy(0.5), [_policy(0.6), _policy(0.7)], caption="c"),
        "Right answers: 50 % after SFT, 70 % after iteration 2 (n = 600)",
    ),
    "proxy_against_gold": (
        lambda: plotting.proxy_against_gold(
            {"no λ": [{"kl": kl, "proxy": _estimate(kl), "gold": _estimate(0.5 - kl / 10)} for kl in (0.0, 0.2, 1.0)]},
            caption="c",
        ),
        "No λ, iteration 1 to 2: RM +0.80, gold judge -0.08",
    ),
    "policy_bars": (lambda: plotting.policy_bars(POLICIES, "c"), "Highest gold win rate: iterative, 0.7"),
    "quality_against_length": (
        lambda: plotting.quality_against_length(POINTS, "c"),
        "SFT: 50.0 % right answers, with 60",
    ),
}


def test_every_figure_of_the_guide_is_tested() -> None:
    drawn = {
        name
        for name, each in vars(plotting).items()
        if getattr(each, "__module__", "").endswith(("judges", "policies"))
    }
    assert {name for name in drawn if not name.startswith("_")} == set(FIGURES)


def test_a_method_has_one_colour_in_every_figure() -> None:
    [axes] = plotting.rewardbench_subsets({"pm": {"hep-js": _estimate(0.7)}, "bt": {"hep-js": _estimate(0.6)}}).axes
    assert [bar.get_facecolor() for bar in axes.patches] == [to_rgba(METHOD_COLOURS[name]) for name in ("pm", "bt")]
    figure = plotting.length_bias({"mix1": STUDY, "mix2": STUDY})
    shown = [axes.patches[0].get_facecolor()[:3] for axes in figure.axes[:2]]
    assert shown == [to_rgba(METHOD_COLOURS[name])[:3] for name in ("mix1", "mix2")]
    assert colour_of("a name of its own", 9) == colour_of("another", 1)


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_renders_with_title_labels_and_caption(name: str) -> None:
    draw, title = FIGURES[name]
    figure = draw()
    assert title in figure.get_suptitle()
    assert figure.get_supxlabel().splitlines()[-1] == "c"
    for axes in figure.axes:
        assert axes.has_data()
    assert all(axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left") for axes in figure.axes)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    assert png.getvalue().startswith(b"\x89PNG")
    assert 5_000 < len(png.getvalue()) < 120_000  # not blank, and small enough for a committed notebook
    assert figure.get_figwidth() == pytest.approx(8.0)
    assert not plt.get_fignums()  # closed: a notebook shows it once


def test_length_agreement_counts_a_tie_as_one_half() -> None:
    [axes] = plotting.length_agreement(AGREEMENT).axes
    bars = [patch for patch in axes.patches if patch.get_height()]
    assert [bar.get_width() for bar in bars] == pytest.approx([-30, 0, 20])
    [whiskers] = [c for c in axes.collections if hasattr(c, "get_segments")]
    variance = (65 * 0.3**2 + 10 * 0.2**2 + 25 * 0.7**2) / 100  # of 1, ½ and 0 around 0.7
    assert [segment[1][0] - segment[0][0] for segment in whiskers.get_segments()] == pytest.approx(
        [2 * 196 * (0.2 * 0.8 / 400) ** 0.5, 2 * 196 * (0.25 / 8) ** 0.5, 2 * 196 * (variance / 100) ** 0.5]
    )


def test_prompt_map_has_a_colour_per_source() -> None:
    [axes] = plotting.prompt_map(MAP).axes
    assert [cloud.get_offsets().tolist() for cloud in axes.collections] == [[[0, 1], [4, 5]], [[2, 3]]]
    assert len({tuple(cloud.get_facecolor()[0]) for cloud in axes.collections}) == 2


def test_funnel_shows_shares_of_each_source() -> None:
    [axes] = plotting.funnel(FUNNEL).axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths == {"kept": [80, 100], "empty turn": [5, 0], "tie": [15, 0]}
    assert [text.get_text() for text in axes.texts] == ["100 → 80", "50 → 50"]


def test_mixture_bars_fill_each_row() -> None:
    [axes] = plotting.mixture_composition({"mix1": {"a": 30, "b": 10}, "mix2": {"a": 5}}).axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[75, 100], [25, 0]]
    assert [text.get_text() for text in axes.texts] == ["75 %", "100 %", "25 %", ""]


def test_rewardbench_bars_leave_absent_sections_open_and_mark_the_paper() -> None:
    [axes] = plotting.rewardbench_bars(SECTIONS, paper.REWARDBENCH).axes
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx([70, 80, 83, 85, 90, 95])
    # chat-hard of both models has no rows, and reasoning is absent altogether
    assert [text.get_text() for text in axes.texts] == ["no rows"] * 4
    diamonds = [value for line in axes.lines if line.get_marker() == "D" for value in line.get_xdata()]
    assert sorted(diamonds) == sorted([99.4, 65.1, 87.8, 86.4, 98.3, 65.8, 89.7, 94.7])
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"BT", "PM", "the authors (LLaMA-3-8B)"}


def test_rewardbench_subsets_are_bars_and_leave_out_what_is_absent() -> None:
    results = {"bt": {"hep-go": _estimate(0.5), "hep-js": _estimate(0.6)}, "pm": {"hep-js": _estimate(0.7)}}
    [axes] = plotting.rewardbench_subsets(results).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50.0, 60.0, 70.0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hep-go", "hep-js"]
    centres = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert centres == pytest.approx([-0.2, 0.8, 1.2])


def test_length_bias_heatmap_is_sorted_and_leaves_out_undefined_prompts() -> None:
    figure = plotting.length_bias({"mix1": STUDY})
    [image] = [artist for axes in figure.axes for artist in axes.get_images() if isinstance(artist, AxesImage)][:1]
    grid = np.asarray(image.get_array())
    unit = math.sqrt(1.5)
    # First the prompt whose reward rises with length (its responses were given out of order), then the falling one.
    assert grid == pytest.approx(np.array([[-unit, 0, unit], [unit, 0, -unit]]))


def test_progress_starts_at_sft_and_ends_at_the_last_iteration() -> None:
    rates = [_policy(0.6), _policy(0.7)]
    figure = plotting.progress_over_iterations(_policy(0.5), rates, others={"offline DPO": _policy(0.55)})
    for axes in figure.axes:
        [line] = [line for line in axes.lines if str(line.get_label()).startswith("iterative DPO")]
        assert list(line.get_ydata()) == pytest.approx([50, 60, 70])
    assert "offline DPO" in [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    unknown = {"length_adjusted_win_rate": _estimate(0.6)}  # where the judge knows no right answers
    [axes] = plotting.progress_over_iterations(
        {"length_adjusted_win_rate": _estimate(0.5)}, [unknown], judge="endpoint"
    ).axes
    assert "judge: endpoint" in axes.get_ylabel()


def test_pair_length_change_counts_equal_lengths_apart() -> None:
    [axes] = plotting.pair_length_change({"λ = 0": [0, 0, 5, -5]}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["shorter 25 %", "equal 50 %", "longer 25 %"]


def test_loss_curve_that_rises_is_not_called_falling() -> None:
    rising = {"dpo": [{"step": 1, "loss": 0.69}, {"step": 2, "loss": 0.8}]}
    assert "does not fall" in plotting.loss_curves(rising).get_suptitle()


def test_a_long_loss_curve_is_judged_by_its_running_mean() -> None:
    zigzag = [{"step": i, "loss": 2 - i / 100 + (1 if i % 2 else -1)} for i in range(100)]  # its last loss is high
    figure = plotting.loss_curves({"x": zigzag})
    raw, mean = figure.axes[0].get_lines()
    assert len(raw.get_xdata()) == 100
    assert list(mean.get_xdata()) == list(range(3, 100))
    assert mean.get_ydata()[0] == pytest.approx(2 - 0.015)  # steps 0 to 3: 2 - (0 + 1 + 2 + 3) / 400
    assert figure.get_suptitle() == "The training loss falls"


def test_edges_hold_zero_and_cover_the_values() -> None:
    values = RNG.normal(2, 3, 500)
    edges = edges_through_zero(values)
    assert np.isclose(edges, 0).any()
    assert len(edges) < 50
    assert edges[0] <= values.min()
    assert edges[-1] >= values.max()
    assert set(np.diff(edges_through_zero(np.array([-3, 0, 4])))) == {1.0}


@pytest.mark.parametrize(("count", "text"), [(999, "999"), (9999, "9999"), (27_450, "27.4k"), (848_965, "849.0k")])
def test_short_counts(count: int, text: str) -> None:
    assert short_count(count) == text
