"""The arms: policies that differ from the main recipe in one thing each, as overrides of the profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhflow_utils.config import ConfigError, Profile
from rlhflow_utils.settings import ClaimsSettings

Ranker = Literal["bt", "bt_mix1", "bt_weak", "pm_tournament", "pm_round_robin"]
MAIN = "main"


@dataclass(frozen=True)
class Arm:
    """One run of the loop.

    Attributes:
        name: enters the stage folders' names.
        what: it in words.
        iterations: how many it runs.
        overrides: dotted profile keys -> values.
        first: its first own iteration; those before are the main recipe's, and so are this one's pairs.
        ranker: who ranks the responses.
        restart: every iteration trains from the SFT model instead of the last iterate.
        two_checkpoints: half of the responses come from the iterate before (the enhancer of Algorithm 1).
        evaluate_all: every iteration is evaluated, not only the last.
        exact_match: the last policy answers the untouched skill, too.
    """

    name: str
    what: str
    iterations: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    first: int = 1
    ranker: Ranker = "bt"
    restart: bool = False
    two_checkpoints: bool = False
    evaluate_all: bool = False
    exact_match: bool = False

    def evaluated(self) -> list[int]:
        """The iterations after which the policy answers the held-out prompts."""
        return list(range(1, self.iterations + 1)) if self.evaluate_all else [self.iterations]


def claims_settings(profile: Profile) -> ClaimsSettings:
    """The profile's `claims` section.

    Raises:
        ConfigError: it has none, or too few iterations for the arms.
    """
    if profile.claims is None:
        raise ConfigError(
            f"profile {profile.name} has no section `claims`: they are measured in a simulated world (tiny)"
        )
    if profile.iterative.iterations < 2:
        raise ConfigError("the claims compare iterations: set iterative.iterations to 2 or more")
    return profile.claims


def build_arms(profile: Profile) -> dict[str, Arm]:
    """Every arm of the claims, by name.

    Arms that rank with another reward model or the PM do so without the length penalty, and are compared with the arm
    `no_penalty`: the penalty is in units of the main RM's reward.
    """
    settings, last = claims_settings(profile), profile.iterative.iterations
    penalty = "pair_building.length_penalty"
    arms = [
        Arm(MAIN, "the profile's recipe", last, evaluate_all=True, exact_match=True),
        Arm("penalty", "length penalty (eq. 8)", last, {penalty: settings.length_penalty}),
        Arm("no_penalty", "raw reward", last, {penalty: 0.0}, evaluate_all=True, exact_match=True),
        Arm("moving_reference", "the last iterate as reference", last, {"dpo.reference": "previous_iterate"}, first=2),
        Arm("restart", "each iteration from π₀, on all pairs", last, {"iterative.replay": True}, first=2, restart=True),
        Arm("replay", "all pairs so far, equal updates", last, {"iterative.replay": True}, first=2),
        Arm("best_vs_random", "best against a random other answer", 1, {"pair_building.strategy": "best_vs_random"}),
        Arm("random", "two answers at random (control)", 1, {"pair_building.strategy": "random"}),
        Arm("random_no_penalty", "two answers at random, raw reward (control)", 1,
            {"pair_building.strategy": "random", penalty: 0.0}),
        Arm("one_temperature", "all responses at one temperature", 1,
            {"generation.temperatures": [settings.single_temperature]}),
        Arm("two_checkpoints", "half of the responses from the iterate before", 2, first=2, two_checkpoints=True),
        Arm("mix1_rm", "ranked by the RM of mix1", 1, {penalty: 0.0}, ranker="bt_mix1"),
        Arm("weak_rm", "ranked by an RM of few pairs", last, {penalty: 0.0}, ranker="bt_weak", evaluate_all=True),
        Arm("low_beta", "weaker pull to π₀", last, {penalty: 0.0, "dpo.beta": settings.low_beta}, evaluate_all=True),
        Arm("pm_tournament", "best and worst by knock-out of the PM", 1, {penalty: 0.0}, ranker="pm_tournament"),
        Arm("pm_round_robin", "ranked by the PM's mean probability", 1, {penalty: 0.0}, ranker="pm_round_robin"),
    ]  # fmt: skip
    for loss, choice in settings.losses.items():
        arms.append(loss_arm(loss, choice.beta, loss))
    return {arm.name: arm for arm in arms}


def loss_arm(loss: str, beta: float, name: str) -> Arm:
    """One iteration with another DPO loss."""
    return Arm(name, f"loss {loss}, β = {beta:g}", 1, {"dpo.loss_type": loss, "dpo.beta": beta})


def same_as_main(arm: Arm, profile: Profile) -> bool:
    """Whether an arm changes nothing, so that the main recipe's stages are its own."""
    if arm.ranker != "bt" or arm.restart or arm.two_checkpoints:
        return False
    return all(_value(profile, key) == value for key, value in arm.overrides.items())


def _value(profile: Profile, key: str) -> Any:
    value: Any = profile
    for part in key.split("."):
        value = getattr(value, part)
    return value
