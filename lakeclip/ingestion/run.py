"""Ingest sources into a lake: validate every image, write the usable samples, and report the others."""

from __future__ import annotations

import os
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import cast, get_args

from lakeclip.errors import ConfigError
from lakeclip.ingestion.dedup import DeduplicatedSource, ExistingRows, OnChange
from lakeclip.ingestion.download import DownloadOptions, Downloads
from lakeclip.ingestion.fill_images import fill_images
from lakeclip.ingestion.limits import unstorable_reason
from lakeclip.ingestion.progress import ProgressBar
from lakeclip.ingestion.result import IngestResult
from lakeclip.ingestion.sources.base import Account, Source, account_of, notes_of
from lakeclip.ingestion.sources.open import open_sources
from lakeclip.ingestion.state import base_names, completed_parts
from lakeclip.ingestion.target import check_target, clear_target, remove_lake
from lakeclip.ingestion.validate import validate_samples
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake import engine
from lakeclip.lake.folder.records import Rejected


def ingest(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    lake: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    append: bool = False,
    on_change: str = "update",
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    query: str | None = None,
    caption_template: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    download: bool | DownloadOptions = False,
    progress: bool | None = None,
) -> IngestResult:
    """Ingest image-caption pairs into a lake, as `lakeclip ingest` does.

    Images are kept byte for byte. An interrupted ingest resumes if it is called again with the same sources: every
    sample becomes exactly one row.

        result = lakeclip.ingest(["photos/", "train-{0000..0003}.tar"], "pairs.lake")
        print(result.rows, result.reasons)

    Args:
        sources: folders of images and captions, WebDataset tar files, tables, other lakes, or data of a format that was
            registered with `register_source`; wildcards and ranges such as `train-{0000..0003}.tar` are expanded.
            Empty, together with `download`: download the images that the lake lacks, including failed ones.
        lake: folder or URL of the lake.
        overwrite: replace an existing lake, once the first usable sample has been found. Anything that is not a lake is
            never overwritten.
        append: add the samples that an existing lake does not hold yet, and update those that have changed.
        on_change: what to do with samples that have changed since they were ingested: "update" stores them in their
            rows, "keep" leaves the rows as they are and reports them, "add" adds further rows.
        image_column: column of tables and lakes with the images, their URLs or their file names; inferred by default.
        caption_column: column of tables and lakes, or key of JSON, with the captions; several names give several
            captions per image, in this order. Inferred by default.
        query: WHERE clause that selects rows of lakes, such as `width > 200`.
        caption_template: caption with names of columns or keys in braces, such as `a photo of a {label}`.
        encoding: encoding of text files, such as `gb18030`; detected by default.
        delimiter: separator of the columns of CSV files, one character; detected by default.
        image_root: folder that file names of images in tables are relative to; by default that of the table.
        download: download the images of samples that have only a URL; `DownloadOptions` sets limits.
        progress: whether to show a progress bar on stderr; by default only if it is a terminal.

    Returns:
        Number of rows added, and what was rejected or ignored, with reasons.

    Raises:
        ConfigError: the arguments contradict one another.
        SourceError: a source is missing, or none contains a usable sample; an existing lake is then left unchanged.
        LakeError: the lake exists already, or its path holds something else.
        OutputError: the lake cannot be written, or the disk is full. What has been committed stays.
    """
    if on_change not in get_args(OnChange):
        raise ConfigError(
            "on_change says what to do with samples that have changed",
            found=repr(on_change),
            allowed=", ".join(map(repr, get_args(OnChange))),
        )
    names = [os.fspath(name) for name in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    path = os.fspath(lake)
    options = DownloadOptions() if download is True else download or None
    if not names and options is not None:
        if overwrite or append or caption_column or caption_template or encoding or delimiter or image_root:
            raise ConfigError(
                "overwrite, append and options for reading need a source",
                found=f"only the lake {path}, whose missing images are to be downloaded",
            )
        return fill_images(path, options, query=query, url_column=image_column, progress=progress)
    check_target(path, names, overwrite=overwrite, append=append)
    reading = {
        "image_column": image_column,
        "caption_column": caption_column,
        "query": query,
        "caption_template": caption_template,
        "encoding": encoding,
        "delimiter": delimiter,
        "image_root": os.fspath(image_root) if image_root is not None else None,
    }
    opened = open_sources(names, **reading)  # type: ignore[arg-type]
    chosen = {name: value for name, value in reading.items() if value is not None}
    return fill_lake(
        opened,
        path,
        overwrite=overwrite,
        append=append,
        on_change=cast(OnChange, on_change),
        download=options,
        progress=progress,
        reads_all=query is None,
        reading=zlib.crc32(repr(chosen).encode("utf-8", "replace")) if chosen else 0,
    )


def fill_lake(
    sources: Sequence[Source],
    lake: str,
    *,
    overwrite: bool = False,
    append: bool = False,
    on_change: OnChange = "update",
    download: DownloadOptions | None = None,
    progress: bool | None = None,
    reads_all: bool = True,
    reading: int = 0,
) -> IngestResult:
    """Write opened sources into a new lake, or into the lake that an interrupted ingest of the same sources left.

    Every sample becomes one row, however often this is called: samples that the lake holds are skipped.

    Args:
        sources: sources of the samples.
        lake: folder or URL of the lake; see `check_target`.
        overwrite: replace an existing lake, once the first usable sample has been found.
        append: add the samples that an existing lake does not hold yet.
        on_change: what to do with samples of which the lake holds an earlier version.
        download: download the images of samples that have only a URL.
        progress: whether to show a progress bar; by default only if stderr is a terminal.
        reads_all: whether the sources yield all that they have, so that other rows of theirs are no longer in them.
        reading: number that stands for the options of the sources; a file that was read with others is read again.

    Raises:
        AccountError: something that was read was neither stored nor left out with a reason.
        SourceError: there is no usable sample; no lake is created then.
        LakeError: see `check_target`.
        OutputError: the lake cannot be written. What has been committed stays, and the message says how much.
        KeyboardInterrupt: the same, after Ctrl-C.
    """
    path = engine.normalize_path(lake)
    resumes = check_target(lake, overwrite=overwrite, append=append, names=base_names(sources))
    result = IngestResult(path, [source.name for source in sources])
    started = time.perf_counter()
    writer: LakeWriter | None = None
    deduplicated: list[DeduplicatedSource] = []
    downloads: list[Downloads] = []
    try:
        existing = ExistingRows()
        if resumes:
            writer = LakeWriter(path, existing=True)
            dataset = engine.open_dataset(path)
            result.rows_before = len(dataset)
            existing = ExistingRows(dataset, writer.paths, writer.rows_before)
        update = writer.update if writer is not None else None
        deduplicated = [
            DeduplicatedSource(source, existing, on_change, update, reads_all=reads_all) for source in sources
        ]
        readers: Sequence[Source] = deduplicated
        if writer is not None:
            writer.paths = existing.names.paths
            writer.start(sources)
            completed = {(part, fingerprint ^ reading) for part, fingerprint in completed_parts(dataset)}
            for reader in deduplicated:
                reader.skip_parts(completed)
        if download is not None:
            readers = downloads = [Downloads(source, download) for source in readers]
        # Pillow's warnings about odd files are redundant: the result lists every file that cannot be used.
        with warnings.catch_warnings(), ProgressBar(readers, progress) as bar:
            warnings.simplefilter("ignore")
            current_part = ""
            recorded: set[str] = set()
            for part, item, info in validate_samples(readers):
                if isinstance(item, Rejected):
                    result.add_rejected(item)
                    continue
                assert info is not None, "only rejected items have no ImageInfo"
                if reason := unstorable_reason(item, info, part):
                    result.add_rejected(Rejected(f"{part}: {item.key}"[:300] if part else item.key[:300], reason))
                    continue
                if writer is None:
                    clear_target(path, overwrite=overwrite)
                    writer = LakeWriter(path)
                    writer.paths = existing.names.paths
                    writer.start(sources)
                if part != current_part:
                    _complete_parts(writer, deduplicated, recorded, reading, current_part)
                    current_part = part
                if item.replaces is None:
                    writer.append(item, info, part)
                    result.rows += 1
                    result.without_caption += not item.captions
                else:
                    writer.update(item.replaces, item, info)
                    result.updated += 1
                    result.updated_images += 1
                if item.unusable:
                    result.add_unusable(item.unusable)
                bar.update(result.rows)
        if writer is not None:
            _complete_parts(writer, deduplicated, recorded, reading)
            writer.close(sources)
    except BaseException as error:
        if writer is not None:
            writer.abandon()
        if writer is not None and not writer.rows and not resumes:
            remove_lake(path)
        elif writer is not None and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{path} holds {writer.rows:,} rows; run the same command to resume") from None
        raise
    for source in sources:
        result.collisions += source.collisions
        result.ignored += source.ignored
        account_of(source).check(source.name)
        result.account.add(account_of(source))
        result.notes += notes_of(source)
        if source.mapping:
            result.mapping[source.name] = source.mapping
    for finished in downloads:
        result.add_downloads(finished.num_fetched, finished.num_failed)
    _add_outcomes(result, deduplicated)
    if reads_all:
        result.removed += existing.count_gone(
            {folder for source in sources for folder in getattr(source, "folders", ())}
        )
    result.seconds = time.perf_counter() - started
    if writer is None:
        raise result.no_rows_error()
    result.columns = writer.columns
    result.changed, result.renamed = writer.changed, writer.renamed
    return result


def _complete_parts(
    writer: LakeWriter, sources: Sequence[Source], recorded: set[str], reading: int, part: str | None = None
) -> None:
    """Record that all samples of a part, or of all parts, have been written, if a source has read them to the end."""
    for source in sources:
        for name, fingerprint in source.completed:
            if name not in recorded and part in (None, name):
                writer.complete_part(name, fingerprint ^ reading)
                recorded.add(name)


def _add_outcomes(result: IngestResult, sources: Sequence[DeduplicatedSource]) -> None:
    """Add what became of the samples to the result, and check that this is all of them."""
    result.updated += sum(source.num_updated for source in sources)
    result.known = sum(source.num_known for source in sources)
    result.elsewhere = sum(source.num_elsewhere for source in sources)
    result.removed = sum(source.num_removed for source in sources)
    for source in sources:
        result.moved |= source.moved
    account = Account()
    account.add_read("samples", sum(source.num_samples for source in sources))
    account.add_used("samples", result.rows + result.updated)
    account.add_left_out("samples", "in the lake already", result.known)
    by_sources = sum((source.source_reasons for source in sources), Counter[str]())
    for reason, count in (result.reasons - by_sources).items():
        account.add_left_out("samples", reason, count)
    account.check(", ".join(result.sources))
    result.account.add(account)
