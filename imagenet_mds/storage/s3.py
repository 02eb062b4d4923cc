"""Storage in a prefix of an S3 bucket, through boto3.

boto3 repeats failed requests, in its adaptive mode with jitter; bodies that break off are requested again here. boto3's
managed download would do that too, but it asks for the size of each object first, which doubles the time to read a
small image, and it does not read ranges. `retry.py` has all counts and times.

Every upload carries a CRC-32 that the server verifies. Large objects are uploaded in parts, several at once, and an
upload that fails is aborted. `AWS_ENDPOINT_URL` selects another server than Amazon's.
"""

import errno
import io
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
import botocore.exceptions
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from imagenet_mds.errors import UserError
from imagenet_mds.storage import retry
from imagenet_mds.storage.base import Entry, Listing, RangeReads

_PART_BYTES = 16 << 20
_UPLOAD = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)

_CREATOR = "creator"
"""Metadata key of objects written by `create`: a random name of the writer."""

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
    "NoSuchBucket": "there is no such bucket: create it, or check the name",
    "NoSuchUpload": "another process finished this work and aborted this upload: run the same command again",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
}
"""What the user can do, by S3's error code."""

_CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
"""Answers to a create-only write: the object exists, or another write of it is in flight."""

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
    """Return the client of this process. Threads share it; forked processes must not, because of its connections."""
    return boto3.session.Session().client(
        "s3",
        config=Config(
            retries={"mode": "adaptive", "max_attempts": retry.REQUEST_RETRIES},  # not counting the first request
            connect_timeout=retry.CONNECT_TIMEOUT_SECONDS,
            read_timeout=retry.READ_TIMEOUT_SECONDS,
            max_pool_connections=32,
        ),
    )


_client_lock = threading.Lock()


def _s3() -> Any:
    """Return the client of this process. The lock keeps threads from making one each, which takes 0.1 seconds."""
    with _client_lock:
        return _client()


def _reset_after_fork() -> None:
    """Give a forked process, such as a loader worker, its own client, and a lock that no thread of the parent holds."""
    global _client_lock
    _client_lock = threading.Lock()
    _client.cache_clear()


os.register_at_fork(after_in_child=_reset_after_fork)


@dataclass(frozen=True)
class S3Storage(RangeReads):
    """Objects under `s3://bucket/prefix/`. `prefix` may be empty and has no slash at its end."""

    bucket: str
    prefix: str

    @property
    def remote(self) -> bool:
        """True: reads go over the network."""
        return True

    @classmethod
    def at(cls, location: str) -> "S3Storage":
        """Return the storage at an address.

        Raises:
            UserError: the address has no bucket.
        """
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise UserError(f"{location}: pass s3://BUCKET/PREFIX")
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
        """Return the storage of a subfolder."""
        return S3Storage(self.bucket, f"{self.prefix}/{name}".strip("/"))

    def size_bytes(self, name: str) -> int | None:
        """Return the size of an object, None if there is none.

        Raises:
            UserError: the credentials or the address are wrong.
            OSError: the server does not answer, or with another error.
        """
        head = self._head(name)
        return None if head is None else int(head["ContentLength"])

    def read(self, name: str) -> bytes:
        """Read a whole object.

        Raises:
            FileNotFoundError: there is no such object.
            UserError: the credentials or the address are wrong.
            OSError: it cannot be read.
        """
        return self._get(name, {})

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start` on, fewer if the object ends earlier.

        Raises:
            UserError, OSError: as `read`.
        """
        if length <= 0:
            return b""
        return self._get(name, {"Range": f"bytes={start}-{start + length - 1}"})

    @contextmanager
    def draft(self, name: str) -> Iterator["_Upload"]:
        """Open an object that is uploaded as a whole by `publish`. Uploading parts of it earlier would gain nothing,
        because other shards are uploaded meanwhile."""
        yield _Upload(self, name)

    def write_unsynced(self, name: str, data: bytes) -> None:
        """Like `write`: every upload is durable."""
        self.write(name, data)

    def sync(self) -> None:
        """Do nothing: an upload is durable when it is answered."""

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Upload an object. It becomes visible as a whole.

        Raises:
            UserError: the credentials or the address are wrong.
            OSError: it cannot be written.
        """
        with self._explained(name):
            _s3().upload_fileobj(
                io.BytesIO(data),
                self.bucket,
                self._key(name),
                ExtraArgs={"ChecksumAlgorithm": "CRC32"},
                Config=_UPLOAD,
            )

    def create(self, name: str, data: bytes | memoryview) -> None:
        """Upload an object if none has this name.

        The object carries a random name of its writer. It tells a conflict with another writer from a request that
        succeeded and was repeated because its answer was lost.

        Raises:
            FileExistsError: an object of this name exists; it is left as it is.
            UserError: the credentials or the address are wrong.
            OSError: it cannot be written.
        """
        creator, where = secrets.token_hex(16), f"{self.location}/{name}"
        for attempt in range(retry.CREATE_ATTEMPTS):
            if attempt:
                retry.pause(attempt - 1)
            with self._explained(name):
                try:
                    _s3().put_object(
                        Bucket=self.bucket,
                        Key=self._key(name),
                        Body=bytes(data),
                        IfNoneMatch="*",
                        ChecksumAlgorithm="CRC32",
                        Metadata={_CREATOR: creator},
                    )
                    return
                except botocore.exceptions.ClientError as error:
                    if _code(error) not in _CONFLICTS:
                        raise
            # The other write may have failed, or the object may be gone again: only a look at it tells.
            head = self._head(name)
            if head is not None and head["Metadata"].get(_CREATOR) == creator:
                return
            if head is not None:
                raise FileExistsError(errno.EEXIST, "The object exists", where)
        raise OSError(errno.EAGAIN, f"Another write was in flight {retry.CREATE_ATTEMPTS} times", where)

    def delete(self, name: str) -> None:
        """Remove an object, or everything in a folder. A missing name is not an error.

        Raises:
            UserError: the credentials do not allow it, or the address is wrong.
            OSError: it cannot be removed.
        """
        with self._explained(name):
            keys = [self._key(name), *(f"{self._key(name)}/{entry.name}" for entry in self.child(name).walk())]
            # One request takes up to a thousand keys.
            for start in range(0, len(keys), 1000):
                batch = [{"Key": key} for key in keys[start : start + 1000]]
                answer = _s3().delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                # The request as a whole succeeds even if every key in it was refused.
                for refused in answer.get("Errors", []):
                    if refused.get("Code") not in _MISSING:
                        raise botocore.exceptions.ClientError({"Error": refused}, "DeleteObjects")

    def walk(self) -> Iterator[Entry]:
        """Iterate over every object below the prefix.

        Raises:
            UserError: the credentials or the address are wrong.
            OSError: it cannot be listed.
        """
        below = self._key("")
        with self._explained(""):
            for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):  # consoles create such keys for empty folders
                        yield Entry(item["Key"][len(below) :], int(item["Size"]))

    def list_names(self) -> list[str]:
        """Return the names of the objects and folders directly below the prefix, sorted.

        Raises:
            UserError, OSError: as `walk`.
        """
        try:
            found = self.listing()
        except FileNotFoundError:
            return []
        return sorted({*found.folders, *(entry.name for entry in found.files)})

    def listing(self) -> Listing:
        """List the objects with their sizes and the folders directly below the prefix, a thousand names per request.

        Raises:
            FileNotFoundError: there is nothing below the prefix.
            UserError, OSError: as `walk`.
        """
        below = self._key("")
        files, folders, there = [], [], False
        with self._explained(""):
            lister = _s3().get_paginator("list_objects_v2")
            for page in lister.paginate(Bucket=self.bucket, Prefix=below, Delimiter="/"):
                objects, prefixes = page.get("Contents", []), page.get("CommonPrefixes", [])
                there = there or bool(objects or prefixes)
                # Consoles create a key that equals the prefix for an empty folder.
                files += [
                    Entry(item["Key"][len(below) :], int(item["Size"])) for item in objects if item["Key"] != below
                ]
                folders += [item["Prefix"][len(below) : -1] for item in prefixes]
        if not there:
            raise FileNotFoundError(errno.ENOENT, "No such prefix", self.location)
        return Listing(tuple(files), tuple(name for name in folders if name))

    def remove_partials(self, folder: str = "", *, complete: bool) -> None:
        """Abort unfinished uploads, whose parts are invisible and cost money, once everything is complete. Earlier, the
        uploads of killed runs cannot be told from those of live ones.

        Raises:
            UserError, OSError: as `walk`.
        """
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
        """Do nothing: S3 has no locks. Runs of the same conversion write the same bytes, so they may overlap; callers
        must check themselves that no other conversion writes here."""
        yield

    def free_bytes(self) -> None:
        """Return None: the space is unlimited."""

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _head(self, name: str) -> dict[str, Any] | None:
        """Request an object's size and metadata; None if there is no such object."""
        try:
            with self._explained(name):
                head: dict[str, Any] = _s3().head_object(Bucket=self.bucket, Key=self._key(name))
        except FileNotFoundError:
            return None
        return head

    def _get(self, name: str, extra: dict[str, str]) -> bytes:
        for attempt in range(retry.BODY_ATTEMPTS):
            try:
                with self._explained(name), _marking_breaks():
                    return bytes(self._body(name, extra).read())
            except _PastTheEnd:
                return b""
            except _BrokenOff as error:
                if attempt == retry.BODY_ATTEMPTS - 1:
                    where, times = f"{self.location}/{name}", retry.BODY_ATTEMPTS
                    raise OSError(errno.EIO, f"{where} broke off {times} times") from error
                retry.pause(attempt)
        raise AssertionError("the loop returns or raises")

    def _body(self, name: str, extra: dict[str, str]) -> Any:
        """Request an object and return its body, which is still to be read."""
        try:
            return _s3().get_object(Bucket=self.bucket, Key=self._key(name), **extra)["Body"]
        except botocore.exceptions.HTTPClientError as error:
            # boto3 has used up its retries. Repeating them all, as for a broken body, would take an hour.
            raise OSError(errno.EIO, str(error)) from error

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Translate boto3's errors: to UserError with a hint for what the user can fix, to OSError otherwise."""
        where = f"{self.location}/{name}" if name else self.location
        try:
            yield
        except botocore.exceptions.ClientError as error:
            code = _code(error)
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
    """An object that is uploaded as a whole; see `Writing`."""

    storage: S3Storage
    name: str

    def write_behind(self, data: memoryview, start: int) -> None:
        """Send nothing yet."""

    def publish(self, data: memoryview, *, moved: bool = False) -> None:
        """Upload the whole object.

        Raises:
            UserError, OSError: as `S3Storage.write`.
        """
        self.storage.write(self.name, data)


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _marking_breaks() -> Iterator[None]:
    """Mark the errors of a body that broke off, which is requested again, apart from those that boto3 gave up on."""
    try:
        yield
    except _BROKEN_BODY as error:
        raise _BrokenOff from error


class _BrokenOff(Exception):  # noqa: N818 # the next attempt may succeed
    """The body of an answer ended early, or stalled."""


class _PastTheEnd(Exception):  # noqa: N818 # an error to S3 alone
    """The requested range starts behind the end of the object."""
