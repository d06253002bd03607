"""The only module that imports deeplake: it opens datasets, and turns Deep Lake's errors into ones for users.

`import deeplake` starts a crash reporter that posts to the vendor when the process ends, and holds the exit up for two
seconds if name look-ups time out; no documented setting stops it. It keeps its state in the temporary folder and
gives up if it cannot write there, so the import, and nothing else, runs with TMPDIR pointing at a folder where no files
can be created.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lakeclip.errors import LakeError, redact
from lakeclip.lake import timeouts
from lakeclip.lake.storage_errors import StorageFailure, classify_failure, disable_ec2_metadata, storage_error

#: Environment variable that holds the Activeloop token for hub:// and al:// datasets.
TOKEN_VARIABLE = "ACTIVELOOP_TOKEN"  # noqa: S105 a name, not a secret

#: Time limit for opening a remote lake. Deep Lake needs 42 s to report that there is no server.
OPEN_SECONDS = 60.0
#: Time limit for a query on a remote lake, which may read whole columns.
QUERY_SECONDS = 600.0

_READ_ONLY_FOLDER = "/proc/self"
_import_lock = threading.Lock()
_null_handler = logging.NullHandler()


def deeplake() -> Any:
    """Return the deeplake module, imported on first use with its crash reporter off (see above)."""
    with _import_lock, _temporary_folder(_READ_ONLY_FOLDER):
        import deeplake as module

        # The import has replaced os.fork: what it does before a fork crashes, or hangs, while requests are pending.
        timeouts.guard_fork()
    # It logs failed requests and raises them too: keep the log from stderr, unless the user has configured logging.
    logging.getLogger("deeplake").addHandler(_null_handler)
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
    """Return True if a lake's path is an address (s3://…, hub://…) rather than a folder on this machine."""
    return "://" in path and not path.startswith("file://")


def local_folder(path: str) -> Path:
    """Return the folder of a local lake, without Deep Lake's `@branch-or-tag`."""
    return Path(path.removeprefix("file://").rpartition("@")[0] or path.removeprefix("file://"))


def normalize_path(path: str | os.PathLike[str]) -> str:
    """Return a lake's path as it is stored and shown: a local one absolute, an address unchanged."""
    text = os.fspath(path)
    return text if is_remote(text) else os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def set_token(token: str | None) -> None:
    """Put a token, if there is one, into the environment: worker processes find it there, and it is never saved."""
    if token:
        os.environ[TOKEN_VARIABLE] = token


def get_token() -> str | None:
    """Return the Activeloop token of the environment, or None."""
    return os.environ.get(TOKEN_VARIABLE) or None


def exists(path: str) -> bool:
    """Return True if there is a dataset at a normalized path.

    Raises:
        LakeError: the storage cannot be reached, or refuses access.
    """
    if not is_remote(path):
        return bool(deeplake().exists(path, token=get_token()))
    engine = deeplake()
    disable_ec2_metadata(path)
    try:
        return bool(timeouts.wait(engine.exists_async(path, token=get_token()), OPEN_SECONDS))
    except Exception as error:
        raise lake_error(error, path) from None


def open_dataset(path: str, version: str | None = None, seconds: float = OPEN_SECONDS, *, check: bool = True) -> Any:
    """Open a dataset read-only.

    Args:
        path: a normalized path, with or without `@branch-or-tag`.
        version: open this version of it, whatever has been committed since.
        seconds: time limit for a remote one.
        check: compare the sizes of the files of a local one with those that Deep Lake recorded.

    Raises:
        LakeError: it does not exist, cannot be reached, is damaged, or no longer has that version.
    """
    engine = deeplake()
    token = get_token()
    disable_ec2_metadata(path)
    try:
        if is_remote(path):
            dataset = timeouts.wait(engine.open_read_only_async(path, token=token), seconds)
        else:
            dataset = engine.open_read_only(path, token=token)
    except Exception as error:
        raise lake_error(error, path) from None
    if version is not None and dataset.version != version:
        # Not `path@version`: what follows the @ can only be a branch or a tag.
        try:
            old = dataset.history[version]
            dataset = timeouts.wait(old.open_async(), seconds) if is_remote(path) else old.open()
        except Exception as error:
            if is_remote(path) and classify_failure(error) is not StorageFailure.OTHER:
                raise lake_error(error, path) from None
            raise LakeError(
                f"the lake at {path} no longer has the version that this run started from",
                found=one_line(error),
                next_step="start a new run with the present version",
            ) from None
    if check and not is_remote(path):
        check_files(dataset, path)
    return dataset


def open_version(path: str, version: str, seconds: float = OPEN_SECONDS) -> Any:
    """Open one version of one dataset.

    Args:
        path: a normalized path, with or without `@branch-or-tag`.
        version: "ID@VERSION" of the dataset.
        seconds: time limit for a remote one.

    Raises:
        LakeError: see `open_dataset`; or another dataset has replaced it, or it is gone.
    """
    identity, _, number = version.rpartition("@")
    require_folder(path)
    try:
        dataset = open_dataset(path, number, seconds)
    except LakeError:
        # If another lake has replaced it, that is the better explanation.
        _check_identity(open_dataset(path, None, seconds), path, identity)
        raise
    _check_identity(dataset, path, identity)
    return dataset


def _check_identity(dataset: Any, path: str, identity: str) -> None:
    if dataset.id != identity:
        raise LakeError(f"the lake at {path} was replaced by another one", found=dataset.id, allowed=identity)


def require_folder(path: str) -> None:
    """Raise if the folder of a lake that was open is gone.

    Raises:
        LakeError: it is.
    """
    folder = local_folder(path)
    if not is_remote(path) and not folder.is_dir() and not Path(path.removeprefix("file://")).is_dir():
        raise LakeError(
            f"the lake at {path} is gone",
            found=f"{_describe_path(folder)}; the lake existed when it was opened",
            next_step="restore it, or mount its disk again",
        )


def query(dataset: Any, text: str, path: str) -> Any:
    """Run a query and return its view. A remote lake has `QUERY_SECONDS` to answer.

    Raises:
        LakeError: the server did not answer in time.
    """
    if not is_remote(path):
        return dataset.query(text)
    try:
        return timeouts.wait(dataset.query_async(text), QUERY_SECONDS)
    except timeouts.RequestTimeoutError as error:
        raise lake_error(error, path) from None


def check_files(dataset: Any, path: str) -> None:
    """Raise if files of a local dataset are missing or truncated; see `find_damaged_files`.

    Raises:
        LakeError: a file is missing or has another size.
    """
    for problem in find_damaged_files(dataset, path).values():
        raise LakeError(
            f"the lake at {path} is damaged or was not copied completely",
            found=problem,
            next_step=f"copy or ingest it again; or lakeclip ingest --repair {path} keeps the rows before the damage",
        )


def find_damaged_files(dataset: Any, path: str, *, known: set[str] | None = None) -> dict[str, str]:
    """Compare the files of a local dataset with the sizes that Deep Lake recorded for them.

    Deep Lake does not notice a full disk or an incomplete copy; reading such a file later returns garbage or crashes
    the process.

    Args:
        known: names of files that need no check; intact files are added to it.

    Returns:
        Name → problem, for each file that is missing or has another size.
    """
    folder = local_folder(path)
    problems = {}
    for name, size in dataset._datafiles:
        if not name or (known is not None and name in known):  # no name: a change without a file of its own
            continue
        try:
            actual = os.stat(folder / name).st_size
        except OSError:
            actual = -1
        if actual != size:
            problems[name] = f"{name} {'is missing' if actual < 0 else f'has {actual:,} bytes, not {size:,}'}"
        elif known is not None:
            known.add(name)
    return problems


def lake_error(error: Exception, path: str) -> LakeError:
    """Return the error to raise for one of Deep Lake's on opening a path. A token never appears in it."""
    engine = deeplake()
    message = one_line(error)
    if isinstance(error, engine.LogNotexistsError) and not is_remote(path):
        return LakeError(
            f"there is no Deep Lake dataset at {path}",
            found=_describe_path(local_folder(path)),
            next_step=_ingest_command(path),
        )
    if isinstance(error, engine.LogNotexistsError):
        return LakeError(f"there is no Deep Lake dataset at {path}", next_step="check the address")
    if isinstance(error, (engine.BranchNotFoundError, engine.TagNotFoundError)):
        return LakeError(
            f"{path} names a branch or tag that the dataset does not have",
            found=message,
            allowed="PATH, PATH@BRANCH or PATH@TAG (so a folder's name cannot hold an @)",
        )
    if (
        is_remote(path)
        and not path.startswith(("hub://", "al://"))
        and classify_failure(error) is not StorageFailure.OTHER
    ):
        return storage_error(classify_failure(error), path, message)
    if path.startswith(("hub://", "al://")):
        token = f"${TOKEN_VARIABLE} is set" if os.environ.get(TOKEN_VARIABLE) else f"${TOKEN_VARIABLE} is not set"
        return LakeError(
            f"cannot open {path} at app.activeloop.ai",
            found=f"{message}; {token}",
            next_step=f"check the network, that the dataset exists, and that {TOKEN_VARIABLE} holds a token that may "
            "read it; without a network, use a local lake",
        )
    if "not supported by deeplake" in message:
        return LakeError(
            f"cannot open {path}",
            found=message,
            allowed="a folder, s3://…, gs://…, az://…, hub://…, al://…",
        )
    if not is_remote(path) and (local_folder(path) / "_deeplake_log").is_dir():
        return LakeError(
            f"cannot open the lake at {path}",
            found=f"{message}; its log is damaged, or holds a number that Deep Lake writes but cannot read (infinity)",
            next_step=f"lakeclip ingest --repair {path}",
        )
    return LakeError(f"cannot open the lake at {path}", found=message)


def _describe_path(folder: Path) -> str:
    if not folder.exists():
        return "it does not exist"
    if folder.is_file():
        return "a file"
    if (folder / "dataset_meta.json").exists():
        return "a dataset of Deep Lake 3"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"a folder with {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "an empty folder"


def _ingest_command(path: str) -> str:
    if (local_folder(path) / "dataset_meta.json").exists():
        return f"convert it: lakeclip ingest {path} {path}-v4"
    return f"lakeclip ingest SOURCE {path}"


def one_line(error: Exception) -> str:
    """Return an error's message as one line of at most 400 characters, without tokens."""
    return redact(" ".join(str(error).split()) or type(error).__name__)[:400]
