"""LLM-as-a-judge over any OpenAI-compatible chat-completions endpoint.

LLM judges favour a position, so every pair is asked in both orders and a response wins only where the two agree.
Nothing is lost on the way: what could not be read, was refused or came too late is a tie *and* a count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhflow_utils.chat import Message
from rlhflow_utils.endpoint import ChatEndpoint, Reply

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
