"""Who prefers what: the simulated world's gold program, a reward model, or an LLM behind an endpoint.

The profile chooses (`evaluation.judge`), and metric names carry the judge's name (`gold_win_rate_vs_sft`). The first
two judges score each response alone and compare the scores; equal scores are a tie. The third reads both responses,
in both orders, since LLM judges favour a position: a win counts only where the two orders agree, else it is a tie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from rlhflow_utils.models.chat import Message

if TYPE_CHECKING:
    from rlhflow_utils.guide.settings import EvaluationSettings, WorldSettings

Conversation = Sequence[Message]
CHARACTERS_PER_TOKEN = 4  # of English text, about; an estimate before the start needs no tokenizer of the judge


class Reply(NamedTuple):
    """An endpoint's answer: its text and `answered`, or the error's text and `refused` or `timed_out`."""

    text: str
    status: str


class Cost(NamedTuple):
    """What a set of questions will take at most; `dollars` is None where no prices are given."""

    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None

    def __str__(self) -> str:
        money = "no prices given" if self.dollars is None else f"at most {self.dollars:.2f} dollars"
        return (
            f"{self.requests} requests ({self.cached} more are cached): about {self.prompt_tokens:,} prompt tokens, "
            f"at most {self.completion_tokens:,} completion tokens, {money}"
        )


class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint.

    `counts` tells what happened: `asked` (requests that came to an end), `cached`, `retried` (attempts beyond the
    first), `refused` (rejected, for example as too long) and `timed_out` (no answer in any attempt; not cached, so a
    second run asks again).

    Args:
        url: base URL, ending in ``/v1``. The key is read from the environment variable OPENAI_API_KEY.
        model: the model's name there.
        cache_file: JSON lines; None keeps replies in memory only.
        timeout: seconds for one attempt.
        max_retries: attempts after the first, on lost connections, time-outs, 429 and 5xx, with exponential back-off.
        workers: requests under way at a time.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache_file: Path | None,
        *,
        timeout: float = 60.0,
        max_retries: int = 5,
        workers: int = 8,
    ) -> None:
        from openai import DefaultHttpxClient, OpenAI

        self.counts = Counter(dict.fromkeys(("asked", "cached", "retried", "refused", "timed_out"), 0))
        # The client itself retries; the hook sees every attempt. Local servers want no key, but the client does.
        http = DefaultHttpxClient(event_hooks={"request": [lambda _: self.counts.update(attempts=1)]})
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=max_retries, http_client=http)
        self.url, self.model, self.cache_file, self.workers = url, model, cache_file, workers
        self._cache = _read_cache(cache_file)

    def cost(
        self, conversations: Sequence[Conversation], max_tokens: int, prices: Sequence[float] | None = None
    ) -> Cost:
        """What `ask` would send, before it is sent.

        Args:
            conversations: the questions.
            max_tokens: longest reply.
            prices: dollars per million prompt tokens and per million completion tokens.
        """
        keys = {self._key(each, max_tokens): each for each in conversations}
        new = [each for key, each in keys.items() if key not in self._cache]
        characters = sum(len(message["content"]) for each in new for message in each)
        prompt, completion = -(-characters // CHARACTERS_PER_TOKEN), max_tokens * len(new)
        dollars = (prompt * prices[0] + completion * prices[1]) / 1e6 if prices else None
        return Cost(len(new), len(keys) - len(new), prompt, completion, dollars)

    def ask(self, conversations: Sequence[Conversation], max_tokens: int) -> list[Reply]:
        """A reply to each conversation, at temperature 0, in order; repeated and cached ones are sent once.

        Raises:
            RuntimeError: the endpoint cannot be reached or keeps failing, or no request at all was answered in time;
                replies got so far stay in the cache.
        """
        keys = [self._key(each, max_tokens) for each in conversations]
        new = {key: each for key, each in zip(keys, conversations, strict=True) if key not in self._cache}
        self.counts["cached"] += sum(key in self._cache for key in keys)
        late: dict[str, Reply] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {pool.submit(self._request, each, max_tokens): key for key, each in new.items()}
            try:
                late = self._collect(futures)
            finally:
                for future in futures:
                    future.cancel()
        if new and len(late) == len(new):
            raise RuntimeError(f"{self}: no reply in time to any of {len(new)} requests; is the server overloaded?")
        replies = [late.get(key) or Reply(self._cache[key]["text"], self._cache[key]["status"]) for key in keys]
        self.counts["refused"] += sum(reply.status == "refused" for reply in replies)
        self.counts["timed_out"] += sum(reply.status == "timed_out" for reply in replies)
        self.counts["retried"] += self.counts.pop("attempts", 0) - len(new)
        return replies

    def __str__(self) -> str:
        return f"judge endpoint {self.url}, model {self.model!r}"

    def _key(self, conversation: Conversation, max_tokens: int) -> str:
        return hashlib.sha256(json.dumps([self.model, list(conversation), max_tokens]).encode()).hexdigest()

    def _request(self, conversation: Conversation, max_tokens: int) -> Reply:
        import openai

        messages: Any = list(conversation)
        try:
            completion = self.client.chat.completions.create(
                model=self.model, messages=messages, temperature=0.0, max_tokens=max_tokens
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Reply(str(error), "refused")
        except openai.APITimeoutError as error:
            return Reply(str(error), "timed_out")
        except openai.OpenAIError as error:
            raise RuntimeError(
                f"{self}: {type(error).__name__}: {error}; check evaluation.endpoint_url and evaluation.judge_model "
                "and run again (finished verdicts are kept)"
            ) from error
        return Reply((completion.choices[0].message.content or "") if completion.choices else "", "answered")

    def _collect(self, futures: dict[Future[Reply], str]) -> dict[str, Reply]:
        """Cache replies as they come and return those that timed out.

        After a failure nothing new is sent, but what is under way is still kept.
        """
        failure: BaseException | None = None
        late: dict[str, Reply] = {}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            error = future.exception()
            if error is None and future.result().status == "timed_out":
                self.counts["asked"] += 1
                late[futures[future]] = future.result()
            elif error is None:
                self._remember(futures[future], future.result())
            elif failure is None:
                failure = error
                for other in futures:
                    other.cancel()
        if failure is not None:
            raise failure
        return late

    def _remember(self, key: str, reply: Reply) -> None:
        self.counts["asked"] += 1
        self._cache[key] = {"key": key, **reply._asdict()}
        if self.cache_file is not None:
            self.cache_file.parent.mkdir(parents=True, exist_ok=True)
            with self.cache_file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(self._cache[key]) + "\n")


def _read_cache(path: Path | None) -> dict[str, dict[str, str]]:
    """Finished replies by key; a last line cut short by a kill is removed, its question will be asked again."""
    if path is None or not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(whole, encoding="utf-8")
        os.replace(temporary, path)
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row["key"]: row for row in rows}


Prompts = Sequence[Sequence[Message]]
MAX_TOKENS = 512  # of a verdict with its explanation


class EndpointJudge:
    """An LLM behind an OpenAI-compatible endpoint, see `ChatEndpoint`; prints what it will cost before it starts.

    `counts` adds to the endpoint's own: `unparsable` (a reply without a verdict), which like `refused` and `timed_out`
    counts as a tie, and `contradictory` (each order prefers another response: position bias).
    """

    name = "endpoint"

    def __init__(
        self,
        url: str,
        model: str,
        cache_file: Path | None,
        *,
        prices: Sequence[float] | None = None,
        timeout: float = 60.0,
        max_retries: int = 5,
        workers: int = 8,
    ) -> None:
        self.endpoint = ChatEndpoint(url, model, cache_file, timeout=timeout, max_retries=max_retries, workers=workers)
        self.prices = prices

    @property
    def counts(self) -> Counter[str]:
        return self.endpoint.counts

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """Both orders of every pair; a response wins where both orders prefer it.

        Raises:
            RuntimeError: the endpoint cannot be reached or keeps failing; verdicts got so far stay in the cache.
        """
        forward = [comparison_prompt(*row) for row in zip(prompts, responses_a, responses_b, strict=True)]
        backward = [comparison_prompt(*row) for row in zip(prompts, responses_b, responses_a, strict=True)]
        questions = [[{"role": "user", "content": text}] for text in [*forward, *backward]]
        print(f"{self.endpoint}: {self.endpoint.cost(questions, MAX_TOKENS, self.prices)}", flush=True)
        verdicts = [self._verdict(reply) for reply in self.endpoint.ask(questions, MAX_TOKENS)]
        first, second = verdicts[: len(forward)], verdicts[len(forward) :]
        self.counts["contradictory"] += sum(
            pair in {("A", "A"), ("B", "B")} for pair in zip(first, second, strict=True)
        )
        return [both_orders(a, b) for a, b in zip(first, second, strict=True)]

    def _verdict(self, reply: Reply) -> str:
        verdict = parse_verdict(reply.text) if reply.status == "answered" else reply.status
        self.counts["unparsable"] += verdict == "unparsable"
        return verdict


def comparison_prompt(prompt: Sequence[Message], first: str, second: str) -> str:
    """What an LLM judge is asked: the conversation, response A, response B, and the form of the verdict."""
    conversation = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
    return (
        "Below are a conversation and two possible replies of the assistant. Decide which reply serves the user "
        "better: correct, on the point, following the instructions, safe. Length and order are no merit.\n\n"
        f"<conversation>\n{conversation}\n</conversation>\n\n<reply_A>\n{first}\n</reply_A>\n\n"
        f"<reply_B>\n{second}\n</reply_B>\n\n"
        "Explain in a few sentences, then end with exactly one verdict: [[A]], [[B]], or [[tie]]."
    )


def parse_verdict(reply: str) -> str:
    """``A``, ``B`` or ``tie`` from the last verdict of a reply; ``unparsable`` where there is none."""
    found = re.findall(r"\[\[\s*(A|B|tie)\s*\]\]", reply, flags=re.IGNORECASE)
    if not found:
        return "unparsable"
    return "tie" if found[-1].lower() == "tie" else str(found[-1].upper())


def both_orders(forward: str, backward: str) -> float:
    """Outcome for a from the verdicts with a shown first and with a shown second; disagreement is a tie."""
    if (forward, backward) == ("A", "B"):
        return 1.0
    return 0.0 if (forward, backward) == ("B", "A") else 0.5


class Judge(Protocol):
    """Anything that can say which of two responses is better."""

    name: str  # prefix of its metrics: gold, reward_model or endpoint

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """1 where a is better, 0.5 for a tie, 0 where b is better."""
        ...


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """A judge that scores each response by itself."""

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        """One score for each response; higher is better."""
        ...


class GoldJudge:
    """The world's exact reward program: the truth, in the tiny profile."""

    name = "gold"

    def __init__(self, world_settings: WorldSettings) -> None:
        from rlhflow_utils.simulator.gold import World

        self.world = World(world_settings)

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        """Gold reward of each response to its prompt's last user turn."""
        pairs = zip(prompts, responses, strict=True)
        return [float(self.world.reward(prompt[-1]["content"], response)) for prompt, response in pairs]

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """Compare gold rewards."""
        return compare_rewards(self.rewards(prompts, responses_a), self.rewards(prompts, responses_b))


class RewardModelJudge:
    """A Bradley-Terry reward model; to be fair, one that trained no policy."""

    name = "reward_model"

    def __init__(self, model_folder: Path | str, batch_tokens: int) -> None:
        self.model_folder = str(model_folder)
        self.batch_tokens = batch_tokens

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        """The model's scalar score of each response."""
        from rlhflow_utils.models import reward_model

        conversations = list(zip(prompts, responses, strict=True))
        return [float(value) for value in reward_model.score(self.model_folder, conversations, self.batch_tokens)]

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """Compare the model's scores."""
        return compare_rewards(self.rewards(prompts, responses_a), self.rewards(prompts, responses_b))


def build_judge(
    evaluation: EvaluationSettings,
    world: WorldSettings | None,
    model_folder: Path | str | None,
    batch_tokens: int,
    cache_file: Path | None = None,
) -> Judge:
    """The judge that the profile asks for.

    Args:
        evaluation: the profile's `evaluation` section.
        world: the profile's `world` section (gold judge only).
        model_folder: the run's own judge RM; used where `evaluation.judge_model` is null.
        batch_tokens: padded tokens per scoring batch of an RM.
        cache_file: JSON lines file for an endpoint's verdicts; None keeps them in memory only.

    Raises:
        ValueError: the profile lacks what its judge needs.
    """
    if evaluation.judge == "gold":
        if world is None:
            raise ValueError("evaluation.judge: gold needs the simulated world; use reward_model or endpoint")
        return GoldJudge(world)
    if evaluation.judge == "reward_model":
        folder = evaluation.judge_model or model_folder
        if folder is None:
            raise ValueError("evaluation.judge: reward_model needs evaluation.judge_model (a folder or hub id)")
        return RewardModelJudge(folder, batch_tokens)
    if not evaluation.endpoint_url or not evaluation.judge_model:
        raise ValueError("evaluation.judge: endpoint needs evaluation.endpoint_url and evaluation.judge_model")
    return EndpointJudge(evaluation.endpoint_url, evaluation.judge_model, cache_file, prices=evaluation.endpoint_prices)


def judge_pairs(prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str], judge: Judge) -> list[float]:
    """Outcome of each comparison from a's side: 1 (win), 0.5 (tie) or 0 (loss).

    Identical responses are a tie by definition and are not put before the judge.
    """
    if not len(prompts) == len(responses_a) == len(responses_b):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses_a)} and {len(responses_b)} responses: give one of each per prompt"
        )
    rows = [row for row in range(len(prompts)) if responses_a[row] != responses_b[row]]
    judged = judge.outcomes(
        [prompts[row] for row in rows], [responses_a[row] for row in rows], [responses_b[row] for row in rows]
    )
    outcomes = [0.5] * len(prompts)
    for row, outcome in zip(rows, judged, strict=True):
        outcomes[row] = outcome
    return outcomes


def compare_rewards(rewards_a: Sequence[float], rewards_b: Sequence[float]) -> list[float]:
    """1, 0.5 or 0 for a: higher, equal or lower reward than b."""
    return [0.5 if a == b else float(a > b) for a, b in zip(rewards_a, rewards_b, strict=True)]


class CleanPairs(NamedTuple):
    """Held-out pairs with clean labels, how many were dropped and why, and how many changed sides."""

    rows: list[dict[str, Any]]
    dropped: dict[str, int]
    flipped: int


def clean_pairs(rows: Sequence[Mapping[str, Any]], judge: Judge | None) -> CleanPairs:
    """Relabel held-out pairs by the gold reward; with any other judge, or none, the pairs stay as annotated.

    Annotators err, so accuracy against their labels has a ceiling below 1. Where the truth is known, models are
    measured against it: `chosen` becomes the response with the higher gold reward (scores move with the responses),
    and pairs of equal gold reward, which have no right answer, are dropped and counted.
    """
    if judge is None or judge.name != "gold":
        return CleanPairs([dict(row) for row in rows], {}, 0)
    outcomes = judge.outcomes(
        [row["prompt"] for row in rows],
        [row["chosen"][0]["content"] for row in rows],
        [row["rejected"][0]["content"] for row in rows],
    )
    kept = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome != 0.5]
    clean = [dict(row) if outcome == 1 else _swapped(row) for row, outcome in kept]
    return CleanPairs(clean, {"gold_tie": len(rows) - len(kept)}, sum(outcome == 0 for _, outcome in kept))


def _swapped(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "chosen": row["rejected"],
        "rejected": row["chosen"],
        "chosen_score": row.get("rejected_score"),
        "rejected_score": row.get("chosen_score"),
    }
