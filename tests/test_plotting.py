"""Figures: the right marks for the right numbers, titles that say what is seen, and files that render."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables as paper
from rlhflow_utils.guide.figures.style import BLUE, METHOD_COLOURS, ORANGE, colour_of, edges_through_zero, short_count

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
    "mean": {"value": 0.3, "ci_low": 0.1, "ci_high": 0.5, "n": 2},
}
TABLE = {
    "predicted": [0.2, 0.8], "observed": [0.25, 0.75], "ci_low": [0.1, 0.6], "ci_high": [0.4, 0.9], "count": [10, 30],
}  # fmt: skip
POLICIES = {
    "win rate (%)": {"SFT": _estimate(0.5), "iterative": _estimate(0.7)},
    "gold reward": {"SFT": _estimate(-0.8), "iterative": None},
}
LOSSES = {"mix1": [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}, {"train_runtime": 3.0}]}
MAP = [{"source": "a", "x": 0.0, "y": 1.0}, {"source": "b", "x": 2.0, "y": 3.0}, {"source": "a", "x": 0.0, "y": 2.0}]
POINTS = {"SFT": {"accuracy": _estimate(0.5), "mean_length": _estimate(60, 2)}}

# Longer, equally long and shorter chosen answers: 70 of 100 and 10 ties, 4 of 8, 80 of 400.
AGREEMENT = {
    "shp": {"chosen": [2.0] * 65 + [1.0] * 10 + [0.0] * 25, "rejected": [1.0] * 100},
    "a": {"chosen": [2.0] * 4 + [0.0] * 4, "rejected": [1.0] * 8},
    "b": {"chosen": [2.0] * 80 + [0.0] * 320, "rejected": [1.0] * 400},
}
FIGURES: dict[str, tuple[Callable[[], Figure], str]] = {
    "funnel": (
        lambda: plotting.funnel(FUNNEL),
        "Filtering drops 13.3 % of 150 pairs, and of one source at most 20.0 % (hh_rlhf)",
    ),
    "mixture_composition": (
        lambda: plotting.mixture_composition({"mix1": {"a": 30, "b": 10}, "mix2": {"a": 5}}),
        "1 of 2 sources are in every mixture",
    ),
    "length_agreement": (
        lambda: plotting.length_agreement(AGREEMENT, {"mix1": AGREEMENT["shp"], "mix2": AGREEMENT["b"]}),
        "The chosen answer is the longer one in 70 % of mix1 and 20 % of mix2",
    ),
    "prompt_map": (
        lambda: plotting.prompt_map(MAP),
        "Nearest prompts of the same source: most in a (100 %), fewest in b (0 %)",
    ),
    "loss_curves": (lambda: plotting.loss_curves(LOSSES), "The training loss falls; at the end 0.50 (mix1) nats"),
    "reward_histogram": (
        lambda: plotting.reward_histogram([2.0, 3.0, 1.0, 4.0], [1.0, 1.0, 2.0, 0.0], ["chat_hard"] * 2 + ["math"] * 2),
        "higher in 75.0 % of 4 pairs, least often in math (50.0 %)",
    ),
    "calibration_curves": (
        lambda: plotting.calibration_curves({"BT": TABLE, "PM": {**TABLE, "observed": [0.1, 0.9]}}),
        "On average BT is over-confident by 5.0; PM is under-confident by 10.0 points",
    ),
    "rewardbench_sections": (
        lambda: plotting.rewardbench_sections(SECTIONS, paper.REWARDBENCH),
        "RewardBench overall: BT 85 %; PM 83 %. At chance: no judge in any section",
    ),
    "rewardbench_subsets": (
        lambda: plotting.rewardbench_subsets({"bt": {"hep-go": _estimate(0.5), "hep-js": _estimate(0.6)}}),
        "Worse than a coin flip: no judge in any subset",
    ),
    "length_bias": (
        lambda: plotting.length_bias({"mix1": STUDY, "mix2": {**STUDY, "mean": _estimate(0.02)}}),
        "With length the reward rises for mix1 (r +0.300), has no trend for mix2 (r +0.020)",
    ),
    "reward_gaps": (
        lambda: plotting.reward_gaps({"best_vs_worst": [1.0, 2.0, 3.0], "random": [-1.0]}),
        "Median gap in raw reward: best vs worst 2.00, random −1.00",
    ),
    "pair_length_change": (
        lambda: plotting.pair_length_change({"λ = 0": [0, 5, 5, -5]}),
        "λ = 0: the chosen answer is shorter in 25 % of the pairs, longer in 50 %",
    ),
    "response_lengths": (
        lambda: plotting.response_lengths([[3, 5], [7, 9]], [[0.7, 1.0], [0.7, 1.0]]),
        "Median length in characters: 5 at T = 0.7, 7 at T = 1 (4 responses)",
    ),
    "progress_over_iterations": (
        lambda: plotting.progress_over_iterations(_policy(0.5), [_policy(0.6), _policy(0.7)], caption="c"),
        "Right answers: 50 % after SFT, 70 % after iteration 2 (one seed, 600 prompts)",
    ),
    "proxy_against_gold": (
        lambda: plotting.proxy_against_gold(
            {"no λ": [{"kl": kl, "proxy": _estimate(kl), "gold": _estimate(0.5 - kl / 10)} for kl in (0.0, 0.2, 1.0)]}
        ),
        "from iteration 1 to 2, the reward of the RM rises by 0.80 and the reward of the gold judge falls by 0.08",
    ),
    "policy_bars": (lambda: plotting.policy_bars(POLICIES), "Highest in win rate (%): iterative"),
    "quality_against_length": (
        lambda: plotting.quality_against_length(POINTS),
        "SFT: highest right answers, 50.0 %, with 60 characters per answer",
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
    handles, labels = axes.get_legend_handles_labels()
    assert [handle.get_color() for handle in handles] == [METHOD_COLOURS[name] for name in labels] == [ORANGE, BLUE]
    assert len({handle.get_marker() for handle in handles}) == 2, "and a marker each, for print in grey"
    figure = plotting.length_bias({"mix1": STUDY, "mix2": STUDY})
    shown = [axes.patches[0].get_facecolor()[:3] for axes in figure.axes[:2]]
    assert shown == [to_rgba(METHOD_COLOURS[name])[:3] for name in ("mix1", "mix2")]
    assert colour_of("a name of its own", 9) == colour_of("another", 1)


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_renders_with_title_and_labels(name: str) -> None:
    draw, title = FIGURES[name]
    figure = draw()
    assert title in repr(figure), "a notebook keeps the title as the text form of the picture"
    for axes in figure.axes:
        assert axes.has_data()
    assert all(axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left") for axes in figure.axes)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    assert png.getvalue().startswith(b"\x89PNG")
    assert 5_000 < len(png.getvalue()) < 120_000  # not blank, and small enough for a committed notebook
    assert figure.get_figwidth() == pytest.approx(8.0)
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    for part in (figure._suptitle, *legends):
        box = part.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, "nothing is cut at an edge"
    assert not plt.get_fignums()  # closed: a notebook shows it once


def test_length_agreement_counts_a_tie_as_one_half() -> None:
    """The highest source comes first, the mixtures last."""
    [axes] = plotting.length_agreement(AGREEMENT, {"mix1": AGREEMENT["b"]}).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["shp (100 pairs)", "a (8 pairs)", "b (400 pairs)", "all of mix1 (400 pairs)"]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([70, 50, 20, 20])
    [whiskers] = [c for c in axes.collections if hasattr(c, "get_segments")]
    variance = (65 * 0.3**2 + 10 * 0.2**2 + 25 * 0.7**2) / 100  # of 1, ½ and 0 around 0.7
    halves = [196 * (variance / 100) ** 0.5, 196 * (0.25 / 8) ** 0.5, 196 * (0.2 * 0.8 / 400) ** 0.5]
    assert [segment[1][0] - segment[0][0] for segment in whiskers.get_segments()] == pytest.approx(
        [2 * half for half in (*halves, halves[2])]
    )


def test_prompt_map_has_a_panel_per_source() -> None:
    """The nearest prompt of each of the two of `a` is of `a`; that of the one of `b` is not of `b`."""
    first, second = plotting.prompt_map(MAP).axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["a: 100 %", "b: 0 %"]
    others, own = first.lines
    assert own.get_xydata().tolist() == [[0, 1], [0, 2]]
    assert others.get_xydata().tolist() == [[2, 3]]


def test_funnel_shows_the_share_of_each_reason() -> None:
    [axes] = plotting.funnel(FUNNEL).axes
    assert [text.get_text() for text in axes.texts] == ["5.0", "15.0", "", ""]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["empty turn", "tie"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hh_rlhf: 20.0 % of 100", "shp: 0.0 % of 50"]
    clean = plotting.funnel({"shp": FUNNEL["shp"]})
    clean.savefig(io.BytesIO())
    assert "drops 0.0 % of 50 pairs" in repr(clean)


def test_mixtures_have_a_panel_each() -> None:
    first, second = plotting.mixture_composition({"mix1": {"a": 30, "b": 10}, "mix2": {"a": 5}}).axes
    assert [bar.get_width() for axes in (first, second) for bar in axes.patches] == [75, 25, 100, 0]
    assert [text.get_text() for text in second.texts] == ["100 %", "–"]
    assert first.get_title(loc="left") == "mix1: 40 pairs, 2 sources"


def test_rewards_are_split_by_skill() -> None:
    """Rows without a skill are one group, and the title then names none."""
    figure = plotting.reward_histogram([2.0, 3.0, 1.0], [1.0, 1.0, 2.0], ["safety", "chat_hard", "safety"])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["", "chosen higher in 100.0 %", "", "chosen higher in 50.0 %"]
    assert figure.axes[0].get_ylabel() == "Chat-Hard\n1 pairs"
    real = plotting.reward_histogram([2.0, 3.0], [1.0, 1.0], [None, None])
    assert len(real.axes) == 2
    assert repr(real) == "The chosen answer scores higher in 100.0 % of 2 pairs"


def _places(axes: Axes, marker: str) -> list[list[float]]:
    return sorted(
        line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == marker and len(line.get_xdata())
    )


def test_rewardbench_leaves_absent_sections_open_and_marks_the_paper() -> None:
    [axes] = plotting.rewardbench_sections(SECTIONS, paper.REWARDBENCH).axes
    assert [place for place, _ in _places(axes, "o")] == pytest.approx([80, 85, 90])
    assert [place for place, _ in _places(axes, "s")] == pytest.approx([70, 83, 95])
    # chat-hard has no rows of any model, and reasoning is absent altogether
    assert [text.get_text() for text in axes.texts] == ["no rows"] * 2
    stars = [place for place, _ in _places(axes, "*")]
    assert stars == sorted([99.4, 65.1, 87.8, 86.4, 98.3, 65.8, 89.7, 94.7])
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"BT", "PM", "the authors (LLaMA-3-8B)"}


def test_rewardbench_subsets_say_their_pairs_and_leave_out_what_is_absent() -> None:
    results = {"bt": {"hep-go": _estimate(0.5), "hep-js": _estimate(0.6)}, "pm": {"hep-js": _estimate(0.7)}}
    [axes] = plotting.rewardbench_subsets(results).axes
    assert _places(axes, "o") == [pytest.approx([50, -0.2]), pytest.approx([60, 0.8])]
    assert _places(axes, "s") == [pytest.approx([70, 1.2])]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hep-go (600)", "hep-js (600)"]


def test_titles_about_judges_name_who_is_at_chance_and_who_is_worse() -> None:
    chance = {"bt_mix1": {"chat": _estimate(0.48), "safety": _estimate(0.52), "overall": None}}
    assert repr(plotting.rewardbench_sections(chance)).endswith("At chance: BT, mix1 in Chat, Safety")
    worse = {"prompting": {"hep-go": _estimate(0.2), "hep-js": _estimate(0.48)}, "pm": {"hep-js": _estimate(0.4)}}
    assert repr(plotting.rewardbench_subsets(worse)) == "Worse than a coin flip: prompting in hep-go; PM in hep-js"


def test_length_bias_heatmap_is_sorted_and_leaves_out_undefined_prompts() -> None:
    figure = plotting.length_bias({"mix1": {**STUDY, "mean": _estimate(-0.5)}})
    assert repr(figure) == "With length the reward falls for mix1 (r −0.500)"
    [image] = [artist for axes in figure.axes for artist in axes.get_images() if isinstance(artist, AxesImage)][:1]
    grid = np.asarray(image.get_array())
    unit = math.sqrt(1.5)
    # First the prompt whose reward rises with length (its responses were given out of order), then the falling one.
    assert grid == pytest.approx(np.array([[-unit, 0, unit], [unit, 0, -unit]]))


def test_progress_starts_at_sft_and_ends_at_the_last_iteration() -> None:
    rates = [_policy(0.6), _policy(0.7)]
    figure = plotting.progress_over_iterations(_policy(0.5), rates, others={"offline DPO": _policy(0.55)})
    for axes in figure.axes:
        assert list(axes.lines[0].get_ydata()) == pytest.approx([50, 60, 70])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["SFT", "1", "2", "offline\nDPO"]
        assert [text.get_text() for text in axes.texts] == ["50.0", "60.0", "70.0", "55.0"]
    unknown = {"length_adjusted_win_rate": _estimate(0.6)}  # where the judge knows no right answers
    figure = plotting.progress_over_iterations(
        {"length_adjusted_win_rate": _estimate(0.5)}, [unknown], "endpoint", {}, "c"
    )
    assert "judge: endpoint" in figure.axes[0].get_ylabel()
    assert figure.get_supxlabel() == "c"


def test_proxy_of_one_iteration_starts_at_sft() -> None:
    points = [{"kl": kl, "proxy": _estimate(-kl), "gold": _estimate(kl)} for kl in (0.0, 0.5)]
    title = repr(plotting.proxy_against_gold({"λ": points}))
    assert (
        title
        == "Λ: from iteration 0 to 1, the reward of the RM falls by 0.50 and the reward of the gold judge rises by 0.50"
    )


def test_policy_bars_show_shares_in_per_cent_and_a_minus() -> None:
    rate, reward = plotting.policy_bars(POLICIES).axes
    assert [text.get_text() for text in rate.texts] == ["50.0", "70.0"]
    assert [text.get_text() for text in reward.texts] == ["−0.800", " not measured"]


def test_pair_length_change_counts_equal_lengths_apart() -> None:
    [axes] = plotting.pair_length_change({"λ = 0": [0, 0, 5, -5]}).axes
    assert axes.get_title(loc="left") == "λ = 0: shorter 25 %, equal 50 %, longer 25 %; mean +0.000 (dashed)"


def test_lengths_are_drawn_as_cumulative_shares() -> None:
    [axes] = plotting.response_lengths([[9, 3], [5, 7]], [[1.0, 1.0], [1.0, 1.0]]).axes
    assert axes.lines[0].get_xydata().tolist() == [[3, 25], [5, 50], [7, 75], [9, 100]]


def test_loss_curve_that_rises_is_not_called_falling() -> None:
    rising = {"dpo": [{"step": 1, "loss": 0.69}, {"step": 2, "loss": 0.8}]}
    assert "does not fall; at the end 0.80 (dpo)" in repr(plotting.loss_curves(rising))
    assert "falls in 1 of 2 runs" in repr(plotting.loss_curves({**LOSSES, **rising}))


def test_a_long_loss_curve_is_judged_by_its_running_median() -> None:
    zigzag = [{"step": i, "loss": 2 - i / 50 + (1 if i % 2 else -1)} for i in range(100)]  # its last loss is high
    figure = plotting.loss_curves({"x": zigzag})
    raw, median = figure.axes[0].get_lines()
    assert len(raw.get_xdata()) == 100
    assert list(median.get_xdata()) == list(range(4, 97))  # a centred window of 8 does not lag
    assert median.get_ydata()[0] == pytest.approx(1.93)  # steps 0 to 7: between 1 (step 0) and 2.86 (step 7)
    assert repr(figure) == "The training loss falls; at the end 0.09 (x) nats"


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
