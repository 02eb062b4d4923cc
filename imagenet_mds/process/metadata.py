"""EC2's instance metadata service, which needs a session token for each question (IMDSv2).

It is asked by http.client, because boto3 has no public way to do it, and urllib.request would send the questions
through the proxy of the environment.
"""

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
"""Variables that AWS's own tools obey."""

_ENDPOINT = "http://169.254.169.254"
_TOKEN = "/latest/api/token"
_META_DATA = "/latest/meta-data/"

_TIMEOUT_SECONDS = 1.0
"""The service is on the machine's own link and answers in milliseconds."""

_TOKEN_SECONDS = 21_600
"""The longest life of a token that the service grants."""

_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_RENEWED_AFTER = 0.9
"""Share of a token's life."""

_ANSWER_BYTES = 1 << 14

NoAnswer = (OSError, ValueError, http.client.HTTPException)
"""What questions raise where there is no service, or one that answers with something else."""


def is_disabled() -> bool:
    """Whether the environment says to ask nothing."""
    return os.environ.get(DISABLED_VARIABLE, "").lower() == "true"


def named_endpoint() -> str | None:
    """The address that the environment names, None if it names none."""
    return os.environ.get(ENDPOINT_VARIABLE)


class MetadataService:
    """The metadata service. Nothing is asked before the first question.

    Args:
        endpoint: its address; by default the one that the environment names, or that of every instance.

    Raises:
        ValueError: it is not an address.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or named_endpoint() or _ENDPOINT).rstrip("/")
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

    def get(self, name: str) -> str | None:
        """A value below `latest/meta-data/`; None if there is none.

        Raises:
            OSError, ValueError, HTTPException: the service does not answer, or with something else.
        """
        if time.monotonic() > self._renew_at:
            self.renew_token()
        path = _META_DATA + name
        answer = self._request("GET", path, {_TOKEN_HEADER: self._token})
        if answer.status == http.client.UNAUTHORIZED:
            self.renew_token()
            answer = self._request("GET", path, {_TOKEN_HEADER: self._token})
        if answer.status == http.client.NOT_FOUND:
            return None
        if answer.status != http.client.OK:
            raise ValueError(f"status {answer.status} for {path}")
        return answer.body.decode("utf-8", errors="replace")

    def get_object(self, name: str) -> dict[str, Any] | None:
        """A JSON object below `latest/meta-data/`; None if there is none.

        Raises:
            OSError, ValueError, HTTPException: the service does not answer, or with something else.
        """
        text = self.get(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"no JSON object for {_META_DATA}{name}")
        return value

    def _request(self, method: str, path: str, headers: dict[str, str]) -> "_Answer":
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
