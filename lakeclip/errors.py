"""Every error a user can meet, as one tree.

    LakeclipError                     anything that is the input's fault; the command line prints it and exits with 2
    ├── ConfigError                   a recipe, a flag, or a combination of flags that cannot work
    ├── ModelError                    an unknown model name or an impossible model configuration
    ├── DataError                     data that cannot be used
    │   ├── SourceError               what was to be ingested: an empty folder, no captions, a broken archive
    │   ├── LakeError                 a Deep Lake dataset: cannot be opened, lacks a column, a query that is wrong
    │   └── ImageError                one encoded image that cannot be decoded
    ├── CheckpointError               a file that is not a checkpoint, is damaged, or holds another model
    ├── DeviceError                   hardware that was asked for and is not there
    ├── ProcessError                  a process of the run that ended before the run did
    └── OutputError                   a place that cannot be written, a full disk

Programming errors (a wrong shape handed to a loss, say) stay `ValueError`, `TypeError` or an `assert`.
"""

from __future__ import annotations

import os
import re

#: Variables whose values are secrets, by their names; shorter values are no secrets but settings.
_SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY$", re.IGNORECASE)
_SHORTEST = 6
_IN_ADDRESSES = (
    (re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    (re.compile(r"(?i)\b([\w-]*(?:token|secret|signature|password|credential|api_?key))=[^&\s'\"]+"), r"\1=***"),
)


def redacted(text: str) -> str:
    """A text as it may be shown: without the values of secret variables, and of what is secret in addresses."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRETS.search(name):
            text = text.replace(value, "***")
    for pattern, instead in _IN_ADDRESSES:
        text = pattern.sub(instead, text)
    return text


def printable(text: str, keep: str = "") -> str:
    """A text as a terminal may have it: one from a stranger may hold what moves the cursor or turns the line round.

    Args:
        keep: what is left as it is besides.
    """
    return "".join(letter if letter.isprintable() or letter in keep else " " for letter in text)


def _shown(text: str) -> str:
    return printable(redacted(text), keep="\n")


class LakeclipError(Exception):
    """A user's mistake or a broken input, said in full.

    Args:
        what: one sentence with what was asked for and what is wrong with it.
        found: what is there instead.
        allowed: what would have been accepted.
        next_step: what to do now, best as a command that works.

    What is secret in them is not shown, nor what a terminal would obey.
    """

    def __init__(self, what: str, *, found: str = "", allowed: str = "", next_step: str = "") -> None:
        self.what = _shown(what)
        self.found = _shown(found)
        self.allowed = _shown(allowed)
        self.next_step = _shown(next_step)
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        for label, text in (("found", self.found), ("allowed", self.allowed), ("next", self.next_step)):
            if text:
                parts.append(f"  {label + ':':<9}{text}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data-loader workers): keep the parts, not just the rendered text.
        return _rebuild, (type(self), self.what, self.found, self.allowed, self.next_step)


def _rebuild(kind: type[LakeclipError], what: str, found: str, allowed: str, next_step: str) -> LakeclipError:
    return kind(what, found=found, allowed=allowed, next_step=next_step)


class ConfigError(LakeclipError):
    """A recipe, a flag, or a combination of flags that cannot work."""


class ModelError(LakeclipError):
    """An unknown model name or an impossible model configuration."""


class DataError(LakeclipError):
    """Data that cannot be used."""


class SourceError(DataError):
    """Something to be ingested is empty, lacks captions or images, or is broken."""


class LakeError(DataError):
    """A Deep Lake dataset cannot be opened, lacks a column, or a query on it is wrong."""


class ImageError(DataError):
    """One encoded image cannot be decoded."""


class CheckpointError(LakeclipError):
    """A file is not a checkpoint, is damaged, or holds another model."""


class DeviceError(LakeclipError):
    """Hardware that was asked for is not there."""


class ProcessError(LakeclipError):
    """A process of the run ended before the run did: one that loads data, or another rank."""


class OutputError(LakeclipError):
    """A place cannot be written to, or its disk is full."""
