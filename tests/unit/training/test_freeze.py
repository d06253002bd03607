"""Locked layers, layer-wise learning rates, and LoRA."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lakeclip.checkpoints.native import build_model, read_checkpoint
from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig, TeacherConfig
from lakeclip.models.clip import CLIP
from lakeclip.models.layers import image_layers, parameters, text_layers
from lakeclip.training.callbacks.wise_ft import merged_copy
from lakeclip.training.finetune import FinetuneModule
from lakeclip.training.freeze import build_finetune_optimizer, freeze_and_adapt, with_finetune_defaults
from lakeclip.training.lora import LoRAParametrization
from tests.unit.training.optim.test_optimizers import SMALL
from tests.unit.training.test_finetune import custom
from tests.unit.training.test_grad_cache import VIT, batch_of
from tests.unit.training.test_module import pairs, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|val_dataloader|LeafSpec)")
DEEP = replace(VIT, vision_layers=3, transformer_layers=2)


def make_clip(config: Any = DEEP) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config)


def names_of(model: nn.Module, layers: list[Any]) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in parameters(layer)} for layer in layers]


@pytest.mark.parametrize("config", [DEEP, SMALL])
def test_layers_of_a_clip_cover_all_its_parameters(config: Any) -> None:
    model = make_clip(config)
    image, text = names_of(model, image_layers(model)), names_of(model, text_layers(model))
    everything = [name for layer in image + text for name in layer]
    assert sorted(everything) == sorted(set(dict(model.named_parameters())) - {"logit_scale"})
    assert "visual.conv1.weight" in image[0]
    assert text[0] == {"token_embedding.weight", "positional_embedding"}
    assert text[-1] == {"ln_final.weight", "ln_final.bias", "text_projection"}
    if config is DEEP:
        assert len(image) == 5
        assert "visual.proj" in image[-1]
        assert all(name.startswith("visual.transformer.resblocks.1.") for name in image[2])
    else:
        assert all("attnpool" in name for name in image[-1])


def test_layers_of_towers_from_other_libraries() -> None:
    model = custom().model
    text = names_of(model, text_layers(model))
    assert len(text) == 4
    assert all(".embeddings." in name for name in text[0])
    assert all(".layer.0." in name for name in text[1])
    assert all(".pooler." in name for name in text[-1])
    image = names_of(model, image_layers(model))
    assert sorted(name for layer in image + text for name in layer) == sorted(
        name for name, _ in model.named_parameters() if not name.startswith("logit") and "projection" not in name
    )


@pytest.mark.parametrize("config", [DEEP, SMALL])
def test_lower_layers_are_frozen(config: Any) -> None:
    model = make_clip(config)
    freeze_and_adapt(model, KeepConfig(lock_image=2, lock_text="all"))
    for index, layer in enumerate(image_layers(model)):
        assert {parameter.requires_grad for parameter in parameters(layer)} == {index >= 2}
    assert not any(parameter.requires_grad for layer in text_layers(model) for parameter in parameters(layer))
    assert model.logit_scale.requires_grad


def test_a_locked_tower_computes_the_same_after_training(tmp_path: Path) -> None:
    """Includes batch norm, whose statistics would change even without gradients."""
    config = replace(SMALL, vocab_size=49408, context_length=77)
    module = FinetuneModule(make_clip(config), model_name="mine", keep=KeepConfig(lock_image="all"))
    before = copy.deepcopy(module.model.visual).eval()
    trainer(tmp_path, max_steps=2, enable_checkpointing=False).fit(module, pairs(8, 4))
    images = batch_of(3)[0].float()
    with torch.no_grad():
        assert torch.equal(module.model.visual(images), before(images))
    assert not any(part.training for part in module.model.visual.modules() if list(part.parameters(recurse=False)))
    assert module.model.transformer.training


def test_layer_decay_lowers_the_learning_rate_by_depth() -> None:
    model = make_clip()
    config = with_finetune_defaults(FinetuneOptimizerConfig(lr=1.0, layer_decay=0.5, algorithm="adamw"), is_clip=True)
    optimizer = build_finetune_optimizer(model, [], config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for layers in (image_layers(model), text_layers(model)):
        for below, layer in enumerate(reversed(layers)):
            assert {rates[id(parameter)] for parameter in parameters(layer)} == {0.5**below}
    assert rates[id(model.logit_scale)] == 1.0


def test_finetune_defaults_differ_between_towers_and_a_clip() -> None:
    towers = with_finetune_defaults(FinetuneOptimizerConfig(), is_clip=False)
    whole = with_finetune_defaults(FinetuneOptimizerConfig(), is_clip=True)
    assert (towers.algorithm, towers.lr, towers.weight_decay) == ("sgd", 3e-3, 0.0)
    assert (whole.algorithm, whole.lr) == ("adamw", 1e-5)


# ── LoRA ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", [DEEP, SMALL])
def test_lora_starts_as_the_model_itself_and_covers_every_large_weight(config: Any) -> None:
    model = make_clip(config)
    images, ids = batch_of(4)
    images = images.float()
    model.eval()
    with torch.no_grad():
        before = model.encode_image(images), model.encode_text(ids)
    freeze_and_adapt(model, KeepConfig(lora_rank=2))
    with torch.no_grad():
        after = model.encode_image(images), model.encode_text(ids)
    # The update is zero, but a convolution with copied weights may sum in a different order.
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.endswith((".up", ".down")) or name == "logit_scale" for name in trained)
    adapted = {name.partition("parametrizations.")[2].split(".")[0] for name in trained if "parametrizations" in name}
    assert {"in_proj_weight", "weight", "text_projection"} - {"text_projection"} <= adapted
    model.encode_image(images).sum().backward()
    model.encode_text(ids).sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained - {"logit_scale"}, "every LoRA parameter is used"


def test_lora_equals_the_papers_formula() -> None:
    """H = Wx + (alpha / r) B A x, for a linear layer and a convolution."""
    torch.manual_seed(0)
    for layer, x in ((nn.Linear(6, 8), torch.randn(3, 6)), (nn.Conv2d(6, 8, 3), torch.randn(2, 6, 5, 5))):
        lora = LoRAParametrization(layer.weight, rank=2, alpha=6.0)
        with torch.no_grad():
            lora.up.normal_()
        adapted = copy.deepcopy(layer)
        with torch.no_grad():
            adapted.weight.copy_(lora(layer.weight))
        update = copy.deepcopy(layer)
        with torch.no_grad():
            update.weight.copy_((3.0 * lora.up @ lora.down).view_as(layer.weight))
            assert update.bias is not None
            update.bias.zero_()
        torch.testing.assert_close(adapted(x), layer(x) + update(x), rtol=1e-5, atol=1e-5)


def test_a_lora_checkpoint_loads_as_a_plain_model(tmp_path: Path) -> None:
    config = replace(DEEP, vocab_size=49408, context_length=77)
    module = FinetuneModule(
        make_clip(config),
        model_name="mine",
        optimizer=FinetuneOptimizerConfig(lr=1e-2, algorithm="adamw"),
        keep=KeepConfig(lora_rank=2),
        teacher=TeacherConfig(targets="none"),
    )
    run = trainer(tmp_path, max_steps=3, enable_checkpointing=False)
    run.fit(module, pairs(8, 4))
    run.save_checkpoint(tmp_path / "lora.ckpt")
    loaded, merged = build_model(read_checkpoint(tmp_path / "lora.ckpt")), merged_copy(module.model)
    assert loaded.state_dict().keys() == make_clip(config).state_dict().keys() == merged.state_dict().keys()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, merged.state_dict()[name], rtol=0, atol=1e-7)
    key = "transformer.resblocks.0.attn.in_proj_weight"
    assert not torch.equal(loaded.state_dict()[key], make_clip(config).state_dict()[key])
