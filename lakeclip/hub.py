"""Find the folder of a model by name: a local folder, or a model of the Hugging Face hub in its cache or downloaded.

Only data is downloaded: weights in one format, and the configuration, processor and tokenizer files. A repository's
Python code is never downloaded.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lakeclip.errors import CheckpointError

#: Index of weights that are divided into several files (shards): JSON with the shard of each weight.
INDEX_SUFFIX = ".index.json"
#: Names of a model's weights by library, best first. A model is complete if its folder has one of them.
WEIGHT_FILES: dict[str, tuple[str, ...]] = {
    "huggingface": (
        *("model.safetensors", f"model.safetensors{INDEX_SUFFIX}"),
        *("pytorch_model.bin", f"pytorch_model.bin{INDEX_SUFFIX}"),
        *("adapter_model.safetensors", "adapter_model.bin"),
    ),
    "open_clip": (
        *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
        *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"),
    ),
}
#: Configuration, processor and tokenizer files; sentencepiece models end with ".model" or ".spm".
_OTHER_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja")
#: Configurations, one of which every model has.
_CONFIG_FILES = ("config.json", "open_clip_config.json", "adapter_config.json")
#: Name of a repository, with an optional revision: org/name or org/name@revision.
_HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
#: Seconds to wait for the hub's first answer. Its library alone would try for minutes.
_PATIENCE = 4.0

_log = logging.getLogger(__name__)


def is_hub_name(name: str | Path) -> bool:
    """Return True if a name that is no local path can be a model's name on the hub, such as org/name@revision."""
    path = Path(name)
    return _HUB_NAME.fullmatch(str(name)) is not None and not path.parent.is_dir() and not path.exists()


def resolve_folder(name: str | Path, library: str = "huggingface") -> Path:
    """Return the local folder of a model. A model of the hub is downloaded unless its files are in the cache.

    Args:
        name: a path, which is returned whether it exists or not; or a name on the hub, org/name or org/name@revision.
        library: library whose files are wanted, a key of `WEIGHT_FILES`; some repositories have files for several.

    Raises:
        CheckpointError: the hub has no such model, or the model is not in the cache and the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if not is_hub_name(name):
        return path
    match = _HUB_NAME.fullmatch(str(name))
    assert match is not None, "checked by is_hub_name"
    repo, revision = match["repo"], match["revision"]
    if (cached := find_cached(str(name), library)) is not None:
        return cached
    files = _list_files(str(name), repo, revision)
    wanted = _select_files(str(name), files, library)
    size = sum(files[file] for file in wanted)
    _log.info("downloading %s (%s) to the Hugging Face cache", name, f"{size / 1e9:.1f} GB" if size > 1e8 else "small")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's library raises its own errors, those of its HTTP client, and OSError
        raise _unavailable(str(name), repo, _first_line(error)) from None


def find_cached(name: str, library: str = "huggingface") -> Path | None:
    """Return the folder in the cache that holds a model of the hub with a library's weights; None if none does."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        return None
    folder = _cached_folder(match["repo"], match["revision"])
    return folder if folder is not None and _is_complete(folder, library) else None


def find_weights(folder: Path, library: str = "huggingface") -> Path | None:
    """Return the file of a folder's weights, or the index of its shards; None if there is none."""
    return next((folder / name for name in WEIGHT_FILES[library] if (folder / name).is_file()), None)


def read_shards(index: Path) -> list[Path]:
    """Return the files that an index of shards names, all in the index's folder.

    Raises:
        CheckpointError: the index is invalid, or a file is missing.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index of weights", found=_first_line(error), allowed='JSON with a "weight_map"'
        ) from None
    # A name from a file must not lead out of the folder.
    if invalid := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(
            f"{index} is not an index of weights", found=repr(invalid[0]), allowed="names of files in the same folder"
        )
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"the weights in {index.parent} are incomplete",
            found=f"no {', '.join(missing[:3])}" + (f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""),
            allowed=f"all {len(names)} files that {index.name} names",
            next_step="copy or download the missing files",
        )
    return [index.parent / name for name in names]


def _cached_folder(repo: str, revision: str | None) -> Path | None:
    import huggingface_hub

    for name in _CONFIG_FILES:
        try:
            file = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
        except ValueError:  # no valid name of a repository, so the hub will say that it does not exist
            return None
        if isinstance(file, str):
            return Path(file).parent
    return None


def _is_complete(folder: Path, library: str) -> bool:
    """Return True if a snapshot has weights for the library; that of an interrupted download may not.

    Other files are not known without asking the hub. They are small and downloaded before the weights.
    """
    weights = find_weights(folder, library)
    if weights is None:
        return False
    if not weights.name.endswith(INDEX_SUFFIX):
        return True
    try:
        return bool(read_shards(weights))
    except CheckpointError:
        return False


def _list_files(name: str, repo: str, revision: str | None) -> dict[str, int]:
    """Ask the hub for a model's files and their sizes.

    Raises:
        CheckpointError: the hub has no such model or gives no answer within a few seconds.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _unavailable(name, repo, "HF_HUB_OFFLINE is set")
    answer: list[Any] = []

    def ask() -> None:
        try:
            api = huggingface_hub.HfApi()
            answer.append(api.model_info(repo, revision=revision, files_metadata=True, timeout=2 * _PATIENCE))
        except Exception as error:  # raised below, in the caller's thread
            answer.append(error)

    # Looking up an address has no time limit of its own, so it runs in a thread that may be abandoned. The thread's
    # limit is the one that counts: the request's is longer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not answer:
        raise _unavailable(name, repo, f"no answer from {constants.ENDPOINT} within {_PATIENCE:g} s")
    if isinstance(answer[0], Exception):
        raise _hub_error(name, repo, answer[0])
    return {file.rfilename: file.size or 0 for file in answer[0].siblings or ()}


def _hub_error(name: str, repo: str, error: Exception) -> CheckpointError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"the model {name} on the Hugging Face hub is open only to those who accepted its conditions",
            next_step=f"accept them at https://huggingface.co/{repo}, and log in: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"the model {repo} on the Hugging Face hub has no such revision", found=name.partition("@")[2]
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"there is no folder {name}, and no model of that name on the Hugging Face hub",
            allowed="a folder, or org/name of a public model or one that you have access to",
            next_step="check the spelling; for a private model, log in: hf auth login",
        )
    return _unavailable(name, repo, _first_line(error))


def _unavailable(name: str, repo: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"there is no folder {name}, and the model of that name cannot be downloaded from the Hugging Face hub",
        found=found,
        allowed="a folder, a model in the Hugging Face cache, or access to the hub",
        next_step=f"where there is access: hf download {repo} --local-dir FOLDER; then name the FOLDER instead",
    )


def _select_files(name: str, files: Mapping[str, int], library: str) -> list[str]:
    """Return the files to download: the library's best weights, and small files beside them.

    Raises:
        CheckpointError: the model has no weights for the library.
    """
    weights = next((file for file in WEIGHT_FILES[library] if file in files), None)
    if weights is None:
        raise CheckpointError(
            f"the model {name} on the Hugging Face hub has no weights for {library}",
            found=_listed(sorted(files)),
            allowed=", ".join(WEIGHT_FILES[library]),
        )
    stem, _, suffix = weights.removesuffix(INDEX_SUFFIX).partition(".")
    pattern = f"{stem}-*.{suffix}" if weights.endswith(INDEX_SUFFIX) else weights
    patterns = (*_OTHER_FILES, pattern)
    wanted = [file for file in files if "/" not in file and any(fnmatch(file, pattern) for pattern in patterns)]
    # Indices of weights that are not downloaded would make the folder look incomplete.
    return [file for file in wanted if not file.endswith(INDEX_SUFFIX) or file == weights]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
