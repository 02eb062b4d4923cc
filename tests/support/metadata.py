"""An instance metadata service over HTTP, which asks for a token as EC2's does."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TERMINATE = json.dumps({"action": "terminate", "time": "2030-01-02T03:04:05Z"})


@dataclass
class Metadata:
    """What the service answers, and what it was asked.

    bodies: what each path answers, or a function that is called for each answer, of which None is 404; others answer
        404.
    ttl_seconds: the life of the tokens that it gives.
    stalls: whether it takes requests and never answers.
    refused: requests that had no valid token.
    """

    port: int
    bodies: dict[str, str | Callable[[], str | None]] = field(default_factory=dict)
    ttl_seconds: float = 21_600
    stalls: bool = False
    tokens: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refused: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads a program here, also past a proxy that does not exist."""
        return {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "AWS_EC2_METADATA_DISABLED": "false",
            "http_proxy": "http://127.0.0.1:9",
        }


@contextmanager
def metadata_service() -> Iterator[Metadata]:
    """A service of this process."""
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            token = secrets.token_urlsafe(32)
            metadata.tokens[token] = time.monotonic() + metadata.ttl_seconds
            self._answer(200, token)

        def do_GET(self) -> None:
            metadata.asked.append(self.path)
            if time.monotonic() > metadata.tokens.get(self.headers["X-aws-ec2-metadata-token"], 0.0):
                metadata.refused += 1
                self._answer(401, "")
                return
            body = metadata.bodies.get(self.path)
            body = body() if callable(body) else body
            self._answer(404 if body is None else 200, body or "")

        def _answer(self, status: int, body: str) -> None:
            if metadata.stalls:
                closed.wait()
                return
            self.send_response(status)
            if self.command == "PUT":
                self.send_header("X-aws-ec2-metadata-token-ttl-seconds", str(round(metadata.ttl_seconds)))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    metadata = Metadata(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield metadata
    finally:
        closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
