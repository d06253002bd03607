"""Compare a model's features with those of the library that its weights come from."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lakeclip.checkpoints.adapters import ADAPTER_CONFIG
from lakeclip.checkpoints.convert import PretrainedWeights, build_model
from lakeclip.checkpoints.open_clip_config import CONFIG
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.models.pretrained import suppress_output

#: Largest difference of unit-length features that rounding explains, in float32.
MAX_DIFFERENCE = 1e-4
_NUM_CHECKED = 4

#: The two encoders of a model: normalised floating-point images → features, token ids → features.
Encoders = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class ParityCheck(NamedTuple):
    """Result of a comparison with the original library.

    Attributes:
        library: name and version of the library.
        difference: largest difference of a unit-length feature, for random images and texts of several lengths.
    """

    library: str
    difference: float


def check_against_original(pretrained: PretrainedWeights) -> ParityCheck | None:
    """Compute features with the library that weights come from and with lakeclip, and compare them.

    Returns:
        The comparison; None if there is no such library, or open_clip is not installed or has no configuration to load.

    Raises:
        CheckpointError: the features differ by more than rounding explains, or the library cannot load the folder.
    """
    if pretrained.layout == "huggingface":
        return check_against_transformers(pretrained)
    folder = pretrained.path.parent
    if pretrained.layout != "open_clip" or not (folder / CONFIG).is_file() or find_spec("open_clip") is None:
        return None
    encoders, library = open_clip_encoders(folder)
    return _compare(pretrained, encoders, library, f"{CONFIG} and the name of the model")


def check_against_transformers(pretrained: PretrainedWeights) -> ParityCheck | None:
    """Compute features with transformers and with lakeclip from the same folder, and compare them.

    Returns:
        The comparison; None for an adapter folder, which transformers cannot load without peft.

    Raises:
        CheckpointError: the features differ by more than rounding explains, or transformers cannot load the folder.
    """
    folder = pretrained.path.parent
    if (folder / ADAPTER_CONFIG).is_file():
        return None
    encoders, library = transformers_encoders(folder)
    return _compare(pretrained, encoders, library, "config.json and preprocessor_config.json")


def _compare(pretrained: PretrainedWeights, encoders: Encoders, library: str, files: str) -> ParityCheck:
    difference = largest_difference(build_model(pretrained), encoders)
    if not difference <= MAX_DIFFERENCE:
        raise CheckpointError(
            f"lakeclip and {library.split()[0]} compute different features from {pretrained.path.parent}",
            found=f"a difference of {difference:.2g} by {library}",
            allowed=f"at most {MAX_DIFFERENCE:g}",
            next_step=f"please report it, with {files}",
        )
    return ParityCheck(library, difference)


def transformers_encoders(folder: Path) -> tuple[Encoders, str]:
    """Load a folder with transformers, in float32 and evaluation mode; return its encoders and its version.

    Raises:
        CheckpointError: transformers cannot load the folder.
    """
    with suppress_output(quiet=True):
        import transformers

    try:
        with suppress_output(quiet=True):
            model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot load {folder}", found=str(error).strip().splitlines()[0]
        ) from None
    model.float().eval()

    def features(output: Any) -> Tensor:
        # Newer versions return an object with both towers' outputs instead of the features.
        pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return pooled

    return (
        lambda images: features(model.get_image_features(pixel_values=images)),
        lambda ids: features(model.get_text_features(input_ids=ids)),
    ), f"transformers {transformers.__version__}"


def open_clip_encoders(folder: Path) -> tuple[Encoders, str]:
    """Load a folder with open_clip, in float32 and evaluation mode; return its encoders and its version.

    Raises:
        CheckpointError: open_clip cannot load the folder.
    """
    open_clip = import_module("open_clip")
    library = f"open_clip {open_clip.__version__}"
    try:
        with suppress_output(quiet=True):
            model = open_clip.create_model(f"local-dir:{folder}")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{library} cannot load {folder}", found=str(error).strip().splitlines()[0]) from None
    model.float().eval()
    return (model.encode_image, model.encode_text), library


@torch.no_grad()
def largest_difference(model: CLIP, encoders: Encoders) -> float:
    """Return the largest difference of unit-length features, for random images and texts of various lengths."""
    images, ids = random_inputs(model.config)
    image, text = encoders
    pairs = (
        (l2_normalize(model.encode_image(images)), l2_normalize(image(images))),
        (l2_normalize(model.encode_text(ids)), l2_normalize(text(ids))),
    )
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def random_inputs(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return random images and token ids; the texts have various lengths if the model reads them at their end."""
    generator = torch.Generator().manual_seed(0)
    size = config.image_resolution
    images = torch.randn(_NUM_CHECKED, 3, size, size, generator=generator)
    end = config.vocab_size - 1 if config.end_token is None else config.end_token
    # Below the end token, so that no other is taken for the end.
    ids = torch.randint(0, max(1, end), (_NUM_CHECKED, config.context_length), generator=generator)
    if config.text_pool == "eot":
        for row, last in enumerate(torch.linspace(1, config.context_length - 1, _NUM_CHECKED).long()):
            ids[row, last:] = min(config.pad_token, end)
            ids[row, last] = end
    return images, ids
