"""The one place that imports deeplake, opens its datasets, and says in a user's words why one cannot be opened.

`import deeplake` starts a crash reporter that posts to the vendor when the process ends, and holds the exit up for two
seconds where name look-ups time out; no documented setting stops it. It keeps its state in the temporary folder and
gives up if it cannot write there, so the import, and nothing else, runs with TMPDIR pointing at a folder that takes no
files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lakeclip.errors import LakeError, redacted
from lakeclip.lake import deadline
from lakeclip.lake.trouble import Trouble, explain_trouble, spare_metadata_service, trouble

#: Environment variable that holds the Activeloop token for hub:// and al:// datasets.
TOKEN_VARIABLE = "ACTIVELOOP_TOKEN"  # noqa: S105 a name, not a secret

#: Seconds within which a remote lake has to open. A server that is not there is known to be after 42.
OPEN_SECONDS = 60.0
#: Seconds for a query on a remote lake, which may read whole columns.
QUERY_SECONDS = 600.0

_UNWRITABLE = "/proc/self"
_import_lock = threading.Lock()
_silence = logging.NullHandler()


def deeplake() -> Any:
    """The deeplake module, imported on first use with its crash reporter off (see above)."""
    with _import_lock, _temporary_folder(_UNWRITABLE):
        import deeplake as module
    # What it logs of a failed request it also raises: not for stderr, unless the user has asked for logs.
    logging.getLogger("deeplake").addHandler(_silence)
    return module


@contextlib.contextmanager
def _temporary_folder(path: str) -> Iterator[None]:
    if not os.path.isdir(path):  # not Linux
        yield
        return
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def is_remote(path: str) -> bool:
    """Whether a lake's path is an address (s3://…, hub://…) rather than a folder on this machine."""
    return "://" in path and not path.startswith("file://")


def local_folder(path: str) -> Path:
    """The folder of a local lake, without Deep Lake's `@branch-or-tag`."""
    return Path(path.removeprefix("file://").rpartition("@")[0] or path.removeprefix("file://"))


def normal_path(path: str | os.PathLike[str]) -> str:
    """A lake's path in the form that is stored and shown: local ones absolute, addresses as they are."""
    text = os.fspath(path)
    return text if is_remote(text) else os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def keep_token(token: str | None) -> str | None:
    """Put a token where worker processes find it, and nothing that is saved does: the environment.

    Returns:
        The token to use: the one given, else the environment's.
    """
    if token:
        os.environ[TOKEN_VARIABLE] = token
    return os.environ.get(TOKEN_VARIABLE) or None


def exists(path: str) -> bool:
    """Whether there is a dataset at a normal path.

    Raises:
        LakeError: the storage cannot be reached, or refuses to say.
    """
    if not is_remote(path):
        return bool(deeplake().exists(path, token=keep_token(None)))
    engine = deeplake()
    spare_metadata_service(path)
    try:
        return bool(deadline.wait(engine.exists_async(path, token=keep_token(None)), OPEN_SECONDS))
    except Exception as error:
        raise explain(error, path) from None


def open_dataset(path: str, version: str | None = None, seconds: float = OPEN_SECONDS) -> Any:
    """Open a dataset read-only.

    Args:
        path: a normal path, with or without `@branch-or-tag`.
        version: open this version of it, whatever has been committed since.
        seconds: within which a remote one has to open.

    Raises:
        LakeError: it is not there, cannot be reached, is damaged, or no longer has that version.
    """
    engine = deeplake()
    token = keep_token(None)
    spare_metadata_service(path)
    try:
        if is_remote(path):
            dataset = deadline.wait(engine.open_read_only_async(path, token=token), seconds)
        else:
            dataset = engine.open_read_only(path, token=token)
    except Exception as error:
        raise explain(error, path) from None
    if version is not None and dataset.version != version:
        # Not `path@version`: what follows the @ can only be a branch or a tag.
        try:
            then = dataset.history[version]
            dataset = deadline.wait(then.open_async(), seconds) if is_remote(path) else then.open()
        except Exception as error:
            if is_remote(path) and trouble(error) is not Trouble.OTHER:
                raise explain(error, path) from None
            raise LakeError(
                f"the lake at {path} no longer has the version this run started from",
                found=one_line(error),
                next_step="start again from the lake as it is now",
            ) from None
    if not is_remote(path):
        check_files(dataset, path)
    return dataset


def open_version(path: str, version: str, seconds: float = OPEN_SECONDS) -> Any:
    """Open one version of one dataset.

    Args:
        path: a normal path, with or without `@branch-or-tag`.
        version: "ID@VERSION" of the dataset.
        seconds: within which a remote one has to open.

    Raises:
        LakeError: see `open_dataset`; or there is another dataset now, or none.
    """
    identity, _, number = version.rpartition("@")
    require_folder(path)
    try:
        dataset = open_dataset(path, number, seconds)
    except LakeError:
        # Of another lake no version would do.
        _check_identity(open_dataset(path, None, seconds), path, identity)
        raise
    _check_identity(dataset, path, identity)
    return dataset


def _check_identity(dataset: Any, path: str, identity: str) -> None:
    if dataset.id != identity:
        raise LakeError(f"another lake has taken the place of the one at {path}", found=dataset.id, allowed=identity)


def require_folder(path: str) -> None:
    """See that a lake that was there is there still.

    Raises:
        LakeError: its folder is gone.
    """
    folder = local_folder(path)
    if not is_remote(path) and not folder.is_dir() and not Path(path.removeprefix("file://")).is_dir():
        raise LakeError(
            f"the lake at {path} is gone",
            found=f"{_what_is_at(folder)}; it was there when it was opened",
            next_step="put it back, or mount its disk again",
        )


def query(dataset: Any, text: str, path: str) -> Any:
    """The view that a query gives; on a remote lake, within `QUERY_SECONDS`.

    Raises:
        LakeError: the server did not answer in time.
    """
    if not is_remote(path):
        return dataset.query(text)
    try:
        return deadline.wait(dataset.query_async(text), QUERY_SECONDS)
    except deadline.TookTooLongError as error:
        raise explain(error, path) from None


def check_files(dataset: Any, path: str) -> None:
    """Refuse a local dataset whose files are not all there: see `short_files`.

    Raises:
        LakeError: a file is missing or has another size.
    """
    for problem in short_files(dataset, path).values():
        raise LakeError(
            f"the lake at {path} is damaged or was copied in part",
            found=problem,
            next_step="copy or ingest it again",
        )


def short_files(dataset: Any, path: str, *, known: set[str] | None = None) -> dict[str, str]:
    """Compare the files of a local dataset with the sizes that Deep Lake recorded for them.

    A full disk goes unnoticed by Deep Lake, as does a copy that was cut short; reading such a file later returns
    garbage or takes the process down.

    Args:
        known: names of files that need no check; those that are found good are added.

    Returns:
        Name → what is wrong with it, of each file that is missing or has another size.
    """
    folder = local_folder(path)
    wrong = {}
    for name, size in dataset._datafiles:
        if not name or (known is not None and name in known):  # no name: a change that has no file of its own
            continue
        try:
            actual = os.stat(folder / name).st_size
        except OSError:
            actual = -1
        if actual != size:
            wrong[name] = f"{name} {'is missing' if actual < 0 else f'has {actual:,} bytes, not {size:,}'}"
        elif known is not None:
            known.add(name)
    return wrong


def explain(error: Exception, path: str) -> LakeError:
    """Deep Lake's error on opening a path, as one a user can act on. A token never appears in it."""
    engine = deeplake()
    said = one_line(error)
    if isinstance(error, engine.LogNotexistsError) and not is_remote(path):
        return LakeError(
            f"there is no Deep Lake dataset at {path}",
            found=_what_is_at(local_folder(path)),
            next_step=_next_for(path),
        )
    if isinstance(error, engine.LogNotexistsError):
        return LakeError(f"there is no Deep Lake dataset at {path}", next_step="check the address")
    if isinstance(error, (engine.BranchNotFoundError, engine.TagNotFoundError)):
        return LakeError(
            f"{path} names a branch or tag that the dataset does not have",
            found=said,
            allowed="PATH, PATH@BRANCH or PATH@TAG (so a folder's name cannot hold an @)",
        )
    if is_remote(path) and not path.startswith(("hub://", "al://")) and trouble(error) is not Trouble.OTHER:
        return explain_trouble(trouble(error), path, said)
    if path.startswith(("hub://", "al://")):
        known = f"${TOKEN_VARIABLE} is set" if os.environ.get(TOKEN_VARIABLE) else f"${TOKEN_VARIABLE} is not set"
        return LakeError(
            f"cannot open {path} at app.activeloop.ai",
            found=f"{said}; {known}",
            next_step=f"check the network, that the dataset exists, and that {TOKEN_VARIABLE} holds a token that may "
            "read it; without a network, use a lake on disk",
        )
    if "not supported by deeplake" in said:
        return LakeError(
            f"cannot open {path}",
            found=said,
            allowed="a folder, s3://…, gs://…, az://…, hub://…, al://…",
        )
    return LakeError(f"cannot open the lake at {path}", found=said)


def _what_is_at(folder: Path) -> str:
    if not folder.exists():
        return "nothing is there"
    if folder.is_file():
        return "a file"
    if (folder / "dataset_meta.json").exists():
        return "a dataset of Deep Lake 3"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"a folder with {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "an empty folder"


def _next_for(path: str) -> str:
    if (local_folder(path) / "dataset_meta.json").exists():
        return f"convert it: lakeclip ingest {path} {path}-v4"
    return f"lakeclip ingest SOURCE {path}"


def one_line(error: Exception) -> str:
    return redacted(" ".join(str(error).split()) or type(error).__name__)[:400]
