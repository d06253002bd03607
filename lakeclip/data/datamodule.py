"""Serve image–text pairs from a Deep Lake dataset or a folder to Lightning, sharded and shuffled.

Training resumes at the exact sample. On a resume Lightning restores its own counters but skips no data, so the loaders
here begin where the earlier steps ended.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _ProcessedTracker

from lakeclip.config.schema import check_setting
from lakeclip.data.image_size_schedule import parse_image_size_schedule
from lakeclip.data.order import Order
from lakeclip.data.plan import SourcePlan, all_rows, make_plans
from lakeclip.data.position import DataPosition
from lakeclip.data.stream import EvalSampler, PairLoader, PairStream, Span, TrainSampler
from lakeclip.data.transforms import EvalTransform, Interpolation, ResizeMode, TrainTransform
from lakeclip.data.workers import worker_context
from lakeclip.errors import ConfigError, DataError
from lakeclip.lake.pairs import extra_columns
from lakeclip.lake.rows import RowSource
from lakeclip.lake.schema import UNUSABLE
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Batch, Tokenize

_log = logging.getLogger(__name__)


class PairDataModule(L.LightningDataModule):
    """LightningDataModule that yields batches of image–text pairs, each a `lakeclip.types.Batch` with uint8 images.

    Training batches are full on every rank and in a new order each epoch. If a row has several captions, each epoch
    draws one of them. Validation visits every row once, and all ranks have the same number of batches.

    Args:
        source: source of the pairs, e.g. `lakeclip.open_lake(path)`.
        batch_size: pairs per device and batch.
        image_size: side of the model's square input, in pixels.
        small_images: image sizes for the first stages of a run, such as "112:0.6"; see `parse_image_size_schedule`.
        resize_ratio: smallest share of the largest square's area that the random crop may keep.
        shuffle: False to visit the rows in their stored order.
        num_workers: processes that read and decode, per device; 0 to do it in the training process.
        seed: seed of the order, the crops and the captions.
        val_source: pairs to validate on.
        val_fraction: share of `source` to hold out for validation if there is no `val_source`.
        max_val_rows: upper limit on the rows to validate on, a fixed random sample.
        same_by: properties that make two pairs positives of each other: `image`, `caption`, or columns that the sources
            read with each row (`open_lake(path, extra_columns=…)`).
        tokenize: function from captions to token ids; CLIP's tokenizer by default.
        batches_per_step: batches whose gradients are accumulated. An epoch has whole steps only.
        resize_mode, interpolation: how images are brought to size (see `EvalTransform`).

    Raises:
        ConfigError: a value is invalid, alone or with this data.
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
        batches_per_step: int = 1,
        resize_mode: ResizeMode = "shortest",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        check_setting("batch_size", batch_size, batch_size >= 1, "1 or more")
        check_setting("image_size", image_size, image_size >= 1, "1 or more")
        check_setting("resize_ratio", resize_ratio, 0 < resize_ratio <= 1, "above 0 and at most 1")
        check_setting("num_workers", num_workers, num_workers >= 0, "0 or more")
        check_setting("val_fraction", val_fraction, 0 <= val_fraction < 1, "at least 0 (none) and below 1")
        check_setting("batches_per_step", batches_per_step, batches_per_step >= 1, "1 or more")
        check_setting(
            "max_val_rows", max_val_rows, max_val_rows is None or max_val_rows >= 1, "1 or more, or None for all"
        )
        for pairs in (source, val_source):
            for part in pairs.parts if pairs is not None else []:
                if len(part) == 0:
                    raise _no_pairs(part)
                _require_columns(part, extra_columns(same_by))
        self.source = source
        self.val_source = val_source
        self.batch_size = batch_size
        self.image_size = image_size
        self.num_workers = num_workers
        if num_workers:
            worker_context()  # starts the server of the workers now: it imports while the model is built
        self.batches_per_step = batches_per_step
        self.image_sizes = parse_image_size_schedule(small_images, image_size)
        self.tokenize = tokenize or Tokenizer()

        train_plan, held_out = make_plans(source, 0.0 if val_source else val_fraction, seed=seed, shuffle=shuffle)
        self.train_stream = PairStream(
            source, train_plan, TrainTransform(image_size, resize_ratio, interpolation), self.tokenize, same_by
        )
        self.eval_transform = EvalTransform(image_size, resize_mode, interpolation)
        if val_source is not None:
            held_out = all_rows(val_source)
        # Shuffle once, so that each batch is mixed and the first `max_val_rows` are representative.
        val_plan = SourcePlan(held_out, Order(len(held_out), seed=0))
        self.val_stream = PairStream(val_source or source, val_plan, self.eval_transform, self.tokenize, same_by)
        self.num_val_rows = min(len(held_out), max_val_rows or len(held_out))
        if not self.has_validation:
            # If this method is overridden, Lightning expects data and warns about an empty loader.
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self._start_position = DataPosition()
        self._epochs_without_trainer = 0

    # ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_train_rows(self) -> int:
        """Rows to train on, without those held out."""
        return len(self.train_stream)

    @property
    def has_validation(self) -> bool:
        """True if there are rows to validate on."""
        return self.num_val_rows > 0

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch on the devices of the attached trainer (one device if there is no trainer)."""
        return self.num_train_rows // self.samples_per_step

    @property
    def samples_per_step(self) -> int:
        """Pairs of a step, over all devices and accumulated batches."""
        return self._global_batch * self.batches_per_step

    @property
    def max_steps_per_epoch(self) -> int:
        """Steps after which an epoch ends: all of them, or fewer by the trainer's `limit_train_batches`."""
        batches = self.steps_per_epoch * self.batches_per_step
        limit = self.trainer.limit_train_batches if self.trainer else None
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return batches // self.batches_per_step

    @property
    def samples_seen(self) -> int:
        """Pairs trained on so far, over all devices and epochs."""
        return self.data_position.samples_seen

    @property
    def data_position(self) -> DataPosition:
        """Current position in the data: the start position advanced by the trainer's steps."""
        if self.trainer is None:
            return self._start_position
        # Our own modules accumulate by themselves: a step takes all of its batches or none, so they count as one batch.
        # Lightning accumulates only for modules with automatic optimisation. Then `batches_per_step` is 1 here, and an
        # epoch's last step may have fewer of Lightning's batches.
        return self._start_position.advance_to(
            self.trainer.global_step,
            num_rows=self.num_train_rows,
            global_batch=self.samples_per_step,
            max_batches=self.max_steps_per_epoch,
            batches_per_step=self.trainer.accumulate_grad_batches,
        )

    @property
    def start_position(self) -> DataPosition:
        """Position in the data at which this segment of the run began."""
        return self._start_position

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
        """Check before training that rows can be read and that they fill the batches of all devices.

        Raises:
            DataError: the source has no usable images or captions.
            ConfigError: the global batch is larger than the data, or some device would have no validation rows.
        """
        for stream in (self.train_stream, self.val_stream):
            if len(stream):
                stream[Span(0, 0, 1)]
        if stage in ("fit", None):
            self._start_position = DataPosition()
            self._require_full_batch()
        if 0 < self.num_val_rows < self._world_size:
            raise ConfigError(
                f"{self.num_val_rows} validation rows are too few for {self._world_size} devices",
                allowed="at least one row for each device",
                next_step="hold out more rows, or none",
            )

    def set_quarantine_file(self, file: Path) -> None:
        """Append unusable rows to a file from now on (see `Quarantine`)."""
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
            next_step=f"--batch-size {rows // (world * steps)}" if rows >= world * steps else "",
        )

    def train_dataloader(self) -> PairLoader:
        """Return a loader whose first iteration begins at the current position; each later one is the next epoch."""
        self._require_full_batch()
        self._begin_epoch()
        sampler = TrainSampler(
            self.train_stream,
            self.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            start_position=self._next_position,
            batches_per_step=self.batches_per_step,
            image_size_at=self._image_size_at,
        )
        return _ResumableLoader(self, sampler)

    def val_dataloader(self) -> PairLoader:
        """Return a loader of this rank's share of the validation rows.

        Without validation rows the constructor restores Lightning's own method, and Lightning skips validation.
        """
        sampler = EvalSampler(
            self.val_stream, self.num_val_rows, self.batch_size, rank=self._rank, world_size=self._world_size
        )
        return PairLoader(self.val_stream, sampler, self.num_workers)

    def test_dataloader(self) -> PairLoader:
        """Return the loader of the validation rows, for `Trainer.test`.

        Raises:
            ConfigError: no rows are held out.
        """
        if not self.has_validation:
            raise ConfigError(
                f"there are no rows to test on in {self.source.path}",
                found="no rows held out from training",
                allowed="the rows to validate on, or a dataloader of your own",
                next_step="val_fraction=0.1, or val_source=lakeclip.open_lake(PATH)",
            )
        return self.val_dataloader()

    def predict_dataloader(self) -> Iterable[Batch]:
        """Return a loader of this rank's share of all rows of `source` in their stored order, for `Trainer.predict`.

        An unusable row is replaced by another one, whose number its batch then names.
        """
        rows = all_rows(self.source)
        plan = SourcePlan(rows, Order(len(rows), seed=0, shuffle=False))
        stream = PairStream(self.source, plan, self.eval_transform, self.tokenize)
        sampler = EvalSampler(stream, len(rows), self.batch_size, rank=self._rank, world_size=self._world_size)
        return _Batches(PairLoader(stream, sampler, self.num_workers))

    def full_val_dataloader(self) -> PairLoader:
        """Return a loader of all validation rows in this process, whatever the run's world size."""
        sampler = EvalSampler(self.val_stream, self.num_val_rows, self.batch_size, rank=0, world_size=1)
        return PairLoader(self.val_stream, sampler, 0)

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data for a checkpoint, as plain numbers."""
        position = self.data_position
        return {
            "step": position.step,
            "epoch": position.epoch,
            "position": position.position,
            "samples_seen": position.samples_seen,
            "num_rows": self.num_train_rows,
            "plan": self.train_stream.plan.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint's state, also with another batch size or number of devices.

        If the rows or their order have changed, the saved position is meaningless: log a warning and begin a new epoch.
        """
        start = DataPosition(**{name: state_dict[name] for name in ("step", "epoch", "position", "samples_seen")})
        if state_dict.get("plan") != self.train_stream.plan.fingerprint and start.position:
            stopped, start = start.position, DataPosition(start.step, start.epoch + 1, 0, start.samples_seen)
            if start != self._start_position:  # the loader's state, which is loaded too, is the same
                _log.warning(
                    "the checkpoint stopped %d of %d rows into an epoch, but the data (%d rows now), its weights, the "
                    "seed or the shuffling has changed; a new epoch begins",
                    stopped,
                    state_dict["num_rows"],
                    self.num_train_rows,
                )
        self._start_position = start

    def _begin_epoch(self) -> None:
        """Make Lightning begin an epoch if it resumes at the end of one.

        With `max_steps` it would continue the epoch that is over, with the first batch of the next.
        """
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return
        epochs = self.trainer.fit_loop.epoch_progress.current
        assert isinstance(epochs, _ProcessedTracker)
        if self.data_position.position == 0 and epochs.started == epochs.processed:
            _Loop.restarting.fset(self.trainer.fit_loop, False)  # type: ignore[attr-defined]

    def _next_position(self) -> tuple[int, int]:
        """Return the epoch and position at which an iteration that begins now has to start."""
        if self.trainer is None:
            self._epochs_without_trainer += 1
            return self._epochs_without_trainer - 1, 0
        position = self.data_position
        return position.epoch, position.position

    def _image_size_at(self, epoch: int, position: int) -> int | None:
        """Return the image size of the global batch at a position; None for the model's own."""
        if not self.image_sizes.stages or self.trainer is None:
            return None
        step = self._start_position.step_at(
            epoch,
            position,
            num_rows=self.num_train_rows,
            samples_per_step=self.samples_per_step,
            max_steps_per_epoch=self.max_steps_per_epoch,
        )
        total = getattr(self.trainer.lightning_module, "total_steps", None)
        if isinstance(total, int):
            return self.image_sizes.size_at(step / total)
        return self.image_sizes.size_at_step(
            step, self.steps_per_epoch, max_steps=self.trainer.max_steps, max_epochs=self.trainer.max_epochs
        )


class _Batches:
    """Iterable of a loader's batches. Lightning replaces the sampler of a `DataLoader` that it predicts on."""

    def __init__(self, loader: PairLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


class _ResumableLoader(PairLoader):
    """Stateful loader of training batches: Lightning saves and restores its position in checkpoints.

    Lightning keys a data module's own state by its class name, so a subclass could not load it.
    """

    def __init__(self, module: PairDataModule, sampler: TrainSampler) -> None:
        super().__init__(module.train_stream, sampler, module.num_workers)
        self.state_dict = module.state_dict
        self.load_state_dict = module.load_state_dict


def _require_columns(source: RowSource, columns: tuple[str, ...]) -> None:
    if columns and columns != source.extra_columns:
        raise ConfigError(
            f"rows of {source.path} cannot be grouped by {', '.join(columns)}",
            found=f"read with {', '.join(source.extra_columns) or 'no columns besides images and captions'}",
            next_step=f"open_lake(path, extra_columns={list(columns)!r})",
        )


def _no_pairs(source: RowSource) -> DataError:
    if not source.num_total_rows:
        return DataError(f"there are no pairs in {source.path}", found="0 rows")
    query = f" for which {source.query}" if source.query else " that can be used"
    addresses = ""
    if UNUSABLE in source.columns and not source.query:
        addresses = f"lakeclip ingest --download {source.path} fetches the images of rows that have only an address"
    return DataError(
        f"there are no pairs in {source.path}", found=f"0 of {source.num_total_rows:,} rows{query}", next_step=addresses
    )
