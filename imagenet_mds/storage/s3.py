"""Storage in a prefix of an S3 bucket, through boto3.

boto3 repeats failed requests, in its adaptive mode with jitter; bodies that break off are requested again here. boto3's
managed download would do that too, but it asks for the size of each object first, which doubles the time to read a
small image, and it does not read ranges. `retry.py` has all counts and times.

Every upload carries a CRC-32 that the server verifies. Large objects are uploaded in parts, several at once, and an
upload that fails is aborted. `AWS_ENDPOINT_URL` selects another server than Amazon's.
"""

import errno
import io
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from imagenet_mds.errors import UserError
from imagenet_mds.storage import retry
from imagenet_mds.storage.base import Entry, Listing, RangeReads, file_xxh64
from imagenet_mds.storage.s3_client import client
from imagenet_mds.storage.s3_errors import (
    CONFLICTS,
    MISSING,
    BrokenOff,
    PastTheEnd,
    error_code,
    explained,
    marking_breaks,
)

PART_BYTES = 16 << 20
_UPLOAD = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)

_CREATOR = "creator"
"""Metadata key of objects written by `create`: a random name of the writer."""


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
            client().upload_fileobj(
                io.BytesIO(data),
                self.bucket,
                self._key(name),
                ExtraArgs={"ChecksumAlgorithm": "CRC32"},
                Config=_UPLOAD,
            )

    def adopt(self, file: Path, name: str) -> tuple[int, str]:
        """Upload a file of this machine's disk, then remove it there. It becomes visible as a whole.

        Raises:
            UserError: the credentials or the address are wrong.
            OSError: it cannot be uploaded; the file is kept.
        """
        size_bytes, xxh64 = file.stat().st_size, file_xxh64(file)
        with self._explained(name):
            client().upload_file(
                str(file), self.bucket, self._key(name), ExtraArgs={"ChecksumAlgorithm": "CRC32"}, Config=_UPLOAD
            )
        file.unlink()
        return size_bytes, xxh64

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
                    client().put_object(
                        Bucket=self.bucket,
                        Key=self._key(name),
                        Body=bytes(data),
                        IfNoneMatch="*",
                        ChecksumAlgorithm="CRC32",
                        Metadata={_CREATOR: creator},
                    )
                    return
                except botocore.exceptions.ClientError as error:
                    if error_code(error) not in CONFLICTS:
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
                answer = client().delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                # The request as a whole succeeds even if every key in it was refused.
                for refused in answer.get("Errors", []):
                    if refused.get("Code") not in MISSING:
                        raise botocore.exceptions.ClientError({"Error": refused}, "DeleteObjects")

    def walk(self) -> Iterator[Entry]:
        """Iterate over every object below the prefix.

        Raises:
            UserError: the credentials or the address are wrong.
            OSError: it cannot be listed.
        """
        below = self._key("")
        with self._explained(""):
            for page in client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
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
            lister = client().get_paginator("list_objects_v2")
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
            pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=below)
            for page in pages:
                for upload in page.get("Uploads", []):
                    client().abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Do nothing: S3 has no locks. Runs of the same conversion write the same bytes, so they may overlap; callers
        must check themselves that no other conversion writes here."""
        yield

    def free_bytes(self) -> None:
        """Return None: the space is unlimited."""

    def _explained(self, name: str) -> AbstractContextManager[None]:
        return explained(f"{self.location}/{name}" if name else self.location)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _head(self, name: str) -> dict[str, Any] | None:
        """Request an object's size and metadata; None if there is no such object."""
        try:
            with self._explained(name):
                head: dict[str, Any] = client().head_object(Bucket=self.bucket, Key=self._key(name))
        except FileNotFoundError:
            return None
        return head

    def _get(self, name: str, extra: dict[str, str]) -> bytes:
        for attempt in range(retry.BODY_ATTEMPTS):
            try:
                with self._explained(name), marking_breaks():
                    return bytes(self._body(name, extra).read())
            except PastTheEnd:
                return b""
            except BrokenOff as error:
                if attempt == retry.BODY_ATTEMPTS - 1:
                    where, times = f"{self.location}/{name}", retry.BODY_ATTEMPTS
                    raise OSError(errno.EIO, f"{where} broke off {times} times") from error
                retry.pause(attempt)
        raise AssertionError("the loop returns or raises")

    def _body(self, name: str, extra: dict[str, str]) -> Any:
        """Request an object and return its body, which is still to be read."""
        try:
            return client().get_object(Bucket=self.bucket, Key=self._key(name), **extra)["Body"]
        except botocore.exceptions.HTTPClientError as error:
            # boto3 has used up its retries. Repeating them all, as for a broken body, would take an hour.
            raise OSError(errno.EIO, str(error)) from error


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
