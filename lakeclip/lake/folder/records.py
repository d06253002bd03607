"""Records of files that could not be used."""

from __future__ import annotations

from typing import NamedTuple


class Rejected(NamedTuple):
    """An item of a source that cannot become a row.

    Attributes:
        key: its name within the source.
        reason: "kind" or "kind: detail"; reports group by kind.
    """

    key: str
    reason: str


class Collision(NamedTuple):
    """Files with the same name.

    Attributes:
        key: the name.
        paths: every file that has it.
        outcome: what was done with them.
    """

    key: str
    paths: tuple[str, ...]
    outcome: str
