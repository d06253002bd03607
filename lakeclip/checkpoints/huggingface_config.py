"""Convert config.json of transformers' `CLIPModel` and `SiglipModel` to a `ModelConfig`, and back.

A missing field has the default of transformers' classes, which write only what differs. A field is believed if
lakeclip's model honours it, ignored if it has no effect on the features, and refused otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lakeclip.checkpoints.convert import NotNativeError
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.vision_transformer import HEAD_WIDTH

CONFIG = "config.json"

#: Value of eos_token_id that transformers takes for "the highest id of each text": early files had it by mistake.
HIGHEST_ID = 2

#: transformers' names of activations → lakeclip's. Several names are of the same function.
_ACTIVATIONS: dict[str, Literal["quick_gelu", "gelu", "gelu_tanh"]] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}
_ACTIVATION_NAMES = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


class Family(NamedTuple):
    """A kind of model of transformers: the defaults of its configuration, and what lakeclip's model needs for it.

    Attributes:
        model_type: name in config.json.
        architecture: name of the class.
        defaults: fields that decide the features, with their defaults, for the model and its two towers.
        settings: settings of `ModelConfig` that all models of this kind share.
    """

    model_type: str
    architecture: str
    defaults: dict[str, dict[str, Any]]
    settings: dict[str, Any]


_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_TOWER |= {"attention_dropout": 0.0}
_CLIP_TOWER = _TOWER | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_TOWER = _TOWER | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

CLIP_FAMILY = Family(
    "clip",
    "CLIPModel",
    {
        "": {"projection_dim": 512},
        "text_config": _CLIP_TOWER
        | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
        "vision_config": _CLIP_TOWER | {"image_size": 224, "patch_size": 32, "num_channels": 3},
    },
    {},
)
SIGLIP_FAMILY = Family(
    "siglip",
    "SiglipModel",
    {
        "": {},
        "text_config": _SIGLIP_TOWER
        | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": None, "pad_token_id": 1},
        "vision_config": _SIGLIP_TOWER
        | {"image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True},
    },
    {
        "vision_pool": "map",
        "vision_class_token": False,
        "vision_patch_bias": True,
        "ln_pre": False,
        "vision_projection": "none",
        "text_pool": "last",
        "causal": False,
        "text_projection": "linear",
    },
)
FAMILIES = (CLIP_FAMILY, SIGLIP_FAMILY)

#: Fields without effect on the features: of generation, training, classification, outputs, and the file itself.
_WITHOUT_EFFECT = frozenset(
    (
        *(
            "_attn_implementation_autoset",
            "_commit_hash",
            "_flash_attn_2_enabled",
            "_name_or_path",
            "add_cross_attention",
        ),
        *("architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id"),
        *("chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id"),
        *("diversity_penalty", "do_sample", "dropout", "dtype", "early_stopping"),
        *("encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty"),
        *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing"),
        *("id2label", "initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder"),
        *("label2id", "length_penalty", "logit_scale_init_value", "max_length", "min_length", "model_type"),
        *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences"),
        *("output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix"),
        *("problem_type", "projection_dim", "remove_invalid_values", "repetition_penalty", "return_dict"),
        *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
        *("text_config", "text_config_dict", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings"),
        *("tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version"),
        *("typical_p", "use_bfloat16", "use_cache", "vision_config", "vision_config_dict"),
    )
)
#: Values of other fields that say nothing.
_EMPTY: tuple[Any, ...] = (None, {}, [], "")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", found=str(error).splitlines()[0]) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a configuration", found=type(content).__name__, allowed="a JSON object")
    return content


class Description(NamedTuple):
    """Content of config.json as lakeclip needs it.

    Attributes:
        family: the kind of model.
        config: settings of lakeclip's model, with OpenAI's preprocessing.
        end_token: id at which the feature of a text is read; None if at the highest id of each row, or at the last one.
    """

    family: Family
    config: ModelConfig
    end_token: int | None


def read_config(folder: Path) -> Description:
    """Read config.json of a folder.

    Raises:
        CheckpointError: missing, invalid, or with a field that lakeclip does not know.
        NotNativeError: a model that lakeclip's own networks cannot compute.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise _no_config(folder)
    content = read_json(file)
    family = _family(folder, content)
    parts = {part: _fields(file, family, part, content) for part in family.defaults}
    model, text, vision = parts[""], parts["text_config"], parts["vision_config"]
    _check_towers(folder, family, text, vision)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    image_width, image_heads = vision["hidden_size"], vision["num_attention_heads"]
    end_token: int | None = None
    settings: dict[str, Any] = {}
    if family is CLIP_FAMILY:
        embed_dim, end_token = model["projection_dim"], _end_token(file, text)
        # The highest id of the vocabulary is the highest of its row too.
        settings["end_token"] = None if end_token == text["vocab_size"] - 1 else end_token
    else:
        embed_dim = width if text["projection_size"] is None else text["projection_size"]
        settings["pad_token"] = text["pad_token_id"]
        if embed_dim != image_width:
            raise CheckpointError(
                f"{file} describes no model whose two features can be compared",
                found=f"texts of {embed_dim} dimensions (projection_size), images of {image_width} (hidden_size)",
            )
    model_config = ModelConfig(
        embed_dim=embed_dim,
        image_resolution=vision["image_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_width=image_width,
        vision_patch_size=vision["patch_size"],
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        transformer_width=width,
        transformer_heads=heads,
        transformer_layers=text["num_hidden_layers"],
        activation=(activation := _ACTIVATIONS[vision["hidden_act"]]),
        text_activation=None if (other := _ACTIVATIONS[text["hidden_act"]]) == activation else other,
        layer_norm_eps=float(text["layer_norm_eps"]),
        # Values that follow from the others stay None, so that OpenAI's models have the configurations of the zoo.
        vision_heads=None if image_heads * HEAD_WIDTH == image_width else image_heads,
        vision_mlp_width=_mlp_width(vision),
        transformer_mlp_width=_mlp_width(text),
        **family.settings,
        **settings,
    )
    return Description(family, model_config, end_token)


def family_of(config: ModelConfig) -> Family:
    """Return the kind of transformers' models that computes what lakeclip's model computes.

    Raises:
        CheckpointError: there is none.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    differences = []
    for family in FAMILIES:
        expected = {name: defaults[name] for name in SIGLIP_FAMILY.settings} | family.settings
        values = {name: getattr(config, name) for name in expected}
        if not (different := {name: value for name, value in values.items() if value != expected[name]}):
            return family
        differences.append(
            f"{', '.join(f'{name} {value}' for name, value in different.items())} ({family.architecture})"
        )
    raise CheckpointError(
        "this model cannot be exported to Hugging Face: none of its classes computes the same",
        found="; ".join(differences),
        allowed="a model as CLIPModel or SiglipModel compute it",
        next_step="--to open_clip, or --to safetensors",
    )


def config_content(family: Family, config: ModelConfig, dtype: str, tokens: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of config.json for a model.

    Args:
        family: kind of the model (see `family_of`).
        config: settings of the model.
        dtype: type of the weights, such as "float32".
        tokens: ids of the text's first token, its last token and the padding: bos_token_id, eos_token_id, pad_token_id.
    """
    assert isinstance(config.vision_layers, int), "checked by the caller: no ResNet"
    common = {
        "layer_norm_eps": config.layer_norm_eps,
        "attention_dropout": 0.0,
    }
    text = common | {
        "hidden_act": _ACTIVATION_NAMES[config.text_activation or config.activation],
        "model_type": f"{family.model_type}_text_model",
        "hidden_size": config.transformer_width,
        "intermediate_size": config.transformer_mlp_width or 4 * config.transformer_width,
        "num_attention_heads": config.transformer_heads,
        "num_hidden_layers": config.transformer_layers,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        **tokens,
    }
    vision = common | {
        "hidden_act": _ACTIVATION_NAMES[config.activation],
        "model_type": f"{family.model_type}_vision_model",
        "hidden_size": config.vision_width,
        "intermediate_size": config.vision_mlp_width or 4 * config.vision_width,
        "num_attention_heads": config.vision_heads or config.vision_width // HEAD_WIDTH,
        "num_hidden_layers": config.vision_layers,
        "num_channels": 3,
        "image_size": config.image_resolution,
        "patch_size": config.vision_patch_size,
    }
    content: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "text_config": text,
        "vision_config": vision,
    }
    if family is CLIP_FAMILY:
        text["projection_dim"] = vision["projection_dim"] = content["projection_dim"] = config.embed_dim
        content["logit_scale_init_value"] = 2.6592
    else:
        text["projection_size"], vision["vision_use_head"] = config.embed_dim, True
    return content


def _mlp_width(tower: Mapping[str, Any]) -> int | None:
    width: int = tower["intermediate_size"]
    return None if width == 4 * tower["hidden_size"] else width


def _end_token(file: Path, text: Mapping[str, Any]) -> int | None:
    """Return the id at whose first position `CLIPTextModel` reads the feature; None for the highest id of each row."""
    end: int = text["eos_token_id"]
    if end == HIGHEST_ID:
        return None
    if end >= text["vocab_size"]:
        raise CheckpointError(
            f"{file} does not say which token ends a text",
            found=f"eos_token_id {end} in a vocabulary of {text['vocab_size']}",
            allowed="an id of the vocabulary",
            next_step='put "eos_token_id" into "text_config", the id that the tokenizer ends every text with',
        )
    return end


def _no_config(folder: Path) -> CheckpointError:
    inner = sorted(folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
    return CheckpointError(
        f"{folder} is not a folder of a Hugging Face model" if folder.is_dir() else f"there is no folder {folder}",
        found=f"no {CONFIG}" if folder.is_dir() else "",
        allowed="a folder by save_pretrained, or a model's name on the Hugging Face hub (org/name)",
        next_step=f"huggingface:{inner[0].parent}" if inner else "",
    )


def _family(folder: Path, content: Mapping[str, Any]) -> Family:
    kind = content.get("model_type")
    if family := next((family for family in FAMILIES if family.model_type == kind), None):
        return family
    if kind in ("clip_text_model", "clip_vision_model", "siglip_text_model", "siglip_vision_model"):
        tower = "text" if "text" in kind else "image"
        raise CheckpointError(
            f"{folder} contains one tower, not a CLIP",
            found=f"model_type {kind!r}",
            allowed="clip or siglip",
            next_step=f"lakeclip finetune --{tower}-encoder hf:{folder}, with another tower beside it",
        )
    is_naflex = kind == "siglip2"
    raise NotNativeError(
        f"lakeclip's own model cannot compute the features of {folder}",
        found=f"model_type {kind!r}" + (", SigLIP 2 with NaFlex, whose images keep their shape" if is_naflex else ""),
        allowed="clip, or siglip (SigLIP, and SigLIP 2 of a fixed resolution)",
        next_step="SigLIP 2 of a fixed resolution, such as huggingface:google/siglip2-base-patch16-224"
        if is_naflex
        else "",
    )


def _fields(file: Path, family: Family, part: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields that decide the features, for the model ("") or one of its towers.

    Raises:
        CheckpointError: an invalid value, or an unknown field.
    """
    defaults = family.defaults[part]
    values: Mapping[str, Any] = content
    if part:
        values = _object(file, part, content.get(part))
        # Early versions wrote a second object, which replaces the first with all its defaults.
        earlier = content.get(f"{part}_dict")
        if family is CLIP_FAMILY and earlier is not None:
            values = {**values, **defaults, **_object(file, f"{part}_dict", earlier)}
        kind = f"{family.model_type}_{'text' if part == 'text_config' else 'vision'}_model"
        if values.get("model_type", kind) not in (kind, family.model_type):
            raise NotNativeError(
                f"lakeclip's own model cannot compute the features of {file.parent}",
                found=f"model_type {values['model_type']!r} in {part}",
                allowed=kind,
            )
    known = {*defaults, *_WITHOUT_EFFECT}
    unknown = {name: value for name, value in values.items() if name not in known and value not in _EMPTY}
    if unknown:
        listed = ", ".join(f"{name}: {json.dumps(value)[:60]}" for name, value in list(unknown.items())[:5])
        raise CheckpointError(
            f"{file} has a field that lakeclip does not know, so the features might differ",
            found=listed + (f" in {part}" if part else ""),
            allowed=f"the fields of {family.architecture}",
            next_step="if it has no effect on the features, remove it from the file",
        )
    return {name: _checked(file, part, name, values.get(name, default), default) for name, default in defaults.items()}


def _object(file: Path, part: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a configuration", found=f"{part} is not an object")
    return value


def _checked(file: Path, part: str, name: str, value: Any, default: Any) -> Any:
    """Return a field's value if it has the default's type.

    Raises:
        CheckpointError: it has not.
    """
    if isinstance(default, (bool, str)):
        valid, allowed = isinstance(value, type(default)), type(default).__name__
    elif isinstance(default, float):
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
        allowed = "a number from 0 to 1"
    else:
        if name == "pad_token_id" and value is None:
            return default
        lowest = 0 if name.endswith("_token_id") else 1
        valid = type(value) is int and value >= lowest
        allowed = f"a whole number from {lowest} on"
        if default is None and value is None:
            return None
    if not valid:
        raise CheckpointError(
            f"{file} is not a configuration that lakeclip can use",
            found=f"{name}: {json.dumps(value)}" + (f" in {part}" if part else ""),
            allowed=allowed,
        )
    return value


def _check_towers(folder: Path, family: Family, text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raise a `NotNativeError` if lakeclip's model cannot compute the towers."""
    found, allowed = [], []
    for part, values in (("text_config", text), ("vision_config", vision)):
        if values["hidden_act"] not in _ACTIVATIONS:
            found.append(f"hidden_act {values['hidden_act']!r} in {part}")
            allowed.append(", ".join(_ACTIVATIONS))
        if values["attention_dropout"]:
            found.append(f"attention_dropout {values['attention_dropout']} in {part}")
            allowed.append("no attention_dropout")
    if text["layer_norm_eps"] != vision["layer_norm_eps"]:
        found.append(f"layer_norm_eps {text['layer_norm_eps']} of texts, {vision['layer_norm_eps']} of images")
        allowed.append("one layer_norm_eps for both")
    if vision["num_channels"] != 3:
        found.append(f"num_channels {vision['num_channels']}")
        allowed.append("3 channels")
    if not vision.get("vision_use_head", True):
        found.append("vision_use_head false")
        allowed.append("vision_use_head true")
    if found:
        raise NotNativeError(
            f"lakeclip's own model cannot compute the features of {folder}",
            found="; ".join(found),
            allowed="; ".join(allowed),
        )
