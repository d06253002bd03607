"""The hierarchy of errors that a user can meet.

    LakeclipError                     any error in the user's input; the command line prints it and exits with 2
    ├── ConfigError                   invalid recipe, flag, or combination of flags
    ├── ModelError                    unknown model name or impossible model configuration
    ├── DataError                     unusable data
    │   ├── SourceError               invalid source to ingest: an empty folder, no captions, a broken archive
    │   ├── LakeError                 Deep Lake dataset that cannot be opened or lacks a column, or an invalid query
    │   └── ImageError                encoded image that cannot be decoded
    ├── CheckpointError               file that is not a checkpoint, is damaged, or holds a different model
    ├── DeviceError                   requested hardware that is not available
    ├── ProcessError                  process of the run that died before the run ended
    └── OutputError                   path that cannot be written to, or a full disk

Programming errors (a tensor of the wrong shape, say) stay `ValueError`, `TypeError` or an `assert`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

#: Names of environment variables whose values are secret. Values shorter than _MIN_SECRET_LENGTH are settings.
_SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY$", re.IGNORECASE)
_MIN_SECRET_LENGTH = 6
_SECRETS_IN_URLS = (
    (re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    (re.compile(r"(?i)\b([\w-]*(?:token|secret|signature|password|credential|api_?key))=[^&\s'\"]+"), r"\1=***"),
)


def redact(text: str) -> str:
    """Replace secrets in a text by ***: values of secret environment variables, and credentials in URLs."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_LENGTH and _SECRETS.search(name):
            text = text.replace(value, "***")
    for pattern, replacement in _SECRETS_IN_URLS:
        text = pattern.sub(replacement, text)
    return text


def escape_surrogates(text: str) -> str:
    """Escape the parts of a file name that are not UTF-8, so that the text can be written: `caf\\xe9.jpg`.

    Python reads each byte of such a part as a lone surrogate, which no encoding can write.
    """
    if text.isascii():
        return text
    return "".join(
        char if not 0xD800 <= ord(char) <= 0xDFFF
        # The bytes 0x80 to 0xFF are U+DC80 to U+DCFF.
        else f"\\x{ord(char) - 0xDC00:02x}" if 0xDC80 <= ord(char) <= 0xDCFF else f"\\u{ord(char):04x}"
        for char in text
    )  # fmt: skip


def printable(text: str, keep: str = "") -> str:
    """Replace unprintable characters by spaces, because untrusted text may contain terminal escape sequences.

    Args:
        keep: other characters to keep.
    """
    return "".join(char if char.isprintable() or char in keep else " " for char in escape_surrogates(text))


def _sanitize(text: str) -> str:
    return printable(redact(text), keep="\n")


class LakeclipError(Exception):
    """A user's mistake or a broken input, with the next step.

    Secrets and control characters are removed from all parts.

    Args:
        what: one sentence with the request and what is wrong with it.
        found: what was found instead.
        allowed: what would be accepted.
        next_step: what to do next, preferably as a command that works.
    """

    def __init__(self, what: str, *, found: str = "", allowed: str = "", next_step: str = "") -> None:
        self.what = _sanitize(what)
        self.found = _sanitize(found)
        self.allowed = _sanitize(allowed)
        self.next_step = _sanitize(next_step)
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        for label, text in (("found", self.found), ("allowed", self.allowed), ("next", self.next_step)):
            if text:
                parts.append(f"  {label + ':':<9}{text}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled between processes (dataloader workers): keep the parts, not just the formatted text.
        return _rebuild, (type(self), self.what, self.found, self.allowed, self.next_step)


def _rebuild(kind: type[LakeclipError], what: str, found: str, allowed: str, next_step: str) -> LakeclipError:
    return kind(what, found=found, allowed=allowed, next_step=next_step)


class ConfigError(LakeclipError):
    """An invalid recipe, flag, or combination of flags."""


class ModelError(LakeclipError):
    """An unknown model name or an impossible model configuration."""


class DataError(LakeclipError):
    """Unusable data."""


class SourceError(DataError):
    """A source to ingest that is empty, lacks captions or images, or is broken."""


class LakeError(DataError):
    """A Deep Lake dataset that cannot be opened or lacks a column, or an invalid query on it."""


class ImageError(DataError):
    """An encoded image that cannot be decoded."""


class CheckpointError(LakeclipError):
    """A file that is not a checkpoint, is damaged, or holds a different model."""


class DeviceError(LakeclipError):
    """Requested hardware that is not available."""


class ProcessError(LakeclipError):
    """A process of the run, a dataloader worker or another rank, that died before the run ended."""


class OutputError(LakeclipError):
    """A path that cannot be written to, or a full disk."""


class InputWarning(NamedTuple):
    """A warning about the user's input that stops nothing.

    Attributes:
        what: what is wrong, with figures.
        advice: what to do about it, preferably as a flag or a command.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return _sanitize(f"warning: {self.what}" + (f"\n  next:  {self.advice}" if self.advice else ""))


def print_warnings(warnings: Iterable[InputWarning], *, to_output: bool = False) -> None:
    """Print warnings in the layout of an error, to standard error or to standard output."""
    for warning in warnings:
        (sys.stdout if to_output else sys.stderr).write(f"{warning}\n")


def exit_cleanly(work: Callable[[], None]) -> None:
    """Run `work`. Print a `LakeclipError` and exit with code 2; exit with 130 on Ctrl-C."""
    try:
        work()
    except LakeclipError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"stopped{': ' if stop.args else ''}{stop}\n")
        sys.exit(130)
