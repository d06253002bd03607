"""`IngestResult`, the outcome of an ingest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lakeclip.errors import SourceError
from lakeclip.lake.folder.account import Account
from lakeclip.lake.folder.records import Collision, Rejected

#: Limit on the rejected items that are listed by name; the number of rejected items is not limited.
MAX_LISTED = 100_000


@dataclass
class IngestResult:
    """Outcome of an ingest.

    Attributes:
        lake: path of the lake.
        sources: names of the sources.
        rows: number of rows that were added.
        rows_before: number of rows that the lake held before.
        updated: number of rows that got a later version of their samples.
        updated_images: number of these that got another image.
        known: number of samples that were skipped because the lake held them already.
        elsewhere: number of these that were read from another path, at which nothing is left.
        removed: number of rows whose samples are no longer in their source; they are kept.
        moved: old → new path of sources that the lake knew from another place.
        without_caption: number of added rows without a caption.
        downloaded: number of images that were downloaded.
        failed_downloads: number of downloads that failed; `unusable` has the reasons.
        unusable: number of added rows that cannot be used for training, by reason.
        reasons: number of items that could not become a row, by kind of reason.
        rejected: the first `MAX_LISTED` of these items, with reasons.
        collisions: files that claim the same name, and how each conflict was resolved.
        ignored: number of files and columns that are neither images, captions nor metadata, by suffix or name.
        account: everything that the sources have read, and what became of it.
        changed: number of values that are not stored as they were read, by column and reason: infinite numbers, for
            example, are stored as missing values.
        notes: how the sources were read: encodings that were detected, columns that were guessed, lines that were
            mended.
        columns: column → type of the lake.
        renamed: name of metadata → column, where the two differ.
        mapping: source → role → column, for sources that have columns.
        seconds: duration.
    """

    lake: str
    sources: list[str]
    rows: int = 0
    rows_before: int = 0
    updated: int = 0
    updated_images: int = 0
    known: int = 0
    elsewhere: int = 0
    removed: int = 0
    moved: dict[str, str] = field(default_factory=dict)
    without_caption: int = 0
    downloaded: int = 0
    failed_downloads: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)
    collisions: list[Collision] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)
    changed: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    mapping: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows_per_second(self) -> float:
        """Average number of rows added per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    def add_downloads(self, num_fetched: int, num_failed: int) -> None:
        """Count downloads of images that succeeded and failed."""
        self.downloaded += num_fetched
        self.failed_downloads += num_failed

    def add_unusable(self, reason: str) -> None:
        """Count an added row that cannot be used for training."""
        self.unusable[_kind(reason)] += 1

    def add_rejected(self, item: Rejected) -> None:
        """Count an item that could not become a row."""
        self.reasons[_kind(item.reason)] += 1
        if len(self.rejected) < MAX_LISTED:
            self.rejected.append(item)

    def no_rows_error(self) -> SourceError:
        """Return the error to raise if none of the sources contains a usable sample."""
        reasons = "; ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(5))
        examples = ", ".join(f"{item.key} ({item.reason})" for item in self.rejected[:2])
        found = f"{reasons}; for example {examples}" if reasons else "nothing"
        if self.ignored:
            suffixes = ", ".join(f"{count:,} {suffix}" for suffix, count in self.ignored.most_common(5))
            found += f"; files of no known kind: {suffixes}"
        return SourceError(
            f"no usable sample in {', '.join(self.sources)}",
            found=found,
            allowed="images with .txt captions that share their name",
        )

    def to_dict(self) -> dict[str, object]:
        """Convert to plain values for JSON."""
        return {
            "lake": self.lake,
            "sources": self.sources,
            "rows": self.rows,
            "rows_before": self.rows_before,
            "updated": self.updated,
            "updated_images": self.updated_images,
            "known": self.known,
            "elsewhere": self.elsewhere,
            "removed": self.removed,
            "moved": self.moved,
            "without_caption": self.without_caption,
            "downloaded": self.downloaded,
            "failed_downloads": self.failed_downloads,
            "unusable": dict(self.unusable),
            "rejected": [item._asdict() for item in self.rejected],
            "reasons": dict(self.reasons),
            "collisions": [item._asdict() for item in self.collisions],
            "ignored": dict(self.ignored),
            "account": self.account.to_dict(),
            "changed": dict(self.changed),
            "notes": self.notes,
            "columns": self.columns,
            "renamed": self.renamed,
            "mapping": self.mapping,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
        }


def _kind(reason: str) -> str:
    return reason.partition(":")[0]
