"""A tower as layers, lowest first: what is locked, or learns slower, is counted in them.

The first layer is the stem (patches, convolutions before the blocks, embeddings), the last what comes after the blocks
(norms, projections); between them each block is one. A head that a `DualEncoder` puts on a tower is in none.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import nn

from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.vision_transformer import VisionTransformer

#: Parts of one layer, each a module or a single parameter.
Layer = list[nn.Module | nn.Parameter]


def image_layers(model: CLIP | DualEncoder) -> list[Layer]:
    """The layers of the image tower."""
    if isinstance(model, CLIP):
        return _visual_layers(model.visual)
    return _layers(model.image_encoder)


def text_layers(model: CLIP | DualEncoder) -> list[Layer]:
    """The layers of the text tower."""
    if isinstance(model, CLIP):
        stem: Layer = [model.token_embedding, model.positional_embedding]
        blocks: list[Layer] = [[block] for block in model.transformer.resblocks]
        return [stem, *blocks, [model.ln_final, model.text_projection]]
    return _layers(model.text_encoder)


def parameters(layer: Layer) -> Iterator[nn.Parameter]:
    """All parameters of a layer."""
    return chain.from_iterable([part] if isinstance(part, nn.Parameter) else part.parameters() for part in layer)


def _visual_layers(visual: nn.Module) -> list[Layer]:
    if isinstance(visual, VisionTransformer):
        stem: Layer = [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre]
        blocks: list[Layer] = [[block] for block in visual.transformer.resblocks]
        return [stem, *blocks, [visual.ln_post, visual.proj]]
    return _layers(visual)


def _layers(tower: nn.Module) -> list[Layer]:
    """Of a stranger's tower: its blocks are what it repeats, in the order in which they are defined."""
    if isinstance(tower, CLIP):
        return text_layers(tower)
    if isinstance(tower, VisionTransformer):
        return _visual_layers(tower)
    blocks = dict(_blocks(tower))
    if not blocks:
        blocks = {name: child for name, child in tower.named_children() if any(True for _ in child.parameters())}
    stem: Layer = []
    between: list[Layer] = [[block] for block in blocks.values()]
    top: Layer = []
    names = list(blocks)
    reached = -1
    for name, part in _others(tower, blocks):
        if name in blocks:
            reached = names.index(name)
        elif reached < 0:
            stem.append(part)
        elif reached == len(names) - 1:
            top.append(part)
        else:
            between[reached].append(part)
    return [stem, *between, top]


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What stands in outermost lists of modules that are all of one kind."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(child.children())
        # A bare layer in a sequence is no block; nor are the parts of one, which are of several kinds.
        alike = len({type(part) for part in inner}) == 1 and bool(list(inner[0].children()))
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and alike:
            yield from ((f"{path}.{key}", part) for key, part in child.named_children())
        else:
            yield from _blocks(child, f"{path}.")


def _others(tower: nn.Module, blocks: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Blocks, and the largest parts that hold none, in order; parameters of a module before its children."""

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}{name}", parameter
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path not in blocks and any(block.startswith(f"{path}.") for block in blocks):
                yield from walk(child, f"{path}.")
            else:
                yield path, child

    return walk(tower, "")
