"""Checks of a run's data before its first step: batches and captions from which nothing can be learned.

A contrastive loss compares each pair with the others of its batch. It is 0 in a batch of one, and it cannot fall if the
others have the same image or the same caption. A small sample of the rows shows that before the run, and the other
things that make a run useless: captions that are all too long, or in a script that the tokenizer splits into bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lakeclip.config.command import format_command
from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import DataError, ImageError, InputWarning
from lakeclip.lake.rows import Row
from lakeclip.losses.registry import check_batch_size, find_loss
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Tokenize

#: Rows of the sample. Of a remote lake fewer are fetched, which warn but refuse nothing.
_SAMPLE, _REMOTE_SAMPLE = 64, 16
#: Rows whose images are in memory at once, and images that are decoded.
_ROWS_AT_ONCE = 8
_NUM_DECODED = 8
_CAPTIONS_PER_ROW = 5
#: Share of ln(batch) below which repeated images or captions do not let the loss fall.
_HIGH_FLOOR = 0.5
#: Fewer pairs, from scratch: 400 photos leave the loss at ln(batch).
_FEW_PAIRS = 1000
#: Fewer validation rows: even R@10 among them is near 100% for any model.
_FEW_VALIDATION_ROWS = 10
_MANY = 0.9
#: CLIP's tokenizer gives 0.3 to 0.6 tokens a letter in the languages that it knows, and 1 to 2.5 in others.
_TOKENS_PER_LETTER = 1.0
_EXAMPLE_BATCH = 128


@dataclass(frozen=True)
class PairSample:
    """Statistics of a sample of the training rows.

    Attributes:
        num_rows: rows in the sample.
        is_decisive: the sample is large enough, or has all rows, so that what holds for all of it is refused.
        same_images, same_captions: probability that two rows have the same image (bytes), or the same token ids.
        looks_alike: the decoded images all have the same pixels.
        constant_columns: columns of --same-by with one value.
        empty: share of rows whose caption has no tokens.
        truncated: share of rows whose caption is longer than the context; 0 if unknown.
        tokens_per_letter: tokens per letter that is not ASCII; 0 if there are few such letters.
    """

    num_rows: int
    is_decisive: bool
    same_images: float = 0.0
    same_captions: float = 0.0
    looks_alike: bool = False
    constant_columns: tuple[str, ...] = ()
    empty: float = 0.0
    truncated: float = 0.0
    tokens_per_letter: float = 0.0


def check_data(
    config: TrainConfig | FinetuneConfig, datamodule: PairDataModule, *, world_size: int
) -> list[InputWarning]:
    """Check a run's batches and data before it is built.

    Args:
        datamodule: of the run, after `setup("fit")`.
        world_size: number of devices over which a batch is compared.

    Returns:
        Warnings for the user.

    Raises:
        ConfigError: a batch has no other pair to compare with.
        DataError: all images, all captions or all values of --same-by are the same.
    """
    check_batch(config, world_size=world_size, num_rows=datamodule.num_train_rows)
    sample = sample_pairs(datamodule)
    global_batch = config.data.batch_size * world_size
    check_sample(sample, datamodule.source.path)
    return [
        *few_rows_warnings(datamodule.num_train_rows, is_pretrained=isinstance(config, FinetuneConfig)),
        *sample_warnings(sample, global_batch, config.data.same_by),
        *validation_warnings(datamodule.num_val_rows, datamodule.num_train_rows, config.data.batch_size),
        *worker_warnings(config.data.num_workers, datamodule.num_train_rows // global_batch),
    ]


def check_batch(config: TrainConfig | FinetuneConfig, *, world_size: int, num_rows: int) -> None:
    """Raise if the global batch has fewer pairs than the loss can learn from."""
    objective = config.loss.objective if isinstance(config, TrainConfig) else "softmax"
    size, least = config.data.batch_size * world_size, find_loss(objective).min_batch
    if size >= least:
        return
    enough = max(least, min(_EXAMPLE_BATCH, num_rows // (world_size * config.trainer.accumulate)))
    feasible = replace(
        config,
        data=replace(config.data, batch_size=enough),
        trainer=replace(config.trainer, minibatch_size=config.data.batch_size),
    )
    check_batch_size(
        objective,
        size,
        found=f"--batch-size {config.data.batch_size} on {world_size} device{'s' * (world_size > 1)}"
        + (
            f"; --accumulate {config.trainer.accumulate} does not help: each batch is compared within itself"
            if config.trainer.accumulate > 1
            else ""
        ),
        next_step=f"{format_command(feasible)}   (the gradients of {enough} pairs, in the memory of "
        f"{config.data.batch_size})",
    )


# ── the sample ────────────────────────────────────────────────────────────────────────────────────────────────────


def sample_pairs(datamodule: PairDataModule) -> PairSample:
    """Read a sample of the training rows, evenly spread over an epoch, and compute its statistics."""
    source, stream = datamodule.source, datamodule.train_stream
    total = len(stream)
    positions = np.linspace(0, total - 1, min(total, _REMOTE_SAMPLE if source.is_remote else _SAMPLE)).astype(np.int64)
    indices = stream.plan.rows(0, np.unique(positions))
    source.prefetch(indices)
    images: list[int] = []
    is_image: dict[int, bool] = {}
    captions: list[tuple[str, ...]] = []
    extras: list[tuple[object, ...]] = []
    pixels: list[Tensor] = []
    transform = datamodule.eval_transform
    for start in range(0, len(indices), _ROWS_AT_ONCE):
        for row in source.read(indices[start : start + _ROWS_AT_ONCE]):
            if row.damage or not row.image or not row.captions:
                continue  # the run replaces it by another, and lists it
            key = hash(row.image)
            if key in images and key not in is_image:
                is_image[key] = bool(_decode(row, transform))
            images.append(key)
            captions.append(row.captions[:_CAPTIONS_PER_ROW])
            extras.append(row.extras)
            if len(pixels) < _NUM_DECODED:
                pixels += _decode(row, transform)
    # Rows with one placeholder that is no image, such as a web page, are replaced by others.
    images = [key for key in images if is_image.get(key, True)]
    columns = source.extra_columns
    return PairSample(
        len(captions),
        is_decisive=len(captions) >= min(_SAMPLE, total) and len(images) > 1,
        same_images=_repeats(images),
        same_captions=_repeats(_token_keys(datamodule.tokenize, captions)),
        looks_alike=_look_alike(pixels),
        constant_columns=tuple(
            name for index, name in enumerate(columns) if len({repr(values[index]) for values in extras}) == 1
        ),
        **_lengths(datamodule.tokenize, [text for texts in captions for text in texts]),
    )


def _decode(row: Row, transform: EvalTransform) -> list[Tensor]:
    try:
        return [transform(row.image)]
    except ImageError:
        return []


def _look_alike(pixels: Sequence[Tensor]) -> bool:
    if len(pixels) < 2:
        return False
    return all(torch.equal(pixels[0], other) for other in pixels[1:])


def _repeats(values: Sequence[Hashable]) -> float:
    """Estimate the probability that two different rows have the same value, without the bias of a small sample."""
    num = len(values)
    if num < 2:
        return 0.0
    return sum(count * (count - 1) for count in Counter(values).values()) / (num * (num - 1))


def _token_keys(tokenize: Tokenize, captions: Sequence[tuple[str, ...]]) -> list[Hashable]:
    """Return what the model sees of each row's captions: equal keys for equal token ids."""
    if not captions:
        return []
    ids = tokenize([text for texts in captions for text in texts])
    tensors = [ids] if isinstance(ids, Tensor) else [value for value in ids.values() if isinstance(value, Tensor)]
    keys = iter(zip(*(map(tuple, tensor.tolist()) for tensor in tensors), strict=True))
    return [tuple(next(keys) for _ in texts) for texts in captions]


def _lengths(tokenize: Tokenize, captions: Sequence[str]) -> dict[str, float]:
    """Compute shares that only CLIP's own tokenizer tells: others pad and truncate in ways of their own."""
    if not isinstance(tokenize, Tokenizer) or not captions:
        return {}
    lengths = [len(tokenize.encode(text)) for text in captions]
    foreign = [word for text in captions for word in text.split() if any(_is_foreign(char) for char in word)]
    num_letters = sum(char.isalpha() for word in foreign for char in word)
    all_letters = sum(char.isalpha() for text in captions for char in text)
    return {
        "empty": sum(length == 0 for length in lengths) / len(lengths),
        "truncated": sum(length > tokenize.context_length - 2 for length in lengths) / len(lengths),
        "tokens_per_letter": sum(len(tokenize.encode(word)) for word in foreign) / num_letters
        if num_letters > all_letters / 2
        else 0.0,
    }


def _is_foreign(char: str) -> bool:
    return char.isalpha() and not char.isascii()


def check_sample(sample: PairSample, path: str) -> None:
    """Raise if nothing can be learned from rows like these.

    Raises:
        DataError: all of them have the same image, the same caption, or the same value of --same-by.
    """
    if not sample.is_decisive:
        return
    looked_at = f"{sample.num_rows} rows, spread over the data"
    if sample.same_images == 1 or sample.looks_alike:
        raise DataError(
            f"all images of {path} look the same, so nothing can be learned from them",
            found=f"{looked_at}: " + ("one image" if sample.same_images == 1 else "the same pixels"),
            allowed="images that differ",
            next_step="lakeclip inspect shows rows of a lake; --image-column COLUMN chooses another column",
        )
    if sample.same_captions == 1:
        reason = (
            "no tokens in any caption"
            if sample.empty == 1
            else "one caption, as far as the model reads them"
            if sample.truncated == 1
            else "one caption"
        )
        raise DataError(
            f"all captions of {path} are the same for the model, so the loss cannot fall",
            found=f"{looked_at}: {reason}",
            allowed="captions that tell images apart",
            next_step="--caption-column COLUMN, or --caption-template with columns that differ",
        )
    if sample.constant_columns:
        raise DataError(
            f"--same-by {sample.constant_columns[0]} makes all pairs positives of each other, so the loss cannot fall",
            found=f"{looked_at}: one value of {sample.constant_columns[0]}",
            allowed="a column whose values tell images apart",
            next_step="--same-by without it, or another --query",
        )


# ── warnings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def sample_warnings(sample: PairSample, global_batch: int, same_by: Sequence[str]) -> list[InputWarning]:
    """Return warnings about repeated, truncated, empty and foreign captions, and repeated images."""
    warnings = []
    for what, share in (("caption", sample.same_captions), ("image", sample.same_images)):
        num_same = share * (global_batch - 1)
        floor = math.log1p(num_same)
        if what not in same_by and floor > _HIGH_FLOOR * math.log(max(2, global_batch)):
            warnings.append(
                InputWarning(
                    f"in a batch of {global_batch:,}, a pair shares its {what} with about {num_same:,.0f} others, "
                    f"which count as wrong answers: the loss cannot fall below {floor:.2f} "
                    f"of ln {global_batch:,} = {math.log(global_batch):.2f}",
                    f"--same-by {' '.join([*same_by, what])}, which makes them right answers; or a smaller batch",
                )
            )
    if sample.truncated >= _MANY:
        warnings.append(
            InputWarning(
                f"{sample.truncated:.0%} of the captions are longer than the model's context and cut off",
                "--context-length with finetune --from, shorter captions (--caption-column, --caption-template), or a "
                "model with a longer context_length",
            )
        )
    if 0.1 <= sample.empty < 1:
        warnings.append(
            InputWarning(
                f"{sample.empty:.0%} of the captions have no tokens: the model sees the same empty text",
                "--query for rows with words, or another --caption-column",
            )
        )
    if sample.tokens_per_letter >= _TOKENS_PER_LETTER:
        warnings.append(
            InputWarning(
                "the captions are in a script that CLIP's tokenizer does not know: it splits them into bytes, "
                f"{sample.tokens_per_letter:.1f} tokens a letter, so texts are cut off early",
                "lakeclip finetune --text-encoder hf:NAME with a text model for the captions' language, "
                "which has its own tokenizer",
            )
        )
    return warnings


def few_rows_warnings(num_rows: int, *, is_pretrained: bool) -> list[InputWarning]:
    """Return a warning if there are too few pairs to train from scratch."""
    if is_pretrained or num_rows >= _FEW_PAIRS:
        return []
    return [
        InputWarning(
            f"{num_rows:,} pairs are few for a model from scratch: on photos, expect scores at chance",
            "lakeclip finetune --from NAME starts from a model that knows images and words (`lakeclip weights` lists "
            "names); or train on some thousand pairs",
        )
    ]


def validation_warnings(num_val_rows: int, num_train_rows: int, batch_size: int) -> list[InputWarning]:
    """Return warnings about validation rows that are too few to mean anything."""
    share = min(0.5, math.ceil(20 * 100 / max(1, num_val_rows + num_train_rows)) / 100)
    advice = f"--val-fraction {share:g}, or --val-lake LAKE"
    if num_val_rows == 1:
        return [
            InputWarning(
                "a single row is held out for validation: its loss is 0 and its recall 100% for any model, so that "
                "best.ckpt is not the best",
                advice,
            )
        ]
    if 1 < num_val_rows < _FEW_VALIDATION_ROWS:
        return [
            InputWarning(
                f"only {num_val_rows} rows are held out for validation: guessing finds one of them in "
                f"{1 / num_val_rows:.0%} of cases, so scores on them say little",
                advice,
            )
        ]
    if num_val_rows % batch_size == 1 and 1 < num_val_rows <= 4 * batch_size + 1 and num_val_rows < 200:
        return [
            InputWarning(
                f"the last validation batch has a single pair, whose loss is 0 for any model, in {num_val_rows:,} rows",
                f"--max-val-rows {num_val_rows - 1}",
            )
        ]
    return []


def worker_warnings(num_workers: int, batches_per_epoch: int) -> list[InputWarning]:
    """Return a warning if some loading processes would have no batch to load."""
    default = TrainConfig().data.num_workers
    if num_workers <= max(default, batches_per_epoch):
        return []
    batches = f"{batches_per_epoch:,} batch{'es' * (batches_per_epoch != 1)}"
    return [
        InputWarning(
            f"{num_workers:,} loading processes for an epoch of {batches}: the others start and load nothing",
            f"--num-workers {max(1, min(batches_per_epoch, default))}",
        )
    ]
