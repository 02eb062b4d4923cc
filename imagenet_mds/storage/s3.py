"""A prefix in S3 as a storage, through boto3.

Retries are boto's adaptive mode with jitter; a body that breaks off is asked for again here, which boto does not do.
Every upload carries a CRC-32 that the server verifies; large ones go in parts, several at once, and are aborted where
they fail. `AWS_ENDPOINT_URL` names another server than Amazon's.
"""

import errno
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Entry, Listing, RangeReads, file_xxh64

_ATTEMPTS = 10
_BODY_ATTEMPTS = 6
_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 30
PART_BYTES = 16 << 20
_UPLOAD = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_DENIED = "access is denied: the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
_HINTS = {
    "ExpiredToken": "the credentials have expired: renew them and run the same command again",
    "ExpiredTokenException": "the credentials have expired: renew them and run the same command again",
    "RequestExpired": "the credentials have expired, or this machine's clock is wrong",
    "InvalidAccessKeyId": "the access key is not known: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "NoSuchBucket": "there is no such bucket: make it, or check the name",
    "NoSuchUpload": "another process has completed what is made here and ended this upload: run the same command again",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
}
"""What the user can mend, by S3's error code."""

_BROKEN_BODY = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


@cache
def _client() -> Any:
    """One client a process; it is safe to share between threads, and not with a fork: that would share connections."""
    return boto3.session.Session().client(
        "s3",
        config=Config(
            retries={"mode": "adaptive", "max_attempts": _ATTEMPTS},
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            read_timeout=_READ_TIMEOUT_SECONDS,
            max_pool_connections=32,
        ),
    )


_client_lock = threading.Lock()


def _s3() -> Any:
    """The process's client; threads that ask for it first together wait for one, for it takes a tenth of a second."""
    with _client_lock:
        return _client()


def _reset_after_fork() -> None:
    """A forked process, as loader workers are, makes a client of its own; another thread may have held the lock."""
    global _client_lock
    _client_lock = threading.Lock()
    _client.cache_clear()


os.register_at_fork(after_in_child=_reset_after_fork)


@dataclass(frozen=True)
class S3Storage(RangeReads):
    """Objects under `s3://bucket/prefix/`. `prefix` is empty or ends without a slash."""

    bucket: str
    prefix: str

    @property
    def remote(self) -> bool:
        """It is."""
        return True

    @classmethod
    def at(cls, location: str) -> "S3Storage":
        """The storage at an address.

        Raises:
            UserError: the address has no bucket.
        """
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise UserError(f"{location}: give s3://BUCKET/PREFIX")
        return cls(bucket, "/".join(part for part in prefix.split("/") if part))

    @property
    def location(self) -> str:
        """The address."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self.prefix.rpartition("/")[2]

    @property
    def parent(self) -> "S3Storage":
        """The storage one level up; the bucket is its own parent."""
        return S3Storage(self.bucket, self.prefix.rpartition("/")[0])

    def child(self, name: str) -> "S3Storage":
        """The storage below a folder of this one."""
        return S3Storage(self.bucket, f"{self.prefix}/{name}".strip("/"))

    def size_bytes(self, name: str) -> int | None:
        """The size of an object, None where there is none."""
        try:
            with self._explained(name):
                return int(_s3().head_object(Bucket=self.bucket, Key=self._key(name))["ContentLength"])
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """A whole object."""
        return self._get(name, {})

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where the object ends before."""
        if length <= 0:
            return b""
        return self._get(name, {"Range": f"bytes={start}-{start + length - 1}"})

    @contextmanager
    def draft(self, name: str) -> Iterator["_Upload"]:
        """An object uploaded when it is whole: what it is made of need not be waited for, other shards are uploaded
        meanwhile."""
        yield _Upload(self, name)

    def write_unsynced(self, name: str, data: bytes) -> None:
        """As `write`."""
        self.write(name, data)

    def sync(self) -> None:
        """Nothing: an upload that is answered is durable."""

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Upload an object; it is visible only when whole."""
        with self._explained(name):
            _s3().upload_fileobj(
                io.BytesIO(data),
                self.bucket,
                self._key(name),
                ExtraArgs={"ChecksumAlgorithm": "CRC32"},
                Config=_UPLOAD,
            )

    def adopt(self, file: Path, name: str) -> tuple[int, str]:
        """Upload a file of this machine's disk and remove it there. The object is visible only when whole."""
        size_bytes, xxh64 = file.stat().st_size, file_xxh64(file)
        with self._explained(name):
            _s3().upload_file(
                str(file), self.bucket, self._key(name), ExtraArgs={"ChecksumAlgorithm": "CRC32"}, Config=_UPLOAD
            )
        file.unlink()
        return size_bytes, xxh64

    def delete(self, name: str) -> None:
        """Remove an object, or all below a folder.

        Raises:
            UserError: it is refused, by the credentials most likely.
        """
        with self._explained(name):
            keys = [self._key(name), *(f"{self._key(name)}/{entry.name}" for entry in self.child(name).walk())]
            # A thousand at a time is what one request takes.
            for start in range(0, len(keys), 1000):
                batch = [{"Key": key} for key in keys[start : start + 1000]]
                answer = _s3().delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                # The request succeeds though every key in it may be refused.
                for refused in answer.get("Errors", []):
                    if refused.get("Code") not in _MISSING:
                        raise botocore.exceptions.ClientError({"Error": refused}, "DeleteObjects")

    def walk(self) -> Iterator[Entry]:
        """Every object below the prefix."""
        below = self._key("")
        with self._explained(""):
            for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):  # what consoles make for an empty folder
                        yield Entry(item["Key"][len(below) :], int(item["Size"]))

    def list_names(self) -> list[str]:
        """The names of objects and folders right below the prefix, sorted."""
        try:
            found = self.listing()
        except FileNotFoundError:
            return []
        return sorted({*found.folders, *(entry.name for entry in found.files)})

    def listing(self) -> Listing:
        """The objects with their sizes and the folders right below the prefix, a request for every thousand."""
        below = self._key("")
        files, folders, there = [], [], False
        with self._explained(""):
            lister = _s3().get_paginator("list_objects_v2")
            for page in lister.paginate(Bucket=self.bucket, Prefix=below, Delimiter="/"):
                objects, prefixes = page.get("Contents", []), page.get("CommonPrefixes", [])
                there = there or bool(objects or prefixes)
                # The prefix itself is what consoles make for an empty folder.
                files += [
                    Entry(item["Key"][len(below) :], int(item["Size"])) for item in objects if item["Key"] != below
                ]
                folders += [item["Prefix"][len(below) : -1] for item in prefixes]
        if not there:
            raise FileNotFoundError(errno.ENOENT, "No such prefix", self.location)
        return Listing(tuple(files), tuple(name for name in folders if name))

    def remove_partials(self, folder: str = "", *, complete: bool) -> None:
        """Abort unfinished uploads, whose parts are invisible and cost money, once all is complete. Before, those of a
        killed run cannot be told from those of one that is alive."""
        if not complete:
            return
        below = self._key(f"{folder}/" if folder else "")
        with self._explained(folder):
            pages = _s3().get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=below)
            for page in pages:
                for upload in page.get("Uploads", []):
                    _s3().abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nothing: S3 has no locks. Two runs of one conversion write the same bytes; whether another writes too must be
        looked at."""
        yield

    def free_bytes(self) -> None:
        """No end to the room."""

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _get(self, name: str, extra: dict[str, str]) -> bytes:
        for attempt in range(_BODY_ATTEMPTS):
            try:
                with self._explained(name), _marking_breaks():
                    return bytes(self._body(name, extra).read())
            except _PastTheEnd:
                return b""
            except _BrokenOff as error:
                if attempt == _BODY_ATTEMPTS - 1:
                    raise OSError(errno.EIO, f"{self.location}/{name} broke off {_BODY_ATTEMPTS} times") from error
                time.sleep(random.uniform(0, 0.2 * 2**attempt))
        raise AssertionError("the loop returns or raises")

    def _body(self, name: str, extra: dict[str, str]) -> Any:
        """The answer to a request, its body still to be read."""
        try:
            return _s3().get_object(Bucket=self.bucket, Key=self._key(name), **extra)["Body"]
        except botocore.exceptions.HTTPClientError as error:
            # Boto has asked as often as it may. To ask as often again, as for a broken body, took half an hour.
            raise OSError(errno.EIO, str(error)) from error

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """S3's errors as the storage's: the user's own mistakes with their mend, the rest as OSError."""
        where = f"{self.location}/{name}" if name else self.location
        try:
            yield
        except botocore.exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise FileNotFoundError(errno.ENOENT, "No such object", where) from None
            if code == "InvalidRange":
                raise _PastTheEnd from None
            if code in _HINTS:
                raise UserError(f"{where}: {_HINTS[code]} ({code})") from None
            raise OSError(errno.EIO, f"S3 answers {code}: {error}") from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError):
            raise UserError(
                f"{where}: there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"or give the machine a role"
            ) from None
        except boto3.exceptions.S3UploadFailedError as error:
            known = next((code for code in _HINTS if f"({code})" in str(error)), None)
            if known:
                raise UserError(f"{where}: {_HINTS[known]} ({known})") from None
            raise OSError(errno.EIO, str(error)) from error
        except botocore.exceptions.BotoCoreError as error:
            raise OSError(errno.EIO, f"{error}") from error


@dataclass(frozen=True)
class _Upload:
    """An object to be."""

    storage: S3Storage
    name: str

    def write_behind(self, data: memoryview, start: int) -> None:
        """Nothing is sent before the whole is there."""

    def publish(self, data: memoryview, *, moved: bool = False) -> None:
        """Upload the whole."""
        self.storage.write(self.name, data)


@contextmanager
def _marking_breaks() -> Iterator[None]:
    """Tell a body that has broken off, which is asked for again, from what boto has given up."""
    try:
        yield
    except _BROKEN_BODY as error:
        raise _BrokenOff from error


class _BrokenOff(Exception):  # noqa: N818 # the next attempt may end well
    """A body that ended before its end, or too slowly."""


class _PastTheEnd(Exception):  # noqa: N818 # not an error to anybody but S3
    """A range that starts where the object has ended."""
