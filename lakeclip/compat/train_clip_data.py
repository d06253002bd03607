"""Provide train-CLIP's data modules under their original names and arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.folder.source import open_folder
from lakeclip.text.custom import as_tokenize


class DeepLakeDataModule(PairDataModule):
    """PairDataModule that reads a Deep Lake dataset.

    Rows are shuffled by default: in the order in which they were crawled, neighbours are similar and batches too easy.

    Args:
        path: path of the dataset: a folder, `s3://…` or `hub://…`.
        token: token for `hub://`; better set ACTIVELOOP_TOKEN in the environment. It is not stored.
        batch_size: pairs per device and batch.
        filter_NSFW: keep only the rows whose NSFW column is 'UNLIKELY'.
        query: a WHERE clause of a Deep Lake query that rows must satisfy, or a SELECT that returns them.
        custom_tokenizer: a Hugging Face tokenizer or any function from captions to token ids; CLIP's by default.
        num_workers: processes that read and decode, per device.
        image_size: side of the model's square input, in pixels.
        resize_ratio: smallest share of the largest square's area that the random crop may keep.
        shuffle: visit the rows in a new order each epoch.
        seed: seed of the order, the crops and the captions.
        val_fraction: share of the rows to hold out for validation.
        image_column: column of the encoded images; inferred by default.
        caption_column: column of the captions; inferred by default.

    Raises:
        LakeError: the dataset cannot be opened, the query is wrong, or a column is missing.
        ConfigError: a value is invalid, alone or with this data.
    """

    def __init__(
        self,
        path: str,
        token: str | None = None,
        batch_size: int = 64,
        filter_NSFW: bool = False,  # noqa: N803 - train-CLIP's name
        query: str | None = None,
        custom_tokenizer: Any = None,
        num_workers: int = 0,
        image_size: int = 224,
        resize_ratio: float = 0.75,
        shuffle: bool = True,
        seed: int = 0,
        val_fraction: float = 0.0,
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        super().__init__(
            open_lake(
                path,
                query,
                token=token,
                image_column=image_column,
                caption_column=caption_column,
                filter_nsfw=filter_NSFW,
            ),
            batch_size=batch_size,
            image_size=image_size,
            resize_ratio=resize_ratio,
            shuffle=shuffle,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            tokenize=as_tokenize(custom_tokenizer),
        )

    @classmethod
    def from_argparse_args(cls, args: object, **kwargs: object) -> NoReturn:
        """Raise an error that names the replacement; Lightning 2 has no `from_argparse_args`.

        Raises:
            ConfigError: always.
        """
        raise _no_argparse(cls.__name__, "path=args.path")


class TextImageDataModule(PairDataModule):
    """PairDataModule that reads a folder: images and .txt files (a caption per line) with the same stem, at any depth.

    Pairs are shuffled by default: in a folder's order, neighbours are similar and batches too easy.

    Args:
        folder: path of the folder.
        batch_size: pairs per device and batch.
        num_workers: processes that read and decode, per device.
        image_size: side of the model's square input, in pixels.
        resize_ratio: smallest share of the largest square's area that the random crop may keep.
        shuffle: visit the pairs in a new order each epoch.
        custom_tokenizer: a Hugging Face tokenizer or any function from captions to token ids; CLIP's by default.
        seed: seed of the order, the crops and the captions.
        val_fraction: share of the pairs to hold out for validation.

    Raises:
        SourceError: the folder has no pairs.
        ConfigError: a value is invalid, alone or with this data.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 64,
        num_workers: int = 0,
        image_size: int = 224,
        resize_ratio: float = 0.75,
        shuffle: bool = True,
        custom_tokenizer: Any = None,
        seed: int = 0,
        val_fraction: float = 0.0,
    ) -> None:
        super().__init__(
            open_folder(folder),
            batch_size=batch_size,
            image_size=image_size,
            resize_ratio=resize_ratio,
            shuffle=shuffle,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            tokenize=as_tokenize(custom_tokenizer),
        )

    @classmethod
    def from_argparse_args(cls, args: object, **kwargs: object) -> NoReturn:
        """Raise an error that names the replacement; Lightning 2 has no `from_argparse_args`.

        Raises:
            ConfigError: always.
        """
        raise _no_argparse(cls.__name__, "folder=args.folder")


def _no_argparse(name: str, first_argument: str) -> ConfigError:
    return ConfigError(
        f"{name}.from_argparse_args was removed: Lightning 2 does not have it",
        next_step=f"{name}({first_argument}, batch_size=args.batch_size, num_workers=args.num_workers)",
    )
