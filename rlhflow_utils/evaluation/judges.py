"""Who prefers what: the simulated world's gold program, a reward model, or an LLM behind an endpoint.

The profile chooses (`evaluation.judge`), and metric names carry the judge's name (`gold_win_rate_vs_sft`). The first
two judges score each response alone and compare the scores; equal ones are a tie. The third reads both responses in
both orders, since LLM judges favour a position: a response wins only where the two orders agree, else it is a tie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast

from rlhflow_utils.guide.settings import EvaluationSettings, WorldSettings
from rlhflow_utils.models.chat import Message
from rlhflow_utils.models.forward import Model
from rlhflow_utils.models.reward_model import score
from rlhflow_utils.simulator.gold import World

Conversation = Sequence[Message]
Prompts = Sequence[Conversation]
CHARACTERS_PER_TOKEN = 4  # of English text, about; an estimate before the start needs no tokenizer of the judge
MAX_TOKENS = 512  # of a verdict with its explanation


def build_judge(
    evaluation: EvaluationSettings, world: WorldSettings | None, judge_model: Model | None, batch_tokens: int,
    cache_file: Path | None = None,
) -> Judge:  # fmt: skip
    """The judge that the profile asks for; the profile's own check says what it lacks.

    `judge_model` is the run's own judge RM, used where `evaluation.judge_model` is null; `batch_tokens` are for its
    scoring. An endpoint's replies are kept in `cache_file` (JSON lines; None: in memory only).
    """
    if evaluation.judge == "gold":
        assert world is not None
        return GoldJudge(world)
    model = evaluation.judge_model or judge_model
    assert model is not None
    if evaluation.judge == "reward_model":
        return RewardModelJudge(model, batch_tokens)
    assert evaluation.endpoint_url is not None
    return EndpointJudge(ChatEndpoint(evaluation.endpoint_url, str(model), cache_file, evaluation.endpoint_prices))


class GoldJudge:
    """The world's exact reward program: the truth, in the tiny profile."""

    name = "gold"

    def __init__(self, world_settings: WorldSettings) -> None:
        self.world = World(world_settings)

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        pairs = zip(prompts, responses, strict=True)
        return [float(self.world.reward(prompt[-1]["content"], response)) for prompt, response in pairs]


class RewardModelJudge:
    """A Bradley-Terry reward model; to be fair, one that trained no policy."""

    name = "reward_model"

    def __init__(self, model: Model, batch_tokens: int) -> None:
        self.model, self.batch_tokens = model, batch_tokens

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        return score(self.model, list(zip(prompts, responses, strict=True)), self.batch_tokens)


def compare_rewards(rewards_a: Sequence[float], rewards_b: Sequence[float]) -> list[float]:
    """1, 0.5 or 0 for a: higher, equal or lower reward than b."""
    return [0.5 if a == b else float(a > b) for a, b in zip(rewards_a, rewards_b, strict=True)]


class Reply(NamedTuple):
    text: str  # or the error's
    status: str  # `answered`, `refused` or `timed_out`


class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint (its base URL ends in ``/v1``): concurrent requests and a cache.

    The key is read from the environment variable OPENAI_API_KEY; `timeout` is in seconds for one attempt; `prices` are
    dollars per million prompt and completion tokens. `counts` holds `asked` (requests that came to an end), `cached`,
    `refused` (rejected, for example as too long) and `timed_out` (no answer in any attempt; not cached, so a second run
    asks again).
    """

    def __init__(
        self, url: str, model: str, cache_file: Path | None, prices: Sequence[float] | None = None,
        timeout: float = 60.0, max_retries: int = 5, workers: int = 8,
    ) -> None:  # fmt: skip
        from openai import OpenAI

        key = os.environ.get("OPENAI_API_KEY", "none")  # local servers want no key, but the client does
        self.client = OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=max_retries)
        self.url, self.model, self.cache_file, self.prices, self.workers = url, model, cache_file, prices, workers
        self.counts = Counter(dict.fromkeys(("asked", "cached", "refused", "timed_out"), 0))
        self._cache = _read_cache(cache_file)
        self._lock = Lock()
        if cache_file:
            cache_file.parent.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return f"judge endpoint {self.url}, model {self.model!r}"

    def cost(self, conversations: Prompts, max_tokens: int) -> str:
        """What `ask` would send and take at most, for people."""
        keys = {self._key(each, max_tokens): each for each in conversations}
        new = [each for key, each in keys.items() if key not in self._cache]
        characters = sum(len(message["content"]) for each in new for message in each)
        tokens = -(-characters // CHARACTERS_PER_TOKEN), max_tokens * len(new)
        dollars = sum(n * price for n, price in zip(tokens, self.prices or (), strict=False)) / 1e6
        return (
            f"{len(new)} requests ({len(keys) - len(new)} more are cached): about {tokens[0]:,} prompt tokens, at most "
            f"{tokens[1]:,} completion tokens, {f'at most {dollars:.2f} dollars' if self.prices else 'no prices given'}"
        )

    def ask(self, conversations: Prompts, max_tokens: int) -> list[Reply]:
        """A reply to each conversation, at temperature 0, in order; repeated and cached ones are sent once.

        Prints the cost before it starts. An endpoint that keeps failing or answers nothing in time is a RuntimeError;
        replies so far stay in the cache.
        """
        print(f"{self}: {self.cost(conversations, max_tokens)}", flush=True)
        keys = [self._key(each, max_tokens) for each in conversations]
        missing = {key: each for key, each in zip(keys, conversations, strict=True) if key not in self._cache}
        self.counts["cached"] += sum(key in self._cache for key in keys)
        pool = ThreadPoolExecutor(self.workers)
        requests = [pool.submit(self._request, key, each, max_tokens) for key, each in missing.items()]
        try:
            done, _ = wait(requests, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure nothing new is sent; what is under way is still kept
        new = dict(request.result() for request in done)
        if new and all(reply.status == "timed_out" for reply in new.values()):
            raise RuntimeError(f"{self}: no reply in time to any of {len(new)} requests; is the server overloaded?")
        replies = [new[key] if key in new else self._cache[key] for key in keys]
        for status in ("refused", "timed_out"):
            self.counts[status] += sum(reply.status == status for reply in replies)
        return replies

    def compare(
        self, rows: Sequence[tuple[Any, str, str]], question: Callable[[Any, str, str], Conversation],
        parse: Callable[[str], str], max_tokens: int,
    ) -> list[tuple[str, str]]:  # fmt: skip
        """Two verdicts (or statuses) for each row (prompt, a, b): with a in the first place, and with b in it."""
        asked = [question(x, *order) for x, a, b in rows for order in ((a, b), (b, a))]
        replies = self.ask(asked, max_tokens)
        verdicts = [parse(reply.text) if reply.status == "answered" else reply.status for reply in replies]
        return list(zip(verdicts[::2], verdicts[1::2], strict=True))

    def _key(self, conversation: Conversation, max_tokens: int) -> str:
        return hashlib.sha256(json.dumps([self.model, list(conversation), max_tokens]).encode()).hexdigest()

    def _request(self, key: str, conversation: Conversation, max_tokens: int) -> tuple[str, Reply]:
        reply = self._send(conversation, max_tokens)
        with self._lock:
            self.counts["asked"] += 1
            if reply.status != "timed_out":
                self._cache[key] = reply
                if self.cache_file:
                    with self.cache_file.open("a", encoding="utf-8") as handle:
                        handle.write(json.dumps({"key": key, **reply._asdict()}) + "\n")
        return key, reply

    def _send(self, conversation: Conversation, max_tokens: int) -> Reply:
        import openai

        create, messages = self.client.chat.completions.create, cast("Any", list(conversation))
        try:
            completion = create(model=self.model, messages=messages, temperature=0.0, max_tokens=max_tokens)
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


def _read_cache(path: Path | None) -> dict[str, Reply]:
    """Finished replies by key; a last line that a kill cut off is removed."""
    if path is None or not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row["key"]: Reply(row["text"], row["status"]) for row in rows}


class EndpointJudge:
    """An LLM that compares two responses.

    Its `counts` also hold `unparsable` (a reply without a verdict: a tie, as are `refused` and `timed_out`) and
    `contradictory` (each order prefers another response: position bias).
    """

    name = "endpoint"

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self.endpoint, self.counts = endpoint, endpoint.counts

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """1 where both orders prefer a, 0 where both prefer b, else 0.5. Equal responses are not sent."""
        rows = list(zip(prompts, responses_a, responses_b, strict=True))
        different = [row for row in rows if row[1] != row[2]]
        orders = self.endpoint.compare(different, comparison_prompt, parse_verdict, MAX_TOKENS)
        self.counts["unparsable"] += sum(pair.count("unparsable") for pair in orders)
        self.counts["contradictory"] += sum(pair in {("A", "A"), ("B", "B")} for pair in orders)
        judged = iter({("A", "B"): 1.0, ("B", "A"): 0.0}.get(pair, 0.5) for pair in orders)
        return [0.5 if a == b else next(judged) for _, a, b in rows]


def comparison_prompt(prompt: Conversation, first: str, second: str) -> list[Message]:
    """What an LLM judge is asked: the conversation, response A, response B, and the form of the verdict."""
    conversation = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
    content = (
        "Below are a conversation and two possible replies of the assistant. Decide which reply serves the user "
        "better: correct, on the point, following the instructions, safe. Length and order are no merit.\n\n"
        f"<conversation>\n{conversation}\n</conversation>\n\n<reply_A>\n{first}\n</reply_A>\n\n"
        f"<reply_B>\n{second}\n</reply_B>\n\n"
        "Explain in a few sentences, then end with exactly one verdict: [[A]], [[B]], or [[tie]]."
    )
    return [{"role": "user", "content": content}]


def parse_verdict(reply: str) -> str:
    """``A``, ``B`` or ``tie`` from the last verdict of a reply; ``unparsable`` where there is none."""
    found = re.findall(r"\[\[\s*(A|B|tie)\s*\]\]", reply, flags=re.IGNORECASE)
    return {"a": "A", "b": "B", "tie": "tie"}[found[-1].lower()] if found else "unparsable"


Judge = GoldJudge | RewardModelJudge | EndpointJudge
