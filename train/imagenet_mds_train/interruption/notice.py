"""Notices of an interruption, as EC2's instance metadata service gives them. Imports no torch.

    spot/instance-action               two minutes before a spot instance is stopped, terminated or hibernated
    events/recommendations/rebalance   earlier, when that has become likely

Both answer 404 until there is something. A request needs a session token (IMDSv2).
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import http.client
import json
import os
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from imagenet_mds.words import one_line

POLL_SECONDS = 5.0
"""What AWS recommends."""

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
"""Variables that AWS's own tools obey."""

_ENDPOINT = "http://169.254.169.254"
_TOKEN = "/latest/api/token"
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"

_TIMEOUT_SECONDS = 1.0
"""The service is on the machine's own link and answers in milliseconds."""

_TOKEN_SECONDS = 21_600
"""The longest life of a token that the service grants."""

_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_RENEWED_AFTER = 0.9
"""Share of a token's life."""

_ANSWER_BYTES = 1 << 14
_ACTIONS = {"stop": "stopped", "terminate": "terminated", "hibernate": "hibernated"}


@dataclass(frozen=True)
class Notice:
    """What the service said, or, as `trouble`, that it does not answer as it should. `text` is for people."""

    kind: Literal["stop", "save", "trouble"]
    text: str


class NoticeWatcher:
    """Asks the service on a thread of its own, until a stop is announced. Where there is no service, the thread ends
    after one attempt.

    Args:
        poll_seconds: between two questions.
    """

    def __init__(self, poll_seconds: float = POLL_SECONDS) -> None:
        self._poll_seconds = poll_seconds
        self._notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._said_trouble = False
        self._rebalance: str | None = None
        if os.environ.get(DISABLED_VARIABLE, "").lower() != "true":
            # A daemon, because a service that stalls must not delay the exit.
            threading.Thread(target=self._watch, name="notices", daemon=True).start()

    def next(self) -> Notice | None:
        """The next notice, None if there is none. This does not wait."""
        try:
            return self._notices.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ask nothing any more."""
        self._closed.set()

    def _watch(self) -> None:
        named = os.environ.get(ENDPOINT_VARIABLE)
        try:
            service = _Service(named or _ENDPOINT)
            service.renew_token()
        except (OSError, ValueError, http.client.HTTPException) as error:
            if named:  # where nobody named one, this is no machine of EC2
                self._say_trouble(named, error)
            return
        while not self._closed.wait(self._poll_seconds):
            try:
                if self._ask(service):
                    return
            except (OSError, ValueError, http.client.HTTPException) as error:
                self._say_trouble(service.endpoint, error)

    def _ask(self, service: "_Service") -> bool:
        """Ask once. Return whether the end is announced."""
        action = service.get(_ACTION)
        if action is not None:
            what = action.get("action")
            if what not in _ACTIONS:
                raise ValueError(f"it announces the action {what!r}")
            at = f" at {when}" if isinstance(when := action.get("time"), str) else ""
            self._notices.put(Notice("stop", one_line(f"Spot notice: this instance will be {_ACTIONS[what]}{at}")))
            return True
        recommendation = service.get(_REBALANCE)
        if recommendation is not None and (notice := str(recommendation.get("noticeTime"))) != self._rebalance:
            self._rebalance = notice
            text = f"Rebalance recommendation of {notice}: an interruption of this spot instance has become likely"
            self._notices.put(Notice("save", one_line(text)))
        return False

    def _say_trouble(self, endpoint: str, error: Exception) -> None:
        if self._said_trouble:
            return
        self._said_trouble = True
        reason = str(error) or type(error).__name__
        text = f"the instance metadata service at {endpoint} does not answer as it should ({reason}): a notice of an "
        self._notices.put(Notice("trouble", one_line(f"{text}interruption may be missed")))


class _Service:
    """The metadata service.

    Args:
        endpoint: its address.

    Raises:
        ValueError: it is not an address.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint.rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{ENDPOINT_VARIABLE} is no http:// address")
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._token, self._renew_at = "", 0.0

    def renew_token(self) -> None:
        """Get a session token.

        Raises:
            OSError, ValueError, HTTPException: the service gives none.
        """
        asked_at = time.monotonic()
        answer = self._request("PUT", _TOKEN, {_TTL_HEADER: str(_TOKEN_SECONDS)})
        token = answer.body.decode("ascii").strip()
        if answer.status != http.client.OK or not token or not token.isprintable():
            raise ValueError(f"status {answer.status} and no token")
        granted = answer.ttl or ""
        seconds = int(granted) if granted.isdecimal() else _TOKEN_SECONDS
        self._token, self._renew_at = token, asked_at + _RENEWED_AFTER * seconds

    def get(self, path: str) -> dict[str, Any] | None:
        """A JSON object; None if there is none.

        Raises:
            OSError, ValueError, HTTPException: the service does not answer, or with something else.
        """
        if time.monotonic() > self._renew_at:
            self.renew_token()
        answer = self._request("GET", path, {_TOKEN_HEADER: self._token})
        if answer.status == http.client.UNAUTHORIZED:
            self.renew_token()
            answer = self._request("GET", path, {_TOKEN_HEADER: self._token})
        if answer.status == http.client.NOT_FOUND:
            return None
        if answer.status != http.client.OK:
            raise ValueError(f"status {answer.status} for {path}")
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"no JSON object for {path}")
        return value

    def _request(self, method: str, path: str, headers: dict[str, str]) -> "_Answer":
        # http.client and not urllib.request, which would send this through the proxy of the environment.
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, self._path + path, headers=headers)
            response = connection.getresponse()
            return _Answer(response.status, response.read(_ANSWER_BYTES), response.getheader(_TTL_HEADER))
        finally:
            connection.close()


@dataclass(frozen=True)
class _Answer:
    """What the service answered. `ttl` is the life of a token, in seconds."""

    status: int
    body: bytes
    ttl: str | None
