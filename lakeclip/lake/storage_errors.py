"""Failures of the storage of a remote lake: their kinds, and errors that tell the user what to do."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path

from lakeclip.errors import LakeError
from lakeclip.lake import timeouts


class StorageFailure(Enum):
    """The kinds of failures; the values begin an error message."""

    NETWORK = "cannot reach the storage of"
    DENIED = "the storage refuses access to"
    MISSING = "the storage has no"
    OTHER = "cannot read"


# In this order: a refusal may be reported by an error about the network, never the other way round.
_PATTERNS = {
    StorageFailure.DENIED: r"status=40[13]\b|access.?denied|INVALID_ACCESS_KEY|SignatureDoesNotMatch|ExpiredToken|"
    "unauthorized",
    StorageFailure.MISSING: r"status=404\b|NoSuchBucket|NoSuchKey|was replaced by another|no longer has the version",
    StorageFailure.NETWORK: r"network connection|curlCode|status=(-1|429|5\d\d)\b|SlowDown|timed? ?out|no answer for",
}


def classify_failure(error: Exception) -> StorageFailure:
    """Return the kind of an error that Deep Lake raised, or of a `LakeError` made from one."""
    if isinstance(error, timeouts.RequestTimeoutError):
        return StorageFailure.NETWORK
    for failure, pattern in _PATTERNS.items():
        if re.search(pattern, str(error), re.IGNORECASE):
            return failure
    return StorageFailure.OTHER


def storage_error(failure: StorageFailure, path: str, found: str, next_step: str = "") -> LakeError:
    """Return the error to raise for a storage failure.

    Args:
        failure: its kind.
        path: the lake's path.
        found: the message of the original error.
        next_step: a further step, beside the settings to check.
    """
    subject = path
    advice = {
        StorageFailure.NETWORK: "check the network and that the server runs",
        StorageFailure.DENIED: "check the credentials, and that they may read it",
        StorageFailure.MISSING: "check the address",
        StorageFailure.OTHER: "",
    }[failure]
    if "NoSuchBucket" in found:
        subject = f"bucket {path.split('/')[2]}"
    if path.startswith("s3://") and failure is not StorageFailure.OTHER:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        found += f"; endpoint: {endpoint}" if endpoint else ""
        if failure is StorageFailure.DENIED:
            found += f"; credentials: {_aws_credentials() or 'none'}"
            advice += ": AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return LakeError(f"{failure.value} {subject}", found=found, next_step="; ".join(filter(None, (advice, next_step))))


_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def _aws_credentials() -> str:
    """Return the variable or file that AWS's credentials come from; '' if there is none."""
    for name in _CREDENTIAL_VARIABLES:
        if os.environ.get(name):
            return f"${name}"
    for variable, default in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        file = os.environ.get(variable) or os.path.expanduser(f"~/.aws/{default}")
        if os.path.isfile(file):
            return file
    return ""


def disable_ec2_metadata(path: str) -> None:
    """Turn off the look-up of credentials in the EC2 metadata service on machines that are not Amazon's.

    There the look-up cannot succeed, and takes a minute to fail.
    """
    if not path.startswith("s3://") or _aws_credentials() or "AWS_EC2_METADATA_DISABLED" in os.environ:
        return
    try:
        vendor = Path("/sys/class/dmi/id/sys_vendor").read_text() + Path("/sys/class/dmi/id/bios_version").read_text()
    except OSError:
        return
    if "amazon" not in vendor.lower():
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
