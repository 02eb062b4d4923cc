"""Notices of an interruption, as EC2's instance metadata service gives them. Imports no torch.

    spot/instance-action               two minutes before a spot instance is stopped, terminated or hibernated
    events/recommendations/rebalance   earlier, when that has become likely

Both answer 404 until there is something. A request needs a session token (IMDSv2).
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import queue
import threading
from dataclasses import dataclass
from typing import Literal

from imagenet_mds.process.metadata import MetadataService, NoAnswer, is_disabled, named_endpoint
from imagenet_mds.words import one_line

POLL_SECONDS = 5.0
"""What AWS recommends."""

_ACTION = "spot/instance-action"
_REBALANCE = "events/recommendations/rebalance"
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
        if not is_disabled():
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
        named = named_endpoint()
        try:
            service = MetadataService()
            service.renew_token()
        except NoAnswer as error:
            if named:  # where nobody named one, this is no machine of EC2
                self._say_trouble(named, error)
            return
        while not self._closed.wait(self._poll_seconds):
            try:
                if self._ask(service):
                    return
            except NoAnswer as error:
                self._say_trouble(service.endpoint, error)

    def _ask(self, service: MetadataService) -> bool:
        """Ask once. Return whether the end is announced."""
        action = service.get_object(_ACTION)
        if action is not None:
            what = action.get("action")
            if what not in _ACTIONS:
                raise ValueError(f"it announces the action {what!r}")
            at = f" at {when}" if isinstance(when := action.get("time"), str) else ""
            self._notices.put(Notice("stop", one_line(f"Spot notice: this instance will be {_ACTIONS[what]}{at}")))
            return True
        recommendation = service.get_object(_REBALANCE)
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
