"""A real S3 server over HTTP (moto's), and a proxy before it that puts faults in."""

import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.command import HANG_SECONDS

BUCKET = "imagenet"
"""What is there when a test begins, empty."""

PAGE = 20
"""How many names a listing gives at once; Amazon's gives 1,000."""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class Request:
    """A request on its way through the proxy: its number from 0, method, path with query, size of its body."""

    number: int
    method: str
    path: str
    size_bytes: int


Fault = str | None
"""`slow down`, `reset`, `stall`, `expired`, `ended` (there is no such upload), `missing` (no such object), `kept` (a
removal of many is answered as one of which nothing was allowed), `denied`, `conflict` (another conditional write is in
flight), `lost` (the request is passed on and its answer is not), `cut` (the answer ends in the middle of its body),
`flipped` (one bit of its body is wrong), or None for none."""


@dataclass
class Proxy:
    """Passes requests on to the server, but for those that `choose` gives a fault and those that `respond` answers, by
    their body, with a status and XML. `delay_seconds` is what each waits, as on a long line."""

    port: int
    server_port: int
    choose: Callable[[Request], Fault] = lambda request: None
    seen: list[tuple[Request, Fault]] = field(default_factory=list)
    delay_seconds: float = 0.0
    respond: Callable[[str], tuple[int, str] | None] = lambda body: None

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads a program here."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def faults(self) -> list[Fault]:
        """The faults so far."""
        return [fault for _, fault in self.seen if fault]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def s3_server(module: str = "moto.server") -> Iterator[int]:
    """Run moto's server, or another module that takes its options; give its port."""
    port = free_port()
    command = [sys.executable, "-m", module, "-H", "127.0.0.1", "-p", str(port)]
    # Pages of a few names, so that every listing of a test is longer than one.
    # It outlives the temporary folder of a module's attempt, in which it may be started.
    variables = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    variables |= {"PYTHONWARNINGS": "ignore", "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            except OSError:
                assert process.poll() is None, "the S3 server has ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def direct(port: int) -> Any:
    """A client that goes past the proxy."""
    import boto3

    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")


@contextmanager
def proxy_before(server_port: int) -> Iterator[Proxy]:
    """Run a proxy before a server."""
    proxy = Proxy(0, server_port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    lock, creating = threading.Lock(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

        def answer(self) -> None:
            """Pass one request on, with its fault."""
            size_bytes = int(self.headers.get("Content-Length") or 0)
            with lock:
                request = Request(len(proxy.seen), self.command, self.path, size_bytes)
                fault = proxy.choose(request)
                proxy.seen.append((request, fault))
            if self.headers.get("Expect"):
                self.send_response_only(100)
                self.end_headers()
            if fault == "reset" and size_bytes:
                # Half of what is uploaded, then the connection is gone.
                self.rfile.read(size_bytes // 2)
                self.reset()
                return
            body = self.rfile.read(size_bytes)
            if answer := proxy.respond(body.decode(errors="replace")):
                self.answer_xml(*answer)
                return
            if fault == "slow down":
                self.refuse(503, "SlowDown", "Please reduce your request rate.")
                return
            if fault == "kept":
                error = "<Error><Key>{}</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                errors = "".join(error.format(key) for key in re.findall("<Key>(.*?)</Key>", body.decode()))
                self.answer_xml(200, f"<DeleteResult>{errors}</DeleteResult>")
                return
            if fault == "ended":
                self.refuse(404, "NoSuchUpload", "The specified upload does not exist.")
                return
            if fault == "missing":
                self.refuse(404, "NoSuchKey", "The specified key does not exist.")
                return
            if fault == "conflict":
                self.refuse(409, "ConditionalRequestConflict", "A conflicting operation is in progress.")
                return
            if fault == "denied":
                self.refuse(403, "AccessDenied", "Access Denied")
                return
            if fault == "expired":
                self.refuse(400, "ExpiredToken", "The provided token has expired.")
                return
            time.sleep(5 if fault == "stall" else proxy.delay_seconds)
            # moto looks for the object and then writes it, so that of two threads both may create it; S3 lets one.
            with creating if self.headers.get("If-None-Match") else nullcontext():
                connection = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                response = connection.getresponse()
                data = response.read()
                connection.close()
            if fault == "lost":
                self.reset()
                return
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "reset":
                self.wfile.write(data[: len(data) // 2])
                self.reset()
                return
            if fault == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            if fault == "flipped" and data:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            self.wfile.write(data)

        def refuse(self, status: int, code: str, message: str) -> None:
            """An error as S3 writes it."""
            self.answer_xml(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>")

        def answer_xml(self, status: int, text: str) -> None:
            """A whole answer."""
            data = f"<?xml version='1.0'?>{text}".encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def reset(self) -> None:
            """End the connection as a lost one ends: with a reset."""
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def handle(self) -> None:
            """A client that has gone is no error of the test's."""
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True

    return Handler
