"""Models by name, from the shipped `configs/*.yaml` and from the user's files, with their parameter and FLOP counts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch.utils.flop_counter import FlopCounterMode

from lakeclip.config.load import read_yaml
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ConfigError, ModelError
from lakeclip.models.clip import CLIP, size_problems

_FIELDS = [field.name for field in fields(ModelConfig)]
#: What a field may be, where that is not a whole number.
_ALLOWED = {
    "vision_layers": "a whole number, or four in brackets",
    "vision_patch_size": "a whole number, or null",
    "layer_norm_eps": "a number",
    **dict.fromkeys(("vision_class_token", "vision_patch_bias", "ln_pre", "causal"), "true or false"),
    **dict.fromkeys(("image_mean", "image_std"), "three numbers in brackets"),
    **{
        name: " or ".join(get_args(kind))
        for name, kind in get_type_hints(ModelConfig).items()
        if get_origin(kind) is Literal
    },
}


def available_models(file: str | Path | None = None) -> dict[str, ModelConfig]:
    """Return all models by name, in the order of the files.

    Args:
        file: YAML file with the user's own models, in the layout of the shipped files. They are added to the shipped
            models, and replace those of the same name.

    Raises:
        ModelError: the file cannot be read, or one of its models is invalid.
    """
    models: dict[str, ModelConfig] = {}
    for shipped in ("RN.yaml", "ViT.yaml"):
        with resources.as_file(resources.files("lakeclip.models") / "configs" / shipped) as path:
            models |= _read_models(path)
    return models if file is None else models | _read_models(Path(file))


def model_config(name: str, file: str | Path | None = None) -> ModelConfig:
    """Return the sizes of a model.

    Raises:
        ModelError: there is no such model (similar names are suggested), or the file is invalid.
    """
    models = available_models(file)
    if name in models:
        return models[name]
    normalized = {_normalize_name(known): known for known in models}
    matches = difflib.get_close_matches(_normalize_name(name), normalized, n=3, cutoff=0.5)
    near = [normalized[match] for match in matches]
    raise ModelError(
        f"unknown model {name!r}" + (f" (neither shipped nor in {file})" if file else ""),
        found=f"similar names: {', '.join(near)}" if near else "",
        allowed=", ".join(models),
        next_step="`lakeclip models` lists them with their sizes; --model-config FILE adds your own",
    )


def create_model(name: str, *, model_config_file: str | Path | None = None) -> CLIP:
    """Create a model with random weights: a module with `encode_image`, `encode_text` and `logit_scale`.

    Raises:
        ModelError: there is no such model (similar names are suggested), or the file is invalid.
    """
    return CLIP(model_config(name, model_config_file))


def model_config_from_dict(name: str, mapping: Mapping[str, object], *, where: str = "") -> ModelConfig:
    """Check the sizes of one model from a YAML file, and return them as a `ModelConfig`.

    Args:
        name: name of the model, for the error.
        where: name of the file, for the error.

    Raises:
        ModelError: a field is missing, unknown or of the wrong type, or no model can have these sizes.
    """
    problems: list[str] = []
    config = None
    try:
        config = TypeAdapter(ModelConfig).validate_python(dict(mapping))
        problems = size_problems(config)
    except ValidationError as error:
        for problem in error.errors():
            if (line := _explain(str(problem["loc"][0]), problem["type"], mapping)) not in problems:
                problems.append(line)
    if config is None or problems:
        what = f"invalid sizes of model {name!r}" + (f" in {where}" if where else "")
        raise ModelError(what, found="\n           ".join(problems), allowed=f"the fields {', '.join(_FIELDS)}")
    return config


@dataclass(frozen=True)
class ModelSummary:
    """Parameter and FLOP counts of a model.

    Attributes:
        parameters: number of parameters of both towers and the logit scale.
        image_parameters, text_parameters: number in each tower with its projection; the text tower's with embeddings.
        image_gflops, text_gflops: 10⁹ floating-point operations of a forward pass over one image, and over one text of
            `context_length` tokens. A multiply-add counts as two. A training step takes about three times as many.
        image_resolution: side of the square input in pixels.
        context_length: tokens in the longest caption.
        embed_dim: width of the shared space.
    """

    parameters: int
    image_parameters: int
    text_parameters: int
    image_gflops: float
    text_gflops: float
    image_resolution: int
    context_length: int
    embed_dim: int

    @property
    def gflops(self) -> float:
        """10⁹ floating-point operations of a forward pass over one pair."""
        return self.image_gflops + self.text_gflops


def summarize(config: ModelConfig) -> ModelSummary:
    """Return a model's parameter and FLOP counts: of shipped models from a table, of others by `count_model`."""
    return _shipped_summaries().get(config) or count_model(config)


@cache
def count_model(config: ModelConfig) -> ModelSummary:
    """Count a model's parameters and operations on the meta device, without allocating or computing anything.

    This takes about a second: PyTorch runs the whole model.
    """
    with torch.device("meta"), torch.no_grad():
        model = CLIP(config).eval()
        images = torch.zeros(1, 3, config.image_resolution, config.image_resolution)
        ids = torch.zeros(1, config.context_length, dtype=torch.int64)
        with FlopCounterMode(display=False) as image_flops:
            model.encode_image(images)
        with FlopCounterMode(display=False) as text_flops:
            model.encode_text(ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    image_parameters = sum(parameter.numel() for parameter in model.visual.parameters())
    return ModelSummary(
        parameters=parameters,
        image_parameters=image_parameters,
        text_parameters=parameters - image_parameters - model.logit_scale.numel(),
        image_gflops=image_flops.get_total_flops() / 1e9,
        text_gflops=text_flops.get_total_flops() / 1e9,
        image_resolution=config.image_resolution,
        context_length=config.context_length,
        embed_dim=config.embed_dim,
    )


@cache
def _shipped_summaries() -> dict[ModelConfig, ModelSummary]:
    """Read the table of the shipped models; tests/unit/models/test_zoo.py compares it with `count_model`."""
    table = json.loads((resources.files("lakeclip.models") / "configs" / "counts.json").read_text(encoding="utf-8"))
    return {config: ModelSummary(**table[name]) for name, config in available_models().items() if name in table}


def _read_models(path: Path) -> dict[str, ModelConfig]:
    layout = "model names with their fields below, as in lakeclip/models/configs/ViT.yaml"
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise ModelError(error.what, found=error.found, allowed=layout) from None
    models = {}
    for name, mapping in content.items():
        if not isinstance(mapping, Mapping):
            raise ModelError(f"{name!r} in {path} is not a model", found=repr(mapping), allowed=layout)
        models[str(name)] = model_config_from_dict(str(name), mapping, where=str(path))
    return models


def _explain(field: str, problem: str, mapping: Mapping[str, object]) -> str:
    if field not in _FIELDS:
        near = difflib.get_close_matches(field, _FIELDS, n=1)
        return f"{field}: no such field" + (f"; did you mean {near[0]}?" if near else "")
    if field not in mapping:
        return f"{field}: missing"
    return f"{field}: {mapping[field]!r}; {_ALLOWED.get(field, 'a whole number')}"


def _normalize_name(name: str) -> str:
    """Return a name without case and punctuation, so that `vit_b32` matches ViT-B/32."""
    return "".join(char for char in name.lower() if char.isalnum())
