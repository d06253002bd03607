"""Trouble with the storage of a remote lake: what kind it is, and what a user can do about it."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path

from lakeclip.errors import LakeError
from lakeclip.lake import deadline


class Trouble(Enum):
    """What is wrong with the storage of a remote lake."""

    NETWORK = "cannot reach the storage of"
    DENIED = "the storage refuses access to"
    MISSING = "the storage has no"
    OTHER = "cannot read"


def trouble(error: Exception) -> Trouble:
    """What kind of trouble an error of Deep Lake's (or one that was made of it) is about."""
    said = str(error)
    if isinstance(error, deadline.TookTooLongError):
        return Trouble.NETWORK
    for kind, signs in _SIGNS.items():
        if re.search(signs, said, re.IGNORECASE):
            return kind
    return Trouble.OTHER


# In this order: a refusal may be reported by an error about the network, never the other way round.
_SIGNS = {
    Trouble.DENIED: r"status=40[13]\b|access.?denied|INVALID_ACCESS_KEY|SignatureDoesNotMatch|ExpiredToken|"
    "unauthorized",
    Trouble.MISSING: r"status=404\b|NoSuchBucket|NoSuchKey|another lake has taken|no longer has the version",
    Trouble.NETWORK: r"network connection|curlCode|status=(-1|429|5\d\d)\b|SlowDown|timed? ?out|no answer for",
}


def explain_trouble(kind: Trouble, path: str, found: str, next_step: str = "") -> LakeError:
    """Trouble with the storage of a remote lake, as one a user can act on.

    Args:
        kind: what kind.
        path: the lake's path.
        found: what was said of it.
        next_step: what to do besides; by default, what to check.
    """
    place = path
    advice = {
        Trouble.NETWORK: "check the network and that the server runs",
        Trouble.DENIED: "check the credentials, and that they may read it",
        Trouble.MISSING: "check the address",
        Trouble.OTHER: "",
    }[kind]
    if "NoSuchBucket" in found:
        place = f"bucket {path.split('/')[2]}"
    if path.startswith("s3://") and kind is not Trouble.OTHER:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        found += f"; endpoint: {endpoint}" if endpoint else ""
        if kind is Trouble.DENIED:
            found += f"; credentials: {_credentials() or 'none'}"
            advice += ": AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return LakeError(f"{kind.value} {place}", found=found, next_step="; ".join(filter(None, (advice, next_step))))


_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def _credentials() -> str:
    """Where AWS's credentials come from; '' if there are none to be seen."""
    for name in _CREDENTIALS:
        if os.environ.get(name):
            return f"${name}"
    for variable, default in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        file = os.environ.get(variable) or os.path.expanduser(f"~/.aws/{default}")
        if os.path.isfile(file):
            return file
    return ""


def spare_metadata_service(path: str) -> None:
    """Where there can be no answer, do not ask Amazon's machines' own service for credentials: it takes a minute."""
    if not path.startswith("s3://") or _credentials() or "AWS_EC2_METADATA_DISABLED" in os.environ:
        return
    try:
        vendor = Path("/sys/class/dmi/id/sys_vendor").read_text() + Path("/sys/class/dmi/id/bios_version").read_text()
    except OSError:
        return
    if "amazon" not in vendor.lower():
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
