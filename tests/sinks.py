"""What receives alerts in tests: an SMTP server and an HTTP server that keep what they are sent."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PATIENCE = 20.0  # seconds


@dataclass(frozen=True)
class Message:
    """One alert: `text` is all of it that people read."""

    text: str
    to: str = ""


class Sink:
    """Messages in the order they came, with a way to wait for one."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._arrived = threading.Condition()
        self._server: socketserver.BaseServer | None = None

    def serve(self, server: socketserver.BaseServer) -> None:
        """Let `server` answer, in a thread of its own, until `close`."""
        self._server = server
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def take(self, message: Message) -> None:
        """Keep a message. For the servers."""
        with self._arrived:
            self.messages.append(message)
            self._arrived.notify_all()

    def clear(self) -> None:
        with self._arrived:
            self.messages.clear()

    async def wait_for(self, *words: str, count: int = 1, within: float = _PATIENCE) -> list[Message]:
        """The messages with all these words, as soon as there are `count` of them."""

        def found() -> list[Message]:
            return [one for one in self.messages if all(word in one.text for word in words)]

        await asyncio.to_thread(self._wait, lambda: len(found()) >= count, within)
        assert len(found()) >= count, f"no {words} x {count} within {within} s; there is {self.messages}"
        return found()

    def _wait(self, condition: Callable[[], bool], within: float) -> None:
        deadline = time.monotonic() + within
        with self._arrived:
            while not condition() and (left := deadline - time.monotonic()) > 0:
                self._arrived.wait(left)


class Chat(Sink):
    """An incoming webhook as Slack has it; `url` is where to post."""

    def __init__(self) -> None:
        super().__init__()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sink.take(Message(body["text"]))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the tests have the messages."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/services/T00/B00/secret-of-the-hook"
        self.serve(server)


class Mail(Sink):
    """An SMTP server on `port` that takes every letter, without a login or encryption."""

    def __init__(self) -> None:
        super().__init__()
        sink = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _converse(self, sink)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        server = Server(("127.0.0.1", 0), Handler)
        self.port = int(server.server_address[1])
        self.serve(server)


def _converse(line: socketserver.StreamRequestHandler, sink: Mail) -> None:
    """One connection, as far as RFC 5321 needs it."""

    def say(text: str) -> None:
        line.wfile.write(f"{text}\r\n".encode())

    say("220 sink")
    while command := line.rfile.readline().decode("utf-8", "replace").upper()[:4]:
        if command == "DATA":
            say("354 go on")
            sink.take(_letter(iter(line.rfile.readline, b".\r\n")))
        say("221 bye" if command == "QUIT" else "250 ok")


def _letter(lines: Any) -> Message:
    letter = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
    body = letter.get_body(("plain",))
    text = body.get_content() if body is not None else ""
    return Message(f"{letter['Subject']}\n{text}", str(letter["To"]))
