"""A loopback server that says what a test tells it to, judges that ask it, and questions."""

import json
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prefopt.evaluation.judge.build import build_judge
from prefopt.evaluation.judge.section import read_section
from prefopt.evaluation.types import Answer, PairQuestion, Prompt, ScoreQuestion


@dataclass
class Said:
    """One reply: a JSON body or raw text, or a connection that is dropped."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    seconds: float = 0.0
    resets: bool = False


Script = Callable[[dict[str, Any]], Said]


class JudgeServer(ThreadingHTTPServer):
    """Replies by `script(body)`; `requests` has path, headers and body of everything asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def bodies(self) -> list[Any]:
        return [request["body"] for request in self.requests]

    def enter(self, request: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.title(): value for name, value in self.headers.items()}
        self.server.enter({"path": self.path, "headers": headers, "body": body})
        try:
            said = self.server.script(body)
            time.sleep(said.seconds)
            self._say(said)
        finally:
            self.server.leave()

    def _say(self, said: Said) -> None:
        if said.resets:
            # No waiting for what is unsent: the other side sees a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The handler's files hold the socket, too, so close() alone would leave it open.
            os.close(self.connection.detach())
            self.close_connection = True
            return
        text = json.dumps(said.body) if said.text is None else said.text
        data = text.encode()
        self.send_response(said.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in said.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(script: Script) -> Iterator[JudgeServer]:
    """A running server on a free port of 127.0.0.1."""
    server = JudgeServer(script)
    # Looks often whether it should stop, else each test waits half a second for it.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chat(
    text: str | None,
    top: dict[str, float] | None = None,
    *,
    tokens: list[tuple[str, dict[str, float]]] | None = None,
    finish_reason: str = "stop",
    **message: Any,
) -> Said:
    """A chat completion; `top` has the probabilities at its only token, `tokens` at each."""
    places = [(text or "", top)] if top is not None else tokens
    logprobs = None
    if places is not None:
        logprobs = {"content": [_place(token, probs) for token, probs in places]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish_reason,
        "logprobs": logprobs,
    }
    usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    return Said({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def error(status: int, message: str, **headers: str) -> Said:
    """An error as OpenAI's servers send it."""
    body = {"error": {"message": message, "type": "invalid_request_error"}}
    return Said(body, status, headers)


def _place(token: str, probs: dict[str, float]) -> dict[str, Any]:
    top = [{"token": each, "logprob": math.log(prob)} for each, prob in probs.items()]
    return {"token": token, "logprob": top[0]["logprob"] if top else 0.0, "top_logprobs": top}


def in_turn(*replies: Said) -> Script:
    """The replies one after another, the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def script(body: dict[str, Any]) -> Said:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return script


def always(reply: Said) -> Script:
    """The same reply to everything."""
    return lambda body: reply


def pair(first: str = "yes", second: str = "no", request: str = "Say yes.") -> PairQuestion:
    """One request, two answers."""
    prompt = Prompt(turns=(request,))
    return PairQuestion(prompt=prompt, first=answer(prompt, first), second=answer(prompt, second))


def score(text: str = "yes", request: str = "Say yes.") -> ScoreQuestion:
    """One request, one answer."""
    prompt = Prompt(turns=(request,))
    return ScoreQuestion(prompt=prompt, answer=answer(prompt, text))


def answer(prompt: Prompt, *turns: str, sample: int = 0) -> Answer:
    """An answer to a prompt."""
    return Answer(prompt_id=prompt.prompt_id, turns=turns, sample=sample)


@contextmanager
def judge_of(**section: Any) -> Iterator[Any]:
    """The judge of a section, closed at the end."""
    judge = build_judge(read_section(section))
    try:
        yield judge
    finally:
        judge.close()


@contextmanager
def chat_judge(script: Script, **section: Any) -> Iterator[tuple[Any, JudgeServer]]:
    """A judge of backend openai_chat and the server that plays its model."""
    settings = {"backend": "openai_chat", "model": "m", "mode": "logprobs", "max_retries": 0}
    with serving(script) as server, judge_of(**settings | {"base_url": server.url} | section) as it:
        yield it, server
