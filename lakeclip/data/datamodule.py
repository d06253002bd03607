"""Lightning's data modules: pairs from a Deep Lake dataset or a folder, sharded, shuffled, resumed at the exact sample.

On a resume Lightning restores its own counters but skips no data, so the loaders here begin where its steps ended.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lakeclip.data.order import Order
from lakeclip.data.plan import Pass, every_place, make_plans, parts_of
from lakeclip.data.progress import Mark
from lakeclip.data.sizes import parse_sizes
from lakeclip.data.stream import EvalSpans, PairLoader, PairStream, Span, TrainSpans
from lakeclip.data.transforms import EvalTransform, TrainTransform
from lakeclip.errors import ConfigError, DataError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.pairs import columns_of
from lakeclip.lake.rows import RowSource
from lakeclip.lake.schema import UNUSABLE
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Tokenize

_log = logging.getLogger(__name__)


class PairDataModule(L.LightningDataModule):
    """Batches of pairs for training and validation. Each is a `lakeclip.types.Batch` with uint8 images.

    Training batches are full on every rank, in a new order each epoch, with one caption of several drawn anew.
    Validation visits every row once, and each rank has as many batches as the others.

    Args:
        source: where the pairs are read, e.g. `lakeclip.open_lake(path)`.
        batch_size: pairs per device and step.
        image_size: side of the square that the model takes, in pixels.
        small_images: sides of the images in the first parts of a run, as "112:0.6"; see `parse_sizes`.
        resize_ratio: smallest share of the largest square's area that the random crop may keep.
        shuffle: False to visit the rows as they stand.
        num_workers: processes that read and decode, per device; 0 to do it in the training process.
        seed: of the order, the crops and the captions.
        val_source: pairs to validate on.
        val_fraction: share of `source` to hold out for validation where there is no `val_source`.
        max_val_rows: validate on at most so many of those, chosen at random once.
        same_by: what makes pairs right answers for each other: `image`, `caption`, or columns that the sources read
            with each row (`open_lake(path, also=…)`).
        tokenize: captions to ids; CLIP's tokenizer by default.

    Attributes:
        batches_per_step: batches whose gradients are accumulated. An epoch has whole steps of them only.

    Raises:
        ConfigError: a value that cannot work, alone or with this data.
        DataError: the source is empty.
    """

    def __init__(
        self,
        source: RowSource,
        *,
        batch_size: int,
        image_size: int = 224,
        small_images: str | None = None,
        resize_ratio: float = 0.75,
        shuffle: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        val_source: RowSource | None = None,
        val_fraction: float = 0.0,
        max_val_rows: int | None = None,
        same_by: Sequence[str] = (),
        tokenize: Tokenize | None = None,
    ) -> None:
        super().__init__()
        _require("batch_size", batch_size, batch_size >= 1, "1 or more")
        _require("image_size", image_size, image_size >= 1, "1 or more")
        _require("resize_ratio", resize_ratio, 0 < resize_ratio <= 1, "above 0, up to 1")
        _require("num_workers", num_workers, num_workers >= 0, "0 or more")
        _require("val_fraction", val_fraction, 0 <= val_fraction < 1, "0 (none) up to, not with, 1")
        _require("max_val_rows", max_val_rows, max_val_rows is None or max_val_rows >= 1, "1 or more, or none for all")
        for pairs in (source, val_source):
            for part in parts_of(pairs) if pairs is not None else []:
                if len(part) == 0:
                    raise _no_pairs(part)
                _require_columns(part, columns_of(same_by))
        self.source = source
        self.val_source = val_source
        self.batch_size = batch_size
        self.image_size = image_size
        self.num_workers = num_workers
        self.batches_per_step = 1
        self.sizes = parse_sizes(small_images, image_size)
        self.tokenize = tokenize or Tokenizer()

        train_plan, held_out = make_plans(source, 0.0 if val_source else val_fraction, seed=seed, shuffle=shuffle)
        self.train_stream = PairStream(
            source, train_plan, TrainTransform(image_size, resize_ratio), self.tokenize, same_by
        )
        if val_source is not None:
            held_out = every_place(val_source)
        # Shuffled once, so that a batch is as mixed and a part as representative as the whole.
        val_plan = Pass(held_out, Order(len(held_out), seed=0))
        self.val_stream = PairStream(val_source or source, val_plan, EvalTransform(image_size), self.tokenize, same_by)
        self.num_val_rows = min(len(held_out), max_val_rows or len(held_out))
        if not self.has_validation:
            # Lightning takes a loader of ours for a promise of data, and complains of one that is empty.
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self._mark = Mark()
        self._epochs_by_hand = 0

    # ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_train_rows(self) -> int:
        """Rows to train on, those held out taken off."""
        return len(self.train_stream)

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to validate on."""
        return self.num_val_rows > 0

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch, for the number of devices of the attached trainer (1 without one)."""
        return self.num_train_rows // (self._global_batch * self.batches_per_step)

    @property
    def samples_seen(self) -> int:
        """Pairs trained on so far, over all devices and epochs."""
        return self.now.samples_seen

    @property
    def now(self) -> Mark:
        """Where the data stands: where the steps since the last mark have led."""
        if self.trainer is None:
            return self._mark
        limit = self.trainer.limit_train_batches
        batches = self.steps_per_epoch * self.batches_per_step
        most = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        # Of ours a step takes all of its batches or none, so they count as one. Lightning accumulates only for modules
        # that leave the optimiser to it; then ours are one, and an epoch's last step may have fewer of its.
        return self._mark.after(
            self.trainer.global_step,
            num_rows=self.num_train_rows,
            global_batch=self._global_batch * self.batches_per_step,
            max_batches=most // self.batches_per_step,
            batches_per_step=self.trainer.accumulate_grad_batches,
        )

    @property
    def began(self) -> Mark:
        """Where the data stood when this part of the run began."""
        return self._mark

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self._world_size

    # ── Lightning's hooks ─────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str | None = None) -> None:
        """Check before anything is trained that rows can be read and fill the batches of all devices.

        Raises:
            DataError: the source has no images or no captions that can be used.
            ConfigError: the global batch is larger than the data, or some device would have nothing to validate on.
        """
        for stream in (self.train_stream, self.val_stream):
            if len(stream):
                stream[Span(0, 0, 1)]
        if stage in ("fit", None):
            self._mark = Mark()
            self._require_full_batch()
        if 0 < self.num_val_rows < self._world_size:
            raise ConfigError(
                f"{self.num_val_rows} rows cannot be validated on {self._world_size} devices",
                allowed="at least one row for each device",
                next_step="hold out more rows, or none",
            )

    def list_unusable(self, file: Path) -> None:
        """Have rows that cannot be used listed in a file (see `Quarantine`), from now on."""
        self.train_stream.quarantine.file = self.val_stream.quarantine.file = file

    def _require_full_batch(self) -> None:
        world, rows = self._world_size, self.num_train_rows
        steps = self.batches_per_step
        if self._global_batch * steps <= rows:
            return
        held_out = f" after {len(self.source) - rows} are held out for validation" if rows < len(self.source) else ""
        raise ConfigError(
            f"a batch of {self.batch_size} pairs"
            + (f" on each of {world} devices" if world > 1 else "")
            + (f", {steps} times a step," if steps > 1 else "")
            + " is too large",
            found=f"{rows} rows to train on in {self.source.path}{held_out}",
            allowed=f"a batch size of at most {rows // (world * steps)}"
            if rows >= world * steps
            else f"at most {rows} devices",
            next_step=f"--batch_size {rows // (world * steps)}" if rows >= world * steps else "",
        )

    def train_dataloader(self) -> PairLoader:
        """Batches from where the run stands to the end of its epoch; then, when iterated again, the next epoch."""
        self._require_full_batch()
        spans = TrainSpans(
            self.train_stream,
            self.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            place=self._begin,
            batches_per_step=self.batches_per_step,
            side=self._side,
        )
        return _ResumableLoader(self, spans)

    def val_dataloader(self) -> PairLoader:
        """Every validation row once. Where there are none, there is no such loader, and Lightning validates nothing."""
        spans = EvalSpans(
            self.val_stream, self.num_val_rows, self.batch_size, rank=self._rank, world_size=self._world_size
        )
        return PairLoader(self.val_stream, spans, self.num_workers)

    def whole_validation(self) -> PairLoader:
        """Every validation row once, in this process alone, however many there are in the run."""
        spans = EvalSpans(self.val_stream, self.num_val_rows, self.batch_size, rank=0, world_size=1)
        return PairLoader(self.val_stream, spans, 0)

    # ── where the run stands ──────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, for a checkpoint: plain numbers."""
        now = self.now
        return {
            "step": now.step,
            "epoch": now.epoch,
            "position": now.position,
            "samples_seen": now.samples_seen,
            "num_rows": self.num_train_rows,
            "plan": self.train_stream.plan.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state, also with another batch size or number of devices.

        If the rows or their order are no longer the same, its position means nothing: a new epoch begins, and a warning
        says so.
        """
        mark = Mark(**{name: state_dict[name] for name in ("step", "epoch", "position", "samples_seen")})
        if state_dict.get("plan") != self.train_stream.plan.fingerprint and mark.position:
            _log.warning(
                "the checkpoint stopped %d of %d rows into an epoch; the data (%d rows), its weights, the seed or the "
                "shuffling is another now, so a new epoch begins",
                mark.position,
                state_dict["num_rows"],
                self.num_train_rows,
            )
            mark = Mark(mark.step, mark.epoch + 1, 0, mark.samples_seen)
        self._mark = mark

    def _begin(self) -> tuple[int, int]:
        """Epoch and position at which an iteration that begins now has to start."""
        if self.trainer is None:
            self._epochs_by_hand += 1
            return self._epochs_by_hand - 1, 0
        now = self.now
        return now.epoch, now.position

    def _side(self, epoch: int, position: int) -> int | None:
        """The side of the images of the global batch at a position, by how much of the run stands before it."""
        if not self.sizes.stages or self.trainer is None:
            return None
        done = epoch * self.steps_per_epoch + position // (self._global_batch * self.batches_per_step)
        return self.sizes.side_at(
            done, self.steps_per_epoch, max_steps=self.trainer.max_steps, max_epochs=self.trainer.max_epochs
        )


class _ResumableLoader(PairLoader):
    """Training batches whose place Lightning keeps in its checkpoints, whatever the data module's class is called."""

    def __init__(self, module: PairDataModule, spans: TrainSpans) -> None:
        super().__init__(module.train_stream, spans, module.num_workers)
        self.state_dict = module.state_dict
        self.load_state_dict = module.load_state_dict


def _require(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ConfigError(f"{name} cannot be {value}", allowed=allowed)


def _require_columns(source: RowSource, wanted: tuple[str, ...]) -> None:
    read = source.also if isinstance(source, Lake) else ()
    if wanted and wanted != read:
        raise ConfigError(
            f"rows of {source.path} are to be told alike by {', '.join(wanted)}",
            found=f"read with {', '.join(read) or 'no column but the pairs'}",
            next_step=f"open_lake(path, also={list(wanted)!r})",
        )


def _no_pairs(source: RowSource) -> DataError:
    left_out = source.total_rows if isinstance(source, Lake) else 0
    if not left_out:
        return DataError(f"there are no pairs in {source.path}", found="0 rows")
    query = f" for which {source.query}" if isinstance(source, Lake) and source.query else " that can be used"
    addresses = ""
    if isinstance(source, Lake) and UNUSABLE in source.columns and not source.query:
        addresses = f"lakeclip ingest --download {source.path} fetches the images of rows that have only an address"
    return DataError(
        f"there are no pairs in {source.path}", found=f"0 of {left_out:,} rows{query}", next_step=addresses
    )
