"""The blocks of the text tower. Its embeddings and its projection stand in `CLIP` itself, as in OpenAI's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lakeclip.models.transformer import Groups, Transformer

#: Making another group costs a CPU about as much as computing so many tokens of padding; a GPU starts each group's
#: kernels in the time in which it computes about a thousand.
_TOKENS_PER_GROUP = {"cpu": 4}
_TOKENS_PER_GROUP_OF_OTHERS = 1024


class TextTransformer(Transformer):
    """A causal transformer, initialised by its width and depth as OpenAI's released model code does.

    Tokens see only what stands before them, so what stands after the last token read changes nothing, and is not
    computed.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__(width, layers, heads, causal=True)
        # What is added to the residual stream shrinks with depth, so that the stream's variance does not grow with it.
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for name, parameter in self.resblocks.named_parameters():
            if name.endswith("attn.in_proj_weight"):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith("mlp.c_fc.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)
            elif name.endswith(("attn.out_proj.weight", "mlp.c_proj.weight")):
                nn.init.normal_(parameter, std=residual_std)


class Packed(NamedTuple):
    """Captions without their padding.

    Attributes:
        ids: token ids of one caption after another, by length.
        groups: how many captions of which length.
        ends: where each caption ends, counted from its start.
        back: the place among these of each caption of the batch.
    """

    ids: Int[Tensor, " tokens"]
    groups: Groups
    ends: Int[Tensor, " batch"]
    back: Int[Tensor, " batch"]

    def positions(self, embedding: Float[Tensor, "context width"]) -> Float[Tensor, "tokens width"]:
        """The position embedding of every token."""
        return torch.cat([embedding[:length].repeat(captions, 1) for captions, length in self.groups])


def pack(ids: Int[Tensor, "batch context"]) -> Packed:
    """Lay captions of like length beside each other, up to the end-of-text token, which has the highest id."""
    if torch.compiler.is_exporting():
        # A program for any lengths cannot depend on these.
        rows = torch.arange(ids.shape[0], device=ids.device)
        return Packed(ids.flatten(), [(ids.shape[0], ids.shape[1])], ids.argmax(dim=-1), rows)
    ends, order = ids.argmax(dim=-1).sort(stable=True)
    cost = _TOKENS_PER_GROUP.get(ids.device.type, _TOKENS_PER_GROUP_OF_OTHERS)
    # A model on the meta device computes nothing, so all its captions count as whole.
    groups = [(ids.shape[0], ids.shape[1])] if ids.is_meta else group_lengths((ends + 1).tolist(), cost)
    ordered, first, parts = ids[order], 0, []
    for captions, length in groups:
        parts.append(ordered[first : first + captions, :length].reshape(-1))
        first += captions
    return Packed(torch.cat(parts), groups, ends, order.argsort())


def group_lengths(lengths: Sequence[int], tokens_per_group: int) -> list[tuple[int, int]]:
    """Cut ascending lengths into groups, each padded to its longest, at the least cost: tokens, and so many a group."""
    counts = sorted(Counter(lengths).items())
    # best[j]: the cost of the first j different lengths, and where their last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(counts) + 1):
        longest, captions, choices = counts[stop - 1][0], 0, []
        for start in reversed(range(stop)):
            captions += counts[start][1]
            choices.append((best[start][0] + captions * longest + tokens_per_group, start))
        best.append(min(choices))
    groups: list[tuple[int, int]] = []
    stop = len(counts)
    while stop:
        start = best[stop][1]
        groups.append((sum(captions for _, captions in counts[start:stop]), counts[stop - 1][0]))
        stop = start
    return groups[::-1]
