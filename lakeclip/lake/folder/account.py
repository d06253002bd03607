"""`Account`: everything that a source has read, and what became of it."""

from __future__ import annotations

from collections import Counter

from lakeclip.errors import LakeclipError

#: Limit on the different reasons that are counted separately in each unit.
_MAX_REASONS = 1_000
_OTHERS = "other reasons"


class Account:
    """Counts of what a source has read, by unit, and of what became of it: read = used + left out, in each unit.

    A source counts an item when it meets it, and counts it again when it decides what becomes of it. An item that is
    neither used nor left out is a mistake in the source; `check` finds it at the end of an ingest.

    Units are plural nouns: "files", "rows", "members", "columns", "keys", "partitions". "Used" means that the item went
    into a `Sample`; what becomes of samples is counted elsewhere.

    Attributes:
        read: unit → number of items that were read.
        used: unit → number of items that went into samples.
        left_out: (unit, reason) → number of items that did not. A reason is "kind" or "kind: detail"; only its kind is
            kept, as for `Rejected`.
    """

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._num_reasons: Counter[str] = Counter()

    def add_read(self, unit: str, count: int = 1) -> None:
        """Count items that were read."""
        self.read[unit] += count

    def add_used(self, unit: str, count: int = 1) -> None:
        """Count items that went into samples."""
        self.used[unit] += count

    def add_left_out(self, unit: str, reason: str, count: int = 1) -> None:
        """Count items that go into no sample."""
        if not count:
            return
        kind = reason.partition(": ")[0]
        if (unit, kind) not in self.left_out:
            if self._num_reasons[unit] >= _MAX_REASONS:
                kind = _OTHERS
            self._num_reasons[unit] += 1
        self.left_out[unit, kind] += count

    def add(self, other: Account) -> None:
        """Add the counts of another account."""
        self.read.update(other.read)
        self.used.update(other.used)
        for (unit, reason), count in other.left_out.items():
            self.add_left_out(unit, reason, count)

    def num_left_out(self, unit: str) -> int:
        """Return the number of items of a unit that were left out."""
        return sum(count for (other, _), count in self.left_out.items() if other == unit)

    def check(self, name: str) -> None:
        """Raise if the counts do not add up.

        Args:
            name: the source, for the message.

        Raises:
            AccountError: an item was read, and neither used nor left out; or it was counted twice.
        """
        for unit in sorted({*self.read, *self.used, *(unit for unit, _ in self.left_out)}):
            left_out = self.num_left_out(unit)
            if self.read[unit] != self.used[unit] + left_out:
                raise AccountError(
                    f"the account of {name} does not add up",
                    found=f"{self.read[unit]:,} {unit} read, but {self.used[unit]:,} used and {left_out:,} left out",
                )

    def to_dict(self) -> dict[str, object]:
        """Convert to plain values for JSON: unit → read, used, and reason → number of items left out."""
        return {
            unit: {
                "read": count,
                "used": self.used[unit],
                "left_out": {reason: number for (other, reason), number in self.left_out.items() if other == unit},
            }
            for unit, count in self.read.items()
        }


class AccountError(LakeclipError):
    """Counts of an ingest that do not add up: a mistake in lakeclip, or in a source from another package."""

    def __init__(self, what: str, *, found: str = "", allowed: str = "", next_step: str = "") -> None:
        super().__init__(
            what,
            found=found,
            allowed=allowed or "every item is used or left out with a reason, once",
            next_step=next_step
            or "this is a mistake in lakeclip: please report it with the command and this message. "
            "The rows that were written are in the lake and can be used",
        )
