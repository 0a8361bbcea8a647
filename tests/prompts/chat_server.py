"""A chat-completions server on loopback that answers by script: well, late, cut off, wrong, or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from carzero.prompts.rules import RulesEngine
from carzero.prompts.verify import _sentence

#: what a script may answer besides a text: these names, or a function of the report's true answer
FAULTS = ("429", "500", "slow", "malformed", "truncated", "empty", "no choice")


def true_answer(report: str, engine: RulesEngine) -> dict:
    """The answer of a model that reads as the rules do."""
    fields = ("finding", "negated", "uncertain", "severity", "side", "location")
    statements = []
    for s in engine(report).statements:
        first, last = _sentence(report, s.start, s.end)
        statements.append({name: getattr(s, name) for name in fields} | {"quote": report[first:last].strip()})
    return {"statements": statements}


class ChatServer:
    """Answers ``POST /v1/chat/completions``; `scripts` holds what a report gets, attempt after attempt, then the truth.

    Args:
        truths: the right answer of every report.
        scripts: report -> faults, texts, or functions of the right answer, in the order of attempts.
        seconds: that a slow answer takes.
    """

    def __init__(
        self, truths: dict[str, dict], scripts: dict[str, Iterable] | None = None, seconds: float = 1.0
    ) -> None:
        self.truths, self.seconds = truths, seconds
        self.scripts = {report: list(script) for report, script in (scripts or {}).items()}
        self.asked, self.paid = Counter(), Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.arrivals: list[float] = []
        self._lock = threading.Lock()
        self.http = HTTPServer(host="127.0.0.1", port=0, threaded=True)
        self.http.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self._answer)

    def __enter__(self) -> ChatServer:
        self.http.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.clear()
        self.http.stop()

    @property
    def url(self) -> str:
        return self.http.url_for("/v1")

    def _answer(self, request: Request) -> Response:
        body = request.get_json()
        # the report is the last text of the user that is no example and no objection
        report = next(m["content"] for m in reversed(body["messages"]) if m["content"] in self.truths)
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.arrivals.append(time.monotonic())
            script = self.scripts.get(report, [])
            turn = script[self.asked[report]] if self.asked[report] < len(script) else None
            self.asked[report] += 1
        if turn == "429":
            return Response("{}", 429, {"retry-after-ms": "20"}, content_type="application/json")
        if turn == "500":
            return Response(
                '{"error": {"message": "broken"}}', 500, {"retry-after-ms": "5"}, content_type="application/json"
            )
        if turn == "401":
            return Response('{"error": {"message": "no such key"}}', 401, content_type="application/json")
        if turn == "slow":
            time.sleep(self.seconds)
        with self._lock:
            self.paid[report] += 1
        content, reason = json.dumps(self.truths[report]), "stop"
        if turn == "malformed":
            content = "Sure! Here are the findings: {'statements': "
        elif turn == "truncated":
            content, reason = content[: len(content) // 2], "length"
        elif turn == "empty":
            content = ""
        elif isinstance(turn, Callable):
            content = turn(json.loads(content))
            content = content if isinstance(content, str) else json.dumps(content)
        choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content}}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [] if turn == "no choice" else [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        return Response(json.dumps(answer), 200, content_type="application/json")
