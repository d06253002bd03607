"""Read lakeclip's own checkpoints and build their models.

A checkpoint is Lightning's .ckpt. Its "state_dict" has the model's weights as "model.<OpenAI's key>"; its "lakeclip"
entry is the lineage (`provenance/lineage.py`). Everything is read with `weights_only`: loading never runs code from a
file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lakeclip.checkpoints.file import read_torch_file, write_torch_file
from lakeclip.checkpoints.folder import checkpoints_newest_first, find_checkpoint
from lakeclip.checkpoints.match import state_dict_mismatch
from lakeclip.config.schema import ModelConfig, TrainConfig
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import CheckpointError, ModelError, OutputError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import OwnTowersConfig, TowersConfig, rebuild_dual_encoder
from lakeclip.provenance.lineage import FORMAT, make_lineage, missing_entries
from lakeclip.text.custom import as_tokenize
from lakeclip.text.huggingface import FixedLengthTokenizer, HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Tokenize

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and validated.

    Attributes:
        path: the file.
        lineage: origin of the weights (layout: `provenance/lineage.py`).
        model_config: sizes of the model, or the description of two towers.
        state_dict: weights under OpenAI's keys, on the CPU, with LoRA merged. Possibly memory-mapped: copy before
            changing.
        content: everything in the file, with the state of the training. Memory-mapped.
    """

    path: Path
    lineage: dict[str, Any]
    model_config: ModelConfig | TowersConfig | OwnTowersConfig
    state_dict: dict[str, Tensor]
    content: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def scalars(self) -> dict[str, float]:
        """Learned scalars of the loss by name: the top-level tensors without dimensions."""
        return {name: float(value) for name, value in self.state_dict.items() if value.ndim == 0 and "." not in name}

    def require_model(self, model: ModelConfig) -> None:
        """Raise if the checkpoint belongs to a different model.

        Raises:
            CheckpointError: the model's sizes differ.
        """
        _check_same_model(self.path, str(self.lineage["model"]["name"]), self.model_config, model)


class LoadedModel(NamedTuple):
    """A model ready to encode, with the two functions that make its inputs."""

    model: CLIP | DualEncoder
    tokenize: Tokenize
    transform: EvalTransform


def newest_checkpoint(run: Path, *, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
    """Return the newest readable checkpoint of a run, to resume from; None if there is none yet.

    Damaged checkpoints are skipped with a warning.

    Args:
        check: raises a `CheckpointError` for a checkpoint that is of no use; it is skipped like a damaged one.

    Raises:
        CheckpointError: the run has checkpoints, but none can be read.
    """
    errors: list[CheckpointError] = []
    for path in checkpoints_newest_first(run):
        try:
            checkpoint = read_checkpoint(path)
            if check is not None:
                check(checkpoint)
        except CheckpointError as error:
            errors.append(error)
            continue
        for damaged in errors:
            _log.warning("%s; resuming from %s", " ".join(str(damaged).split()), path)
        return checkpoint
    if errors:
        raise errors[0]
    return None


def read_checkpoint(path: str | Path, *, own_towers: bool = False) -> Checkpoint:
    """Read a checkpoint without building the model.

    Args:
        path: a run folder (its best checkpoint, or else its last) or a .ckpt file.
        own_towers: accept towers that a user made in Python, which lakeclip cannot build.

    Raises:
        CheckpointError: missing, damaged, or not lakeclip's.
    """
    path = find_checkpoint(path)
    content = read_torch_file(path, allowed="a .ckpt file of lakeclip")
    entry = content.get("lakeclip") if isinstance(content, dict) else None
    if entry is None and isinstance(content, dict) and "lakeclip" in content:
        raise _own_towers_error(path, None)
    if not isinstance(entry, dict):
        keys = ", ".join(str(key) for key in list(content)[:8]) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is a torch file but not a checkpoint of lakeclip: it has no 'lakeclip' entry",
            found=keys or "nothing",
            allowed="a file that `lakeclip train` wrote",
        )
    if entry.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has a format that this version of lakeclip cannot read",
            found=f"format {entry.get('format')}, written by lakeclip {entry.get('version', 'unknown')}",
            allowed=f"format {FORMAT}",
            next_step="pip install --upgrade lakeclip",
        )
    if missing := missing_entries(entry):
        raise CheckpointError(f"the lineage in {path} is incomplete", found="without " + ", ".join(missing))
    config = _model_config(path, entry["model"]["config"])
    if isinstance(config, OwnTowersConfig) and not own_towers:
        raise _own_towers_error(path, config)
    return Checkpoint(path, cast("dict[str, Any]", entry), config, _weights(path, content.get("state_dict")), content)


def load_checkpoint(
    path: str | Path, *, model: CLIP | DualEncoder | None = None, tokenize: Tokenize | None = None
) -> LoadedModel:
    """Load a trained model, ready to encode on the CPU.

    Args:
        path: a run folder (its best checkpoint, or else its last) or a .ckpt file.
        model: model to load the weights into, required for custom towers. It is set to evaluation mode.
        tokenize: tokenizer, required for a model that was trained on token ids from a custom dataloader.

    Returns:
        The model in evaluation mode; `tokenize`, from n texts to (n, context_length) int64; and `transform`, from an
        image (encoded bytes, a path or a PIL image) to (3, size, size) uint8.

    Raises:
        CheckpointError: missing, damaged, of another kind, or trained with another tokenizer.
    """
    if model is not None:
        return _load_into(model, find_checkpoint(path), tokenize)
    checkpoint = read_checkpoint(path)
    restored = tokenize or restore_tokenizer(checkpoint.path, checkpoint.lineage)
    sizes = checkpoint.model_config
    transform = EvalTransform.of(sizes) if isinstance(sizes, ModelConfig) else EvalTransform(sizes.image_resolution)
    return LoadedModel(build_model(checkpoint), restored, transform)


def restore_tokenizer(path: Path, lineage: Mapping[str, Any]) -> Tokenize:
    """Build the tokenizer that a lineage records.

    Raises:
        CheckpointError: it records none, or another version of CLIP's.
    """
    tokenizer = lineage["tokenizer"]
    if tokenizer["kind"] == "clip-bpe" and tokenizer["fingerprint"] != Tokenizer.fingerprint:
        raise CheckpointError(
            f"{path} was trained with a different tokenizer, so its token ids mean different text",
            found=f"fingerprint {str(tokenizer['fingerprint'])[:16]}…",
            allowed=f"fingerprint {Tokenizer.fingerprint[:16]}…",
        )
    if tokenizer["kind"] == "clip-bpe":
        return Tokenizer(tokenizer["context_length"])
    if tokenizer["kind"] == "huggingface":
        files, length = tokenizer["files"], tokenizer["context_length"]
        if not tokenizer.get("fixed_length"):
            return HuggingFaceTokenizer.from_files(files, length)
        restored = FixedLengthTokenizer.from_files(files, length)
        restored.cleaning = tokenizer.get("cleaning", "none")
        return restored
    is_own = "image_class" in lineage["model"]["config"]
    arguments = "model=YOUR_MODEL, tokenize=YOUR_TOKENIZER" if is_own else "tokenize=YOUR_TOKENIZER"
    raise CheckpointError(
        f"{path} was trained on token ids from a custom dataloader, so its tokenizer is unknown",
        found=f"tokenizer of kind {tokenizer['kind']!r}",
        allowed="a tokenizer that the checkpoint records, or yours",
        next_step=f"model = lakeclip.load(path, {arguments}), which evaluate and make_report take too; a module made "
        "with tokenizer=YOUR_TOKENIZER records it",
    )


def _load_into(model: CLIP | DualEncoder, path: Path, tokenize: Tokenize | None) -> LoadedModel:
    """Load the weights in a file into a given model."""
    content = read_torch_file(path, allowed="a .ckpt file of lakeclip")
    weights = _weights(path, content.get("state_dict") if isinstance(content, dict) else None)
    if mismatch := state_dict_mismatch(model.state_dict(), weights):
        raise CheckpointError(f"the weights in {path} do not fit the given model", found=mismatch)
    lineage = content.get("lakeclip")
    if isinstance(lineage, dict) and not missing_entries(lineage) and isinstance(model, DualEncoder):
        _check_same_settings(path, _model_config(path, lineage["model"]["config"]), model)
    if tokenize is None:
        if not isinstance(lineage, dict) or missing_entries(lineage):
            raise CheckpointError(
                f"{path} does not record its tokenizer",
                next_step="lakeclip.load(path, model=YOUR_MODEL, tokenize=YOUR_TOKENIZER)",
            )
        tokenize = restore_tokenizer(path, lineage)
    model.load_state_dict(weights)
    transform = EvalTransform.of(model.config) if isinstance(model, CLIP) else EvalTransform(model.image_size)
    return LoadedModel(model.eval(), tokenize, transform)


def _check_same_settings(path: Path, config: ModelConfig | TowersConfig | OwnTowersConfig, model: DualEncoder) -> None:
    """Raise if a given model has the checkpoint's weights but would prepare images or pool texts in another way."""
    if not isinstance(config, OwnTowersConfig):
        return
    if differences := OwnTowersConfig.of(model).differences(config):
        raise CheckpointError(
            f"the given model has other settings than the one in {path}",
            found="; ".join(differences),
            allowed="the settings of the training, which the weights do not show",
            next_step="make the model with the arguments of the training",
        )


def _own_towers_error(path: Path, config: OwnTowersConfig | None) -> CheckpointError:
    return CheckpointError(
        f"{path} belongs to custom towers, which lakeclip cannot build",
        found=f"{config.image_class} and {config.text_class}, made in Python" if config else "",
        allowed="the towers' code, which is not in the file",
        next_step="model = lakeclip.load(path, model=YOUR_MODEL, tokenize=YOUR_TOKENIZER), which evaluate and "
        "make_report take too",
    )


def save(
    model: CLIP | DualEncoder,
    path: str | Path,
    *,
    name: str = "custom",
    tokenizer: Any = None,
) -> Path:
    """Save a model as a checkpoint that `lakeclip.load` reads.

    Use it in your own training loop; `lakeclip train` and Lightning's trainer save checkpoints by themselves.

    Args:
        path: .ckpt file to write.
        name: name of the model.
        tokenizer: tokenizer of the texts: lakeclip's or a Hugging Face tokenizer. Without it, `load` needs `tokenize`.
            The code of a `DualEncoder`'s towers is not saved, so `load` needs `model`.

    Raises:
        OutputError: the file cannot be written.
    """
    known = as_tokenize(tokenizer)
    lineage = make_lineage(
        model_name=name,
        model_config=model.config if isinstance(model, CLIP) else OwnTowersConfig.of(model),
        tokenizer=known if isinstance(known, (Tokenizer, HuggingFaceTokenizer)) else None,
        data={"path": "", "version": "", "query": None, "rows": 0},
        config=TrainConfig(model=name),
        progress={"step": 0, "epoch": 0, "samples_seen": 0},
    )
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    try:
        write_torch_file({"state_dict": weights, "lakeclip": lineage}, Path(path))
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {path}", found=str(error)) from None
    return Path(path)


def build_model(checkpoint: Checkpoint) -> CLIP | DualEncoder:
    """Build the model of a checkpoint, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the weights do not match the sizes.
        ModelError: one of two towers needs a library that is not installed.
    """
    sizes = checkpoint.model_config
    model: CLIP | DualEncoder
    if isinstance(sizes, OwnTowersConfig):
        raise _own_towers_error(checkpoint.path, sizes)
    if isinstance(sizes, TowersConfig):
        model = rebuild_dual_encoder(sizes)
        _check_weights(checkpoint, model)
    else:
        _check_layers(checkpoint, sizes)
        try:
            # The file states the sizes, so check them against its weights before allocating memory.
            with torch.device("meta"):
                _check_weights(checkpoint, CLIP(sizes, scalars=checkpoint.scalars))
        except ModelError as error:
            raise CheckpointError(f"{checkpoint.path} states sizes that no model can have", found=error.found) from None
        model = CLIP(sizes, scalars=checkpoint.scalars)
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()


def _check_layers(checkpoint: Checkpoint, sizes: ModelConfig) -> None:
    """Raise if the file has fewer tensors than layers; every layer has weights."""
    stages = sizes.vision_layers if isinstance(sizes.vision_layers, tuple) else (sizes.vision_layers,)
    if (layers := sum(stages) + sizes.transformer_layers) > len(checkpoint.state_dict):
        raise CheckpointError(
            f"{checkpoint.path} states sizes that its weights do not have",
            found=f"{layers:,} layers but {len(checkpoint.state_dict):,} tensors",
        )


def _check_weights(checkpoint: Checkpoint, model: CLIP | DualEncoder) -> None:
    if mismatch := state_dict_mismatch(model.state_dict(), checkpoint.state_dict):
        name = checkpoint.lineage["model"]["name"]
        raise CheckpointError(f"the weights in {checkpoint.path} do not fit its model, {name}", found=mismatch)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a sha256 over names, types, shapes and bytes; equal for bit-identical weights in any file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _model_config(path: Path, values: Any) -> ModelConfig | TowersConfig | OwnTowersConfig:
    given = set(values) if isinstance(values, dict) else set()
    kind: type[ModelConfig | TowersConfig | OwnTowersConfig] = ModelConfig
    if "image" in given or "image_class" in given:
        kind = TowersConfig if "image" in given else OwnTowersConfig
    names = {field.name for field in dataclasses.fields(kind)}
    # Earlier versions of lakeclip had fewer settings; their models have the defaults.
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if not required <= given <= names:
        wrong = [f"no {name}" for name in sorted(required - given)]
        wrong += [f"unknown {name}" for name in sorted(given - names)]
        raise CheckpointError(f"{path} does not describe its model", found="; ".join(wrong))
    if kind is not ModelConfig:
        return kind(**values)
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return ModelConfig(**settings)


def _check_same_model(
    path: Path, name: str, config: ModelConfig | TowersConfig | OwnTowersConfig, model: ModelConfig
) -> None:
    actual, expected = dataclasses.asdict(config), dataclasses.asdict(model)
    if set(actual) != set(expected):
        raise CheckpointError(f"{path} contains two towers, {name}", next_step="lakeclip finetune --resume")
    if differing := [field for field in actual if actual[field] != expected[field]]:
        raise CheckpointError(
            f"{path} contains a different model, {name}",
            found=", ".join(f"{field} {actual[field]}" for field in differing),
            allowed=", ".join(f"{field} {expected[field]}" for field in differing),
        )


def _weights(path: Path, state_dict: Any) -> dict[str, Tensor]:
    prefix = "model."
    weights = {
        # `torch.compile` of a part of the model adds a prefix to its keys.
        key[len(prefix) :].replace("_orig_mod.", ""): value
        for key, value in (state_dict.items() if isinstance(state_dict, dict) else ())
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
    if not weights:
        raise CheckpointError(f"{path} contains no model: its state_dict has no key that starts with 'model.'")
    return _merge_lora(weights)


def _merge_lora(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the low-rank updates of LoRA (`training/lora.py`) into the weights they belong to."""
    merged = {}
    for key, value in weights.items():
        prefix, is_adapted, suffix = key.partition("parametrizations.")
        if not is_adapted:
            merged[key] = value
        elif suffix.endswith(".original"):
            name = suffix.removesuffix(".original")
            up, down, scale = (weights[f"{prefix}parametrizations.{name}.0.{part}"] for part in ("up", "down", "scale"))
            merged[prefix + name] = value + (scale * (up @ down)).view_as(value)
    return merged
