"""Errors of S3 and boto3, as errors of a storage: hints for what the user can fix, OSError for the rest."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import boto3.exceptions
import botocore.exceptions
import urllib3.exceptions

from imagenet_mds.errors import UserError

MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
"""Answers to a request for an object that does not exist."""

_DENIED = "access is denied: the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
_HINTS = {
    "ExpiredToken": "the credentials have expired: renew them and run the same command again",
    "ExpiredTokenException": "the credentials have expired: renew them and run the same command again",
    "RequestExpired": "the credentials have expired, or this machine's clock is wrong",
    "InvalidAccessKeyId": "the access key is not known: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "InvalidObjectState": "the object is archived (Glacier): restore it or copy it to S3 Standard, then run the same "
    "command again",
    "NoSuchBucket": "there is no such bucket: create it, or check the name",
    "NoSuchUpload": "another process finished this work and aborted this upload: run the same command again",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
}
"""What the user can do, by S3's error code."""

CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
"""Answers to a create-only write: the object exists, or another write of it is in flight."""

_BROKEN_BODY = (
    botocore.exceptions.FlexibleChecksumError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


class BrokenOff(Exception):  # noqa: N818 # the next attempt may succeed
    """The body of an answer ended early, stalled, or is not what its checksum says."""


class PastTheEnd(Exception):  # noqa: N818 # an error to S3 alone
    """The requested range starts behind the end of the object."""


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Translate boto3's errors.

    Args:
        where: the address for messages.

    Raises:
        UserError: something that the user can fix, with a hint.
        FileNotFoundError: there is no such object.
        PastTheEnd: the requested range starts behind the end of the object.
        OSError: anything else.
    """
    try:
        yield
    except botocore.exceptions.ClientError as error:
        code = error_code(error)
        if code in MISSING:
            raise FileNotFoundError(errno.ENOENT, "No such object", where) from None
        if code == "InvalidRange":
            raise PastTheEnd from None
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


@contextmanager
def marking_breaks() -> Iterator[None]:
    """Mark the errors of a body that broke off, which is requested again, apart from those that boto3 gave up on.

    Raises:
        BrokenOff: in place of such an error.
    """
    try:
        yield
    except _BROKEN_BODY as error:
        raise BrokenOff from error


def error_code(error: botocore.exceptions.ClientError) -> str:
    """Return S3's code of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))
