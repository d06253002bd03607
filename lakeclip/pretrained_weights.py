"""Well-known pretrained CLIPs by name, from `pretrained_weights.yaml`: what they are good for, and where they are kept.

    for weights in known_weights():
        print(weights.source, weights.imagenet)
    find_local("open_clip:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")   # its folder in the cache, or None

Any other model of these libraries can be named just as well.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from lakeclip.errors import ConfigError
from lakeclip.hub import WEIGHT_FILES, find_cached, is_hub_name, resolve_folder


@dataclass(frozen=True)
class PretrainedWeights:
    """A published CLIP.

    Attributes:
        source: name for `--from`, such as "huggingface:openai/clip-vit-base-patch32".
        group: what models of this size are good for.
        parameters: number of parameters of both towers, in millions.
        image_size: side of its training images in pixels.
        data: what it was trained on.
        imagenet: published zero-shot top-1 accuracy on ImageNet, in percent.
        licence: licence of the weights.
    """

    source: str
    group: str
    parameters: int
    image_size: int
    data: str
    imagenet: float
    licence: str


@cache
def known_weights() -> tuple[PretrainedWeights, ...]:
    """Return the listed models: small ones first, and within a size the less accurate first."""
    text = (resources.files("lakeclip") / "pretrained_weights.yaml").read_text(encoding="utf-8")
    return tuple(
        PretrainedWeights(source=entry.pop("from"), group=group["group"], **entry)
        for group in yaml.safe_load(text)
        for entry in group["models"]
    )


def find_local(source: str) -> Path | None:
    """Return the folder of a model that is on this machine already, without asking the hub; None if it is not."""
    library, _, name = source.partition(":")
    return find_cached(name, library)


def download(source: str) -> Path:
    """Download a model unless it is on this machine already, and return its folder.

    Args:
        source: a name for `--from`, of a listed model or of any other on the hub.

    Raises:
        ConfigError: this is no name of a model on the hub.
        CheckpointError: the hub has no such model or cannot be reached.
    """
    check_source(source)
    library, _, name = source.partition(":")
    return resolve_folder(name, library)


def check_source(source: str) -> None:
    """Raise if a name cannot be that of a model on the hub.

    Raises:
        ConfigError: see above; similar names are suggested.
    """
    library, _, name = source.rpartition(":")
    if library in WEIGHT_FILES and is_hub_name(name):
        return
    listed = [weights.source for weights in known_weights()]
    near = [known for known in listed if name and name.lower() in known.lower()]
    near = near[:3] or difflib.get_close_matches(source, listed, n=3, cutoff=0.5)
    raise ConfigError(
        f"{source!r} is no name of a model on the hub",
        found=f"similar names: {', '.join(near)}" if near else "",
        allowed=" or ".join(f"{library}:ORG/NAME" for library in WEIGHT_FILES),
        next_step="`lakeclip weights` lists names",
    )
