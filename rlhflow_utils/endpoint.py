"""Asking an OpenAI-compatible chat-completions endpoint many questions: at once, patiently, and each only once.

Every finished reply goes into a cache file at once, so a run that died goes on where it was and a second run asks
nothing twice. What an endpoint refused, or never answered, is a reply with that status and a count, never a gap.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rlhflow_utils.chat import Message

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
