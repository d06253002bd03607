"""The layers of a tower, lowest first, for freezing and layer-wise learning rates.

The first layer is the stem (patches, convolutions before the blocks, embeddings). Each block is one layer. The last
layer is everything after the blocks (norms, projections). The head that a `DualEncoder` adds belongs to no layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import nn

from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.vision_transformer import VisionTransformer

#: Prefixes of the image tower's parameter names in `CLIP` and in `DualEncoder`. All other parameters with a dimension
#: belong to the text tower; those without are the scalars of the loss (`logit_scale`, `logit_bias`).
IMAGE_TOWER_PREFIXES = ("visual.", "image_encoder.", "image_projection.")

#: The modules and single parameters that make up one layer.
Layer = list[nn.Module | nn.Parameter]


def image_layers(model: CLIP | DualEncoder) -> list[Layer]:
    """Return the layers of the image tower, lowest first."""
    if isinstance(model, CLIP):
        return _visual_layers(model.visual)
    return _layers(model.image_encoder)


def text_layers(model: CLIP | DualEncoder) -> list[Layer]:
    """Return the layers of the text tower, lowest first."""
    if isinstance(model, CLIP):
        stem: Layer = [model.token_embedding, model.positional_embedding]
        blocks: list[Layer] = [[block] for block in model.transformer.resblocks]
        return [stem, *blocks, _present(model.ln_final, model.text_projection)]
    return _layers(model.text_encoder)


def parameters(layer: Layer) -> Iterator[nn.Parameter]:
    """Return all parameters of a layer."""
    return chain.from_iterable([part] if isinstance(part, nn.Parameter) else part.parameters() for part in layer)


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch-norm layers of a module, which normalize by the batch and keep running statistics of it."""
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def _present(*parts: nn.Module | nn.Parameter | None) -> Layer:
    return [part for part in parts if part is not None]


def _visual_layers(visual: nn.Module) -> list[Layer]:
    if isinstance(visual, VisionTransformer):
        stem = _present(visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre)
        blocks: list[Layer] = [[block] for block in visual.transformer.resblocks]
        return [stem, *blocks, _present(visual.ln_post, visual.attn_pool, visual.proj)]
    return _layers(visual)


def _layers(tower: nn.Module) -> list[Layer]:
    """Return the layers of any tower; its blocks are the modules that it repeats, in order of definition."""
    if isinstance(tower, CLIP):
        return text_layers(tower)
    if isinstance(tower, VisionTransformer):
        return _visual_layers(tower)
    blocks = dict(_blocks(tower))
    if not blocks:
        blocks = {name: child for name, child in tower.named_children() if any(True for _ in child.parameters())}
    stem: Layer = []
    middle: list[Layer] = [[block] for block in blocks.values()]
    top: Layer = []
    names = list(blocks)
    current = -1
    for name, part in _flatten_around(tower, blocks):
        if name in blocks:
            current = names.index(name)
        elif current < 0:
            stem.append(part)
        elif current == len(names) - 1:
            top.append(part)
        else:
            middle[current].append(part)
    return [stem, *middle, top]


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in the outermost lists or sequences whose modules are all of one type, with their names."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(child.children())
        # A plain layer in a sequence is not a block, and neither are the parts of a block, which have several types.
        is_block_list = len({type(part) for part in inner}) == 1 and bool(list(inner[0].children()))
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and is_block_list:
            yield from ((f"{path}.{key}", part) for key, part in child.named_children())
        else:
            yield from _blocks(child, f"{path}.")


def _flatten_around(tower: nn.Module, blocks: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield the blocks and the largest modules without blocks, in order; a module's parameters before its children."""

    def visit(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}{name}", parameter
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path not in blocks and any(block.startswith(f"{path}.") for block in blocks):
                yield from visit(child, f"{path}.")
            else:
                yield path, child

    return visit(tower, "")
