"""The data modules that train-CLIP's users know, under the names and arguments that they have always had."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.sources.folder import open_folder
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.types import Tokenize


class DeepLakeDataModule(PairDataModule):
    """Pairs from a Deep Lake dataset.

    Shuffled unless told otherwise: in the order in which they were crawled, neighbours are alike and batches too easy.

    Args:
        path: the dataset: a folder, `s3://…`, `hub://…`.
        token: for `hub://`; better in the environment as ACTIVELOOP_TOKEN. It is not kept.
        batch_size: pairs per device and step.
        filter_NSFW: keep the rows whose NSFW column says 'UNLIKELY', and nothing else besides.
        query: keep the rows for which this WHERE clause of a Deep Lake query holds, or those of a SELECT.
        custom_tokenizer: a Hugging Face tokenizer, or any function from captions to ids; CLIP's by default.
        num_workers: processes that read and decode, per device.
        image_size: side of the square that the model takes, in pixels.
        resize_ratio: smallest share of the largest square's area that the random crop may keep.
        shuffle: visit the rows in a new order each epoch.
        seed: of the order, the crops and the captions.
        val_fraction: share of the rows to hold out for validation.
        image_column: column with the encoded images; found by default.
        caption_column: column with the captions; found by default.

    Raises:
        LakeError: the dataset cannot be opened, the query is wrong, or a column is missing.
        ConfigError: a value that cannot work, alone or with this data.
    """

    def __init__(
        self,
        path: str,
        token: str | None = None,
        batch_size: int = 64,
        filter_NSFW: bool = False,  # noqa: N803 - the seed's name
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
            tokenize=_as_tokenize(custom_tokenizer),
        )

    @classmethod
    def from_argparse_args(cls, args: object, **kwargs: object) -> NoReturn:
        """Gone from Lightning 2.

        Raises:
            ConfigError: always, with the call to write instead.
        """
        raise _no_argparse(cls.__name__, "path=args.path")


class TextImageDataModule(PairDataModule):
    """Pairs from a folder: images and .txt captions (one a line) that share a stem, anywhere below it.

    Shuffled unless told otherwise: in a folder's order, neighbours are alike and batches too easy.

    Args:
        folder: the folder.
        batch_size: pairs per device and step.
        num_workers: processes that read and decode, per device.
        image_size: side of the square that the model takes, in pixels.
        resize_ratio: smallest share of the largest square's area that the random crop may keep.
        shuffle: visit the pairs in a new order each epoch.
        custom_tokenizer: a Hugging Face tokenizer, or any function from captions to ids; CLIP's by default.
        seed: of the order, the crops and the captions.
        val_fraction: share of the pairs to hold out for validation.

    Raises:
        SourceError: there is no pair in the folder.
        ConfigError: a value that cannot work, alone or with this data.
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
            tokenize=_as_tokenize(custom_tokenizer),
        )

    @classmethod
    def from_argparse_args(cls, args: object, **kwargs: object) -> NoReturn:
        """Gone from Lightning 2.

        Raises:
            ConfigError: always, with the call to write instead.
        """
        raise _no_argparse(cls.__name__, "folder=args.folder")


def _as_tokenize(tokenizer: Any) -> Tokenize | None:
    if tokenizer is None:
        return None
    from transformers import PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return HuggingFaceTokenizer(tokenizer)
    if not callable(tokenizer):
        raise ConfigError(
            "the custom tokenizer cannot be used",
            found=type(tokenizer).__name__,
            allowed="a Hugging Face tokenizer, or a function from a list of captions to a tensor of ids",
        )
    tokenize: Tokenize = tokenizer
    return tokenize


def _no_argparse(name: str, first: str) -> ConfigError:
    return ConfigError(
        f"{name}.from_argparse_args is gone: Lightning 2 does not have it",
        next_step=f"{name}({first}, batch_size=args.batch_size, num_workers=args.num_workers)",
    )
