"""The claims: what the paper says, how it is tested here, and against which control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhflow_utils.guide.profile import ConfigError, Profile
from rlhflow_utils.guide.settings import ClaimsSettings

Ranker = Literal["bt", "bt_mix1", "bt_weak", "pm_tournament", "pm_round_robin"]
MAIN = "main"
Kind = Literal["greater", "no_worse", "near_equal", "measured"]


@dataclass(frozen=True)
class Measure:
    """One number of one arm under one seed.

    Attributes:
        value: the number.
        ci_low: of its interval over prompts; equal to `value` where there is none.
        ci_high: likewise.
        n: prompts or pairs behind it.
        units: one number per prompt in a fixed order, for paired comparisons; None where the value is no mean of such.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    units: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: `better` less `worse` in `metric`.

    Attributes:
        name: what is compared, in words.
        metric: key of both arms' measures.
        better: arm of which the claim says more.
        worse: the other arm; None: the number `against`.
        kind: `greater`: above zero; `no_worse`: above -margin; `near_equal`: within the margin on both sides;
            `measured`: shown, without a say in the verdict.
        margin: the difference that does not count.
        against: the number that stands in for `worse`.
        other_metric: metric of `worse`, where it differs.
    """

    name: str
    metric: str
    better: str
    worse: str | None
    kind: Kind = "greater"
    margin: float = 0.0
    against: float = 0.0
    other_metric: str | None = None


def share_name(share: float) -> str:
    """Folder of a share of the main mixture, and name of the RM that it trains."""
    return "share" + f"{share:g}".replace(".", "_")


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


SECTIONS = ("chat", "chat_hard", "safety", "reasoning")
JUDGES = {"bt": "BT", "pm": "PM"}
RAW = "no_penalty"  # the loop without the length penalty, as in the paper's Table 4


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        identifier: a letter, or the name of a check.
        title: a few words for tables.
        section: of the paper; `beyond` where the paper leaves it open.
        hypothesis: one sentence.
        design: what is compared, and what is held equal.
        control: what guards the comparison.
        paper: the paper's own figures, where it has them.
        arms: whose measures enter.
        parts: the comparisons, all of which must hold.
        family: of the figure that shows it.
        all_seeds: measured on all seeds, not on the fewer.
        in_variants: measured again under other annotators.
        precondition: without which the claim cannot be tested.
    """

    identifier: str
    title: str
    section: str
    hypothesis: str
    design: str
    control: str
    paper: str | None
    arms: tuple[str, ...]
    parts: tuple[Part, ...]
    family: str
    all_seeds: bool = False
    in_variants: bool = False
    precondition: Part | None = None


def build_claims(profile: Profile) -> dict[str, Claim]:
    """Every claim, by identifier, in the order of the report."""
    claims = [
        *judge_claims(profile),
        *policy_claims(profile),
        *loop_claims(profile),
        *open_questions(profile),
        *checks(profile),
    ]
    return {claim.identifier: claim for claim in claims}


def judge_claims(profile: Profile) -> list[Claim]:
    """a to d: reward models and their rivals (paper 2.3)."""
    margin, shares = claims_settings(profile).margins.accuracy, claims_settings(profile).rm_shares
    same_size = f"bt_{share_name(max(shares))}"  # mix2 is about twice as large as mix1
    equal_size = f"must show it, too: {max(shares):g} of mix2 has about as many pairs and updates as mix1."
    pm, bt = profile.preference_model.training, profile.reward_model.training
    epochs = f"epochs: PM {pm.num_train_epochs:g}, BT {bt.num_train_epochs:g}"
    same_rows = "the same benchmark rows, base and SFT model; a tie counts as wrong"
    return [
        Claim("a", "prompting < BT and PM", "2.3, Table 2",
              "In every section of RewardBench the prompted model is below the BT model and the PM.",
              f"Accuracy by section of three judges: {same_rows}.",
              "The prompted judge must itself be better than a coin, overall; whether it is in a section is shown.",
              "below both in every section",
              ("prompting", "bt", "pm"),
              tuple(Part(f"{label} − prompting, {section}", section, model, "prompting")
                    for model, label in JUDGES.items() for section in SECTIONS)
              + tuple(_above_coin("prompting", "prompting", section) for section in SECTIONS),
              "judges", all_seeds=True, in_variants=True,
              precondition=Part("prompting − coin", "overall", "prompting", None, against=0.5)),
        Claim("b", "PM > BT in reasoning, near equal elsewhere", "2.3, Table 2",
              "The PM beats the BT model in reasoning and is near it in the other sections.",
              f"Accuracy by section, trained on the same pairs ({epochs}); {same_rows}.",
              f"Near: within {margin:g} on both sides.", "reasoning 94.7 and 86.4; chat 98.3 and 99.4",
              ("bt", "pm"),
              (Part("PM − BT, reasoning", "reasoning", "pm", "bt"),
               *(Part(f"PM − BT, {section}", section, "pm", "bt", "near_equal", margin) for section in SECTIONS[:3]),
               Part("PM − BT, held-out pairs", "accuracy", "pm", "bt", "measured"),
               *(_above_coin(label, model, "reasoning") for model, label in JUDGES.items())),
              "judges", all_seeds=True, in_variants=True),
        Claim("c", "mix2 > mix1 in safety and reasoning", "2.3",
              "An RM of mix2 beats one of mix1 in safety and in reasoning.",
              f"RMs with the same settings; the mixtures differ in sources and size, as in the paper; {same_rows}.",
              f"An RM of equal size {equal_size} Chat and chat-hard are shown, too: they should not carry it.", None,
              ("bt", "bt_mix1", same_size),
              (Part("mix2 − mix1, safety", "safety", "bt", "bt_mix1"),
               Part("mix2 − mix1, reasoning", "reasoning", "bt", "bt_mix1"),
               Part("mix2 − mix1, chat", "chat", "bt", "bt_mix1", "measured"),
               Part("mix2 − mix1, chat_hard", "chat_hard", "bt", "bt_mix1", "measured"),
               *(Part(f"mix2, equal size − mix1, {section}", section, same_size, "bt_mix1")
                 for section in ("safety", "reasoning")),
               _above_coin("mix1", "bt_mix1", "reasoning"), _above_coin("mix2", "bt", "reasoning")),
              "judges", all_seeds=True, in_variants=True),
        Claim("d", "a mix1 RM leans more to length", "2.3, Fig. 5",
              "Over the answers to one prompt, length and reward correlate more for the RM of mix1 than of mix2.",
              "Mean Pearson correlation per prompt; the RMs score the same answers of the SFT model.",
              f"An RM of equal size {equal_size} Prompts with answers of one length, or of one reward, are left out.",
              "0.19 (UltraRM-13B, whose data resembles mix1) and 0.06", ("bt", "bt_mix1", same_size),
              (Part("mix1 − mix2", "length_correlation", "bt_mix1", "bt"),
               Part("mix1 − mix2, equal size", "length_correlation", "bt_mix1", same_size),
               Part("mix1 alone", "length_correlation", "bt_mix1", None, "measured"),
               Part("mix2 alone", "length_correlation", "bt", None, "measured")),
              "length", all_seeds=True, in_variants=True),
    ]  # fmt: skip


def policy_claims(profile: Profile) -> list[Claim]:
    """e to h: what the loop does to the policy (paper 4.2)."""
    last, margins = profile.iterative.iterations, claims_settings(profile).margins
    steps = [*_steps(RAW, last), *_steps(MAIN, last)]
    equal = "as many prompts and updates in both"
    return [
        Claim("e", "iterative DPO > offline DPO > SFT", "4.2, Table 4",
              "By true win rate against SFT, iterative DPO beats offline DPO, and offline DPO beats SFT.",
              f"Offline: pairs of other models (Nectar's form), from π₀; iterative: {last} iterations without the "
              f"length penalty λ, as in the paper's Table 4; best against worst, {equal}, and as many of each skill. "
              "Beside it the recipe of this guide, with λ.",
              "SFT's own sampled answers are the opponent: 0.5 by definition. The share of right answers, which length "
              "changes only where one word is asked for or an answer is cut off.",
              "37.2, 22.5 and 10.2 % (LC AlpacaEval-2)",
              (MAIN, "offline", RAW, "sft"),
              (Part("iterative − offline DPO", f"win_rate@{last}", RAW, "offline", other_metric="win_rate"),
               Part("offline DPO − SFT", "win_rate", "offline", None, against=0.5),
               _last("LC win rate, iterative − offline DPO", "lc_win_rate", last, RAW, "offline"),
               _last("right answers, iterative − offline DPO", "right", last, RAW, "offline"),
               Part("right answers, offline DPO − SFT", "right", "offline", "sft", "measured"),
               Part("iterative DPO − SFT", f"win_rate@{last}", RAW, None, "measured", against=0.5),
               _last("right answers, iterative DPO − SFT", "right", last, RAW, "sft"),
               _last("with λ: iterative − offline DPO", "win_rate", last, MAIN, "offline"),
               _last("with λ: LC win rate, iterative − offline DPO", "lc_win_rate", last, MAIN, "offline"),
               _last("with λ: right answers, iterative − offline DPO", "right", last, MAIN, "offline"),
               _last("with λ: right answers, iterative DPO − SFT", "right", last, MAIN, "sft"),
               _last("characters, iterative DPO − SFT", "length", last, RAW, "sft"),
               _last("with λ: characters, iterative DPO − SFT", "length", last, MAIN, "sft"),
               Part("characters, offline DPO − SFT", "length", "offline", "sft", "measured")),
              "policies", all_seeds=True, in_variants=True),
        Claim("f", "each iteration improves", "4.2 (implied)",
              "Each iteration raises the true win rate over the one before.",
              "Without λ, after each iteration, on the same held-out prompts.",
              "Every iteration sees prompts of its own. The recipe of this guide, with λ, is shown beside it.", None,
              (MAIN, RAW), tuple(steps), "policies", all_seeds=True),
        Claim("g", "a length penalty shortens, and raises the LC win rate", "4.2, Table 6",
              "Ranking by the penalised reward (eq. 8) gives shorter answers and a higher length-controlled win rate.",
              f"With and without λ, {last} iterations each; {equal}.",
              "The models before DPO, the prompts and the responses of iteration 1 are shared; later ones are not.",
              "length 656 to 382, LC 37.2 to 41.9 %", ("penalty", RAW),
              (Part("characters saved", f"length@{last}", "no_penalty", "penalty"),
               Part("LC win rate, with − without", f"lc_win_rate@{last}", "penalty", "no_penalty"),
               Part("win rate, with − without", f"win_rate@{last}", "penalty", "no_penalty", "measured")),
              "length", all_seeds=True),
        Claim("h", "no alignment tax", "4.2, Table 5",
              "A skill that no preference and no RL prompt touched does not suffer.",
              "Exact match of greedy answers, iterative DPO without λ, as in the paper, and SFT.",
              f"No worse: by less than {margins.exact_match:g}. In a world where SFT never learnt the skill there is "
              "nothing to lose: it counts all the same, and its own score is shown.",
              "GSM-8K 80.7 and 74.2, MMLU 65.3 and 64.7, HumanEval 64.6 and 65.2",
              ("sft", MAIN, RAW, "offline"),
              (Part("iterative DPO − SFT", "exact_match", RAW, "sft", "no_worse", margins.exact_match),
               Part("with λ: iterative DPO − SFT", "exact_match", MAIN, "sft", "measured"),
               Part("offline DPO − SFT", "exact_match", "offline", "sft", "measured"),
               Part("SFT alone", "exact_match", "sft", None, "measured")), "policies", all_seeds=True),
    ]  # fmt: skip


def loop_claims(profile: Profile) -> list[Claim]:
    """i to k: choices inside the loop (paper 3.3, Table 6)."""
    last, margin = profile.iterative.iterations, claims_settings(profile).margins.win_rate
    one, few = "win_rate@1", share_name(claims_settings(profile).weak_share)
    return [
        Claim("i", "the last iterate loses nothing against a restart", "3.3",
              "Training on from the last iterate is as good as restarting from π₀ on all pairs, at half the training.",
              f"{last} iterations with λ and the same prompts; the restart trains on 1 + … + {last} sets of pairs.",
              f"No worse: by less than {margin:g}.", "no regression, half of the training time", (MAIN, "restart"),
              (Part("last iterate − restart", f"win_rate@{last}", MAIN, "restart", "no_worse", margin),), "loop"),
        Claim("j", "best against worst is the best pair", "3.3",
              "Best against worst gives a better policy than best against random, and than two random answers.",
              "One iteration with λ from the same scored responses; equal prompts and updates. Every rule draws two "
              "answers that differ, so that the numbers of pairs are equal but for ties. Shown beside it: responses at "
              "one temperature, and half of iteration 2's responses from the checkpoint before.",
              "Two random answers, ordered by the same RM.", None,
              (MAIN, "best_vs_random", "random", "one_temperature", "two_checkpoints"),
              (Part("best-worst − best-random", one, MAIN, "best_vs_random"),
               Part("best-worst − random", one, MAIN, "random"),
               Part("two temperatures − one", one, MAIN, "one_temperature", "measured"),
               Part("one checkpoint − two", "win_rate@2", MAIN, "two_checkpoints", "measured")), "loop"),
        Claim("k", "a better RM gives a better policy", "4.2, Table 6",
              "The RM of all of mix2 gives a better policy than one of few pairs, and than that of mix1.",
              f"Few pairs: {last} iterations; mix1, with half as many pairs as mix2: one. No length penalty in any "
              "arm, since reward scales differ.",
              "Responses of iteration 1 are shared. Beside them: two random answers, ordered by the RM of all pairs, "
              "and how far the RMs themselves differ.",
              "37.2 and 20.7 % LC with UltraRM-13B",
              ("no_penalty", "weak_rm", "mix1_rm", "random_no_penalty", "bt", "bt_mix1", few),
              (Part("RM of all pairs − of few", f"win_rate@{last}", "no_penalty", "weak_rm"),
               Part("RM of mix2 − of mix1", one, "no_penalty", "mix1_rm"),
               Part("the RMs' accuracy, all pairs − few", "accuracy", "bt", few, "measured"),
               Part("the RMs' RewardBench, mix2 − mix1", "overall", "bt", "bt_mix1", "measured"),
               Part("RM of all pairs − random pairs", one, "no_penalty", "random_no_penalty", "measured"),
               Part("RM of all pairs − SFT", f"win_rate@{last}", "no_penalty", None, "measured", against=0.5),
               _last("right answers, RM of all pairs − of few", "right", last, "no_penalty", "weak_rm", last),
               _last("gold reward, RM of all pairs − of few", "gold", last, "no_penalty", "weak_rm", last)),
              "rankers"),
    ]  # fmt: skip


def open_questions(profile: Profile) -> list[Claim]:
    """l to o: beyond the paper."""
    last, margin = profile.iterative.iterations, claims_settings(profile).margins.win_rate
    one, gold = "win_rate@1", "gold_gain"
    losses = tuple(claims_settings(profile).losses)
    raw = {"no_penalty": "good RM", "weak_rm": "weak RM", "low_beta": "low β"}  # arms without λ
    return [
        Claim("l", "a weak RM and a low β gain less true reward", "beyond",
              "From SFT to the last iteration, true reward gains less with a weaker RM, and with a lower β.",
              "Change of the gold reward from SFT to the last iteration, without λ. Beside it the arm's own proxy "
              "reward, from iteration 1 on: the weak RM has not scored SFT's answers.",
              "The same arm with all pairs and the profile's β. Over-optimisation is where the proxy rises and gold "
              "falls (the curves); the iteration of the highest gold reward (0: SFT) is a noisy maximum.", None,
              ("no_penalty", "weak_rm", "low_beta", MAIN, "sft"),
              (Part("gold gain, good RM − weak RM", gold, "no_penalty", "weak_rm"),
               Part("gold gain, β − low β", gold, "no_penalty", "low_beta"),
               *(Part(f"{kind} gain, {name}", f"{kind}_gain", arm, None, "measured")
                 for arm, name in raw.items() for kind in ("proxy", "gold")),
               Part("gold gain, with λ", gold, MAIN, None, "measured"),
               *(Part(f"best iteration, {name}", "best_iteration", arm, None, "measured")
                 for arm, name in {MAIN: "with λ", **raw}.items())), "rankers"),
        Claim("m", "the PM ranks as well as the BT RM", "beyond (left open in 2.3)",
              "Pairs chosen by the PM, by tournament or round robin, give a policy no worse than those of the BT RM.",
              "One iteration from the same responses, no length penalty. Cost: forward passes for each prompt.",
              f"No worse: by less than {margin:g}; random pairs, ordered by the BT RM, beside them. Held-out accuracy "
              "tells how well either judges.", None,
              ("no_penalty", "pm_tournament", "pm_round_robin", "random_no_penalty", "pm", "bt"),
              (Part("tournament − BT", one, "pm_tournament", "no_penalty", "no_worse", margin),
               Part("round robin − BT", one, "pm_round_robin", "no_penalty", "no_worse", margin),
               Part("tournament − random", one, "pm_tournament", "random_no_penalty", "measured"),
               Part("BT − random", one, "no_penalty", "random_no_penalty", "measured"),
               Part("gold reward, tournament − BT", "gold@1", "pm_tournament", "no_penalty", "measured"),
               Part("right answers, tournament − BT", "right@1", "pm_tournament", "no_penalty", "measured"),
               Part("PM − BT, held-out pairs", "accuracy", "pm", "bt", "measured")), "rankers"),
        Claim("n", "replaying all data beats new pairs only", "beyond (Algorithm 1)",
              "Training on the pairs of all iterations so far beats training on the new ones only.",
              f"{last} iterations with λ, with equal updates.",
              "The same prompts in both, and the same new pairs at iteration 2.", None, ("replay", MAIN),
              (Part("replay − new only", f"win_rate@{last}", "replay", MAIN),), "loop"),
        Claim("o", "DPO's own loss is no worse than IPO or hinge", "beyond",
              "The sigmoid loss gives a policy no worse than the IPO and the hinge loss.",
              "One iteration with λ on the same pairs; each loss with its own β, chosen on the development seed.",
              f"No worse: by less than {margin:g}.", None, losses,
              tuple(Part(f"sigmoid − {loss}", one, "sigmoid", loss, "no_worse", margin)
                    for loss in losses if loss != "sigmoid"), "loop"),
    ]  # fmt: skip


def checks(profile: Profile) -> list[Claim]:
    """Checks of the machinery and of the world."""
    settings, last = claims_settings(profile), profile.iterative.iterations
    shares = sorted(settings.rm_shares)
    return [
        Claim("reference", "π₀ as fixed reference", "the authors, to users",
              "With π₀ as reference in every iteration the policy ends better than with the last iterate as reference.",
              f"The two references over {last} iterations with λ.",
              "The same RM, prompts and updates; iteration 1 and the pairs of iteration 2 are shared.", None,
              (MAIN, "moving_reference"),
              (Part("fixed − moving", f"win_rate@{last}", MAIN, "moving_reference"),
               Part("characters, fixed − moving", f"length@{last}", MAIN, "moving_reference", "measured")),
              "loop", all_seeds=True),
        Claim("bon", "KL of best-of-n stays under its bound", "3.3",
              "KL(best-of-n ‖ π) is at most log n − (n − 1)/n.",
              f"{settings.bon_responses} responses of π₀ to each of {settings.bon_prompts} prompts stand for π.",
              "A theorem: a violation would be a defect of ours. Equal answers make it loose.", "the bound", ("bon",),
              tuple(Part(f"bound − KL, n = {n}", f"slack_{n}", "bon", None) for n in settings.bon_n), "checks"),
        Claim("sizes", "RM accuracy grows with its pairs", "the world",
              "An RM of all pairs is more accurate on clean held-out pairs than one of the smallest share.",
              "One epoch each on nested shares of the main mixture.", "Clean labels, prompts of their own.", None,
              ("bt", *(share_name(share) for share in shares)),
              (Part(f"all pairs − {shares[0]:g} of them", "accuracy", "bt", share_name(shares[0])),), "checks"),
    ]  # fmt: skip


def _steps(arm: str, last: int) -> list[Part]:
    """Each iteration less the one before: decisive without λ, as in the paper; shown with it."""
    kind: Kind = "greater" if arm == RAW else "measured"
    words = "" if arm == RAW else "with λ: "
    first = Part(f"{words}iteration 1 − SFT", "win_rate@1", arm, None, kind, against=0.5)
    return [first, *(Part(f"{words}iteration {k} − iteration {k - 1}", f"win_rate@{k}", arm, arm, kind,
                          other_metric=f"win_rate@{k - 1}") for k in range(2, last + 1))]  # fmt: skip


def _last(name: str, metric: str, last: int, better: str, worse: str, worse_last: int | None = None) -> Part:
    """Shown: an arm after its last iteration, less another, or a policy without iterations."""
    other = metric if worse_last is None else f"{metric}@{worse_last}"
    return Part(name, f"{metric}@{last}", better, worse, "measured", other_metric=other)


def _above_coin(label: str, arm: str, section: str) -> Part:
    """Shown: whether a judge is better than a coin in a section, without which its comparisons there say little."""
    return Part(f"{label} − coin, {section}", section, arm, None, "measured", against=0.5)


def wanted_arms(claims: Sequence[Claim]) -> list[str]:
    """The arms of some claims, each once, in order."""
    return list(dict.fromkeys(arm for claim in claims for arm in claim.arms))
