"""Who is preferred: by a reward, or by an LLM behind an endpoint.

Rewards score each response alone; equal ones are a tie. An LLM reads both responses in both orders, since LLM judges
favour a position: a response wins only where the two orders agree, else it is a tie.

A judge is not talked round: its verdict is the last one of its reply, after any thinking block, and what a candidate
writes cannot look like one. In the judge's prompt a space parts the candidates' doubled brackets (and "rating: [" from
a number, "<" from "think"), and a last line of the prompt says so where it happened.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import yaml

from rlhflow_utils.guide.settings import EvaluationSettings
from rlhflow_utils.guide.stage import hash_value
from rlhflow_utils.models.chat import Message
from rlhflow_utils.models.forward import check_finite

Conversation = Sequence[Message]
Prompts = Sequence[Conversation]
Verdict = TypeVar("Verdict")
PROMPTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CHARACTERS_PER_TOKEN = 4  # of English text, about; an estimate before the start needs no tokenizer of the judge
MAX_TOKENS = 512  # of a verdict with its explanation
TOKENS_PER_SECOND = 20  # of a slow judge: it is waited for as long as all its tokens take, and 60 seconds more
LIKE_VERDICT = r"(?i)\[(?=\[)|\](?=\])|rating[^\w\[]*\[(?=\d)|<(?=/?think)"  # what a space is put behind


def compare_rewards(rewards_a: Sequence[float | None], rewards_b: Sequence[float | None]) -> list[float | None]:
    """1, 0.5 or 0 for a: higher, equal or lower reward than b; None where there is no reward."""
    for rewards in (rewards_a, rewards_b):
        check_finite(rewards, (f"row {place}" for place in range(len(rewards))))
    pairs = zip(rewards_a, rewards_b, strict=True)
    return [None if a is None or b is None else 0.5 if a == b else float(a > b) for a, b in pairs]


class Failure(NamedTuple):
    """Why there is no verdict."""

    status: str  # `refused` (for example as too long), `timed_out` (in every attempt), or `unparsable`
    message: str  # the endpoint's, or its reply


class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint (its base URL ends in ``/v1``): concurrent requests and a cache.

    URL, model, prices and the share of failures that is accepted are the profile's; the key is the environment variable
    OPENAI_API_KEY; `timeout` is in seconds for one attempt (None: what a slow judge needs). Only verdicts are cached,
    under the endpoint and the whole question: a second run asks again for what failed. `counts` holds `asked` (requests
    that came to an end), `cached`, and failures by status.
    `evaluation.endpoint_thinking_tokens` come on top of a verdict's; a judge that has them is asked for so many
    `max_completion_tokens`, at the server's own temperature: OpenAI's refuse `max_tokens` and temperature 0.
    """

    def __init__(
        self, evaluation: EvaluationSettings, cache_file: Path | None, timeout: float | None = None,
        max_retries: int = 5, workers: int = 8,
    ) -> None:  # fmt: skip
        from openai import OpenAI

        self.settings, self.cache_file, self.timeout, self.workers = evaluation, cache_file, timeout, workers
        key = os.environ.get("OPENAI_API_KEY", "none")  # local servers want no key, but the client does
        self.client = OpenAI(base_url=evaluation.endpoint_url, api_key=key, max_retries=max_retries)
        self.counts = Counter(dict.fromkeys(("asked", "cached", "refused", "timed_out", "unparsable"), 0))
        self._cache = _read_cache(cache_file)
        self._lock = Lock()

    def __str__(self) -> str:
        return f"judge endpoint {self.settings.endpoint_url}, model {self.settings.judge_model!r}"

    def cost(self, conversations: Prompts, max_tokens: int) -> str:
        """What `ask` would send and take at most, for people."""
        keys = {self._key(each, max_tokens): each for each in conversations}
        new = [each for key, each in keys.items() if key not in self._cache]
        characters = sum(len(message["content"]) for each in new for message in each)
        tokens = -(-characters // CHARACTERS_PER_TOKEN), max_tokens * len(new)
        prices = self.settings.endpoint_prices
        dollars = sum(n * price for n, price in zip(tokens, prices or (), strict=False)) / 1e6
        return (
            f"{len(new)} requests ({len(keys) - len(new)} more are cached): about {tokens[0]:,} prompt tokens, at most "
            f"{tokens[1]:,} completion tokens, {f'at most {dollars:.2f} dollars' if prices else 'no prices given'}"
        )

    def ask(
        self, conversations: Prompts, parse: Callable[[str], Verdict | None], max_tokens: int
    ) -> list[Verdict | None]:
        """The verdict on each conversation, in order, as `parse` reads it from a reply at temperature 0; None: failed.

        Repeated and cached conversations are sent once; the cost is printed before. RuntimeError where the endpoint
        keeps failing, or where more than `evaluation.max_failed_share` of the verdicts failed; the others are kept.
        """
        max_tokens += self.settings.endpoint_thinking_tokens
        print(f"{self}: {self.cost(conversations, max_tokens)}", flush=True)
        keys = [self._key(each, max_tokens) for each in conversations]
        for key in set(keys) & set(self._cache):
            if parse(self._cache[key]) is None:  # kept when verdicts were read by other rules
                del self._cache[key]
        missing = {key: each for key, each in zip(keys, conversations, strict=True) if key not in self._cache}
        self.counts["cached"] += sum(key in self._cache for key in keys)
        pool = ThreadPoolExecutor(self.workers)
        requests = [pool.submit(self._request, key, each, parse, max_tokens) for key, each in missing.items()]
        try:
            wait(requests, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error nothing new is sent; what is under way is still kept
        replies = [request.result() for request in requests if not request.cancelled()]  # raises the error
        self.check_failures([reply for reply in replies if reply], len(set(keys)))
        return [parse(self._cache[key]) if key in self._cache else None for key in keys]

    def check_failures(self, failures: Sequence[Failure], asked: int) -> None:
        """Count and print failures; too many are a RuntimeError: the verdicts left would be a biased sample."""
        if not failures:
            return
        statuses = Counter(failure.status for failure in failures)
        self.counts.update(statuses)
        kinds = ", ".join(f"{count} {status}" for status, count in statuses.items())
        first = " ".join(failures[0].message.split())[:200]
        message = f"{self}: {len(failures)} of {asked} verdicts failed ({kinds}; the first: {first!r})"
        if len(failures) > self.settings.max_failed_share * asked:
            raise RuntimeError(
                f"{message}; check evaluation.judge_model and run again (verdicts are kept), or raise "
                "evaluation.max_failed_share"
            )
        print(message, flush=True)

    def compare(
        self, rows: Sequence[tuple[Any, str, str]], question: Callable[[Any, str, str], Conversation],
        parse: Callable[[str], str | None], max_tokens: int,
    ) -> list[tuple[str | None, str | None]]:  # fmt: skip
        """Two verdicts for each row (prompt, a, b): with a in the first place, and with b in it."""
        asked = [question(x, *order) for x, a, b in rows for order in ((a, b), (b, a))]
        verdicts = self.ask(asked, parse, max_tokens)
        return list(zip(verdicts[::2], verdicts[1::2], strict=True))

    def _key(self, conversation: Conversation, max_tokens: int) -> str:
        return hash_value([self.settings.endpoint_url, self.settings.judge_model, list(conversation), max_tokens])

    def _request(
        self, key: str, conversation: Conversation, parse: Callable[[str], Any], max_tokens: int
    ) -> Failure | None:
        choice = self._send(conversation, max_tokens)
        with self._lock:
            self.counts["asked"] += 1
            if isinstance(choice, Failure):
                return choice
            reply = (choice.message.content or "") if choice else ""
            if parse(reply) is None:
                if choice and choice.finish_reason == "length":
                    reply = f"cut off after {max_tokens} tokens, raise evaluation.endpoint_thinking_tokens: {reply}"
                return Failure("unparsable", reply)
            self._cache[key] = reply
            if self.cache_file:
                self.cache_file.parent.mkdir(parents=True, exist_ok=True)
                with self.cache_file.open("a", encoding="utf-8") as handle:
                    handle.write(json.dumps({"key": key, "text": reply}) + "\n")
        return None

    def _send(self, conversation: Conversation, max_tokens: int) -> Any:
        """The endpoint's choice (`message`, `finish_reason`), None where it gives none, or a `Failure`."""
        import openai

        thinks = self.settings.endpoint_thinking_tokens > 0
        limits = {"max_completion_tokens": max_tokens} if thinks else {"max_tokens": max_tokens, "temperature": 0.0}
        seconds = self.timeout or 60 + max_tokens / TOKENS_PER_SECOND
        arguments: Any = {"model": self.settings.judge_model, "messages": list(conversation), **limits}
        try:
            completion = self.client.chat.completions.create(**arguments, timeout=seconds)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Failure("refused", str(error))
        except openai.APITimeoutError as error:
            return Failure("timed_out", str(error))
        except openai.OpenAIError as error:
            raise RuntimeError(
                f"{self}: {type(error).__name__}: {error}; check evaluation.endpoint_url and evaluation.judge_model "
                "and run again (verdicts are kept)"
            ) from error
        return completion.choices[0] if completion.choices else None


def _read_cache(path: Path | None) -> dict[str, str]:
    """Replies by key; a last line that a kill cut off is removed."""
    if path is None or not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    return {row["key"]: row["text"] for row in map(json.loads, whole.splitlines())}


def outcomes(
    endpoint: ChatEndpoint, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]
) -> list[float | None]:
    """1 where both orders prefer a, 0 where both prefer b, else 0.5; None where an order's verdict failed.

    Equal responses are a tie that nobody is asked about. The endpoint counts as `contradictory` where each order
    prefers another response (position bias).
    """
    rows = list(zip(prompts, responses_a, responses_b, strict=True))
    different = [row for row in rows if row[1] != row[2]]
    orders = endpoint.compare(different, comparison_prompt, parse_verdict, MAX_TOKENS)
    endpoint.counts["contradictory"] += sum(pair in {("A", "A"), ("B", "B")} for pair in orders)
    wins: dict[Any, float] = {("A", "B"): 1.0, ("B", "A"): 0.0}
    judged = iter(None if None in pair else wins.get(pair, 0.5) for pair in orders)
    return [0.5 if a == b else next(judged) for _, a, b in rows]


def comparison_prompt(prompt: Conversation, first: str, second: str) -> list[Message]:
    """What an LLM judge is asked: the conversation, response A, response B, and the form of the verdict."""
    conversation = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
    content = fill(PROMPTS["comparison"], {"first": first, "second": second}, conversation=conversation)
    return [{"role": "user", "content": content}]


def fill(template: str, candidates: Mapping[str, str], **places: str) -> str:
    """A judge's prompt. What could look like a verdict in a candidate's text is parted by a space, which is said."""
    parted = {name: re.sub(LIKE_VERDICT, r"\g<0> ", text) for name, text in candidates.items()}
    content = template.format(**places, **parted)
    return content if parted == candidates else f"{content}\n\n{PROMPTS['parted'].strip()}"


def last_verdict(reply: str, pattern: str) -> str | None:
    """What the groups of `pattern` hold where it last matches a reply, behind its thinking block; None: nowhere."""
    parts = re.split(r"</think(?:ing)?>", reply)
    if len(parts) == 1 and re.match(r"\s*<think(?:ing)?>", reply):  # the block was cut off
        return None
    found = re.findall(pattern, parts[-1])
    return "".join(found[-1]) if found else None


def parse_verdict(reply: str) -> str | None:
    """``A``, ``B`` or ``tie`` from the last verdict of a reply; None where there is none."""
    found = last_verdict(reply, r"(?i)\[\[[\s*]*(A|B|tie)[\s*]*\]\]")
    return {"a": "A", "b": "B", "tie": "tie"}[found.lower()] if found else None
