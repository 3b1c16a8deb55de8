"""A server on the loopback that speaks chat completions, and fails on request."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body, headers."""


def said(text: str | None, *, finish_reason: str = "stop", num_tokens: int = 2) -> Reply:
    """An answer."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1},
    }
    return 200, body, {}


def failed(status: int, message: str) -> Reply:
    """An error, which the client may try again at once."""
    return status, {"error": {"message": message}}, {"retry-after-ms": "1"}


class Stub:
    """What it was asked, and how it answers."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.url = ""
        self._now = 0
        self._lock = threading.Lock()

    def serve(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.answer(body, number)
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Stub]:
    """A server while the block runs."""
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value, headers = stub.serve(
                body | {"path": self.path},
                {name.lower(): text for name, text in self.headers.items()},
            )
            data = json.dumps(value).encode()
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send(status, data, headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slowly(answer: Callable[[dict[str, Any], int], Reply], seconds: float):
    """The same answers, later."""

    def answer_later(body: dict[str, Any], number: int) -> Reply:
        time.sleep(seconds)
        return answer(body, number)

    return answer_later
