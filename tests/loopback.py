"""A chat-completions server on loopback whose answers a function of the test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rlhflow_utils.evaluation.judges import ChatEndpoint
from rlhflow_utils.guide.profile import load_profile

Reply = tuple[int, str] | str | dict[str, Any] | None  # (status, error), a text, a whole choice, or None: no answer


def endpoint(
    url: str, model: str = "judge", cache: Path | None = None, max_failed_share: float = 1.0,
    prices: list[float] | None = None, thinking: int = 0, **options: Any,
) -> ChatEndpoint:  # fmt: skip
    """The endpoint of a profile with these values."""
    changes = {"endpoint_url": url, "judge_model": model, "max_failed_share": max_failed_share,
               "endpoint_thinking_tokens": thinking}  # fmt: skip
    evaluation = load_profile("tiny").evaluation
    return ChatEndpoint(evaluation.model_copy(update={**changes, "endpoint_prices": prices}), cache, **options)


class ChatServer:
    """Answers with ``answer(request number, last message's text)``; `prompts` and `requests` hold what was asked.

    `patience`: how many seconds the client said it waits.
    """

    def __init__(self, answer: Callable[[int, str], Reply], silence: float = 1.5) -> None:
        self.prompts: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.patience: list[float] = []
        self.most_at_once = self._now = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                assert handler.path == "/v1/chat/completions"
                prompt = request["messages"][-1]["content"]
                with lock:
                    number = len(self.prompts)
                    self.prompts.append(prompt)
                    self.requests.append(request)
                    self.patience.append(float(handler.headers["X-Stainless-Read-Timeout"]))
                    self._now += 1
                    self.most_at_once = max(self.most_at_once, self._now)
                reply = answer(number, prompt)
                if reply is None:
                    time.sleep(silence)  # longer than the client waits
                with lock:
                    self._now -= 1
                if reply is not None:
                    _send(handler, *_response(reply))

            def log_message(handler, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _response(reply: tuple[int, str] | str | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if isinstance(reply, tuple):
        return reply[0], {"error": {"message": reply[1], "type": "server_error", "code": None}}
    message = {"role": "assistant", "content": reply}
    choice = reply if isinstance(reply, dict) else {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return 200, {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def _send(handler: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
