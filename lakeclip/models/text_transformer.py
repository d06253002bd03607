"""The blocks of the text tower. Its embeddings and its projection are in `CLIP` itself, as in OpenAI's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lakeclip.models.transformer import BlockSettings, Groups, Transformer

#: Overhead of another group, in tokens of padding that can be computed in the same time. It is small on a CPU. A GPU
#: computes about a thousand tokens in the time that it takes to launch a group's kernels.
_GROUP_OVERHEAD = {"cpu": 4}
_GROUP_OVERHEAD_GPU = 1024
#: Positions whose embeddings stay as they are in a longer context.
_KEPT_POSITIONS = 20


class TextTransformer(Transformer):
    """Transformer that is initialized by its width and depth as in OpenAI's released code.

    If it is causal, tokens after the one that is read have no effect and are not computed.
    """

    def __init__(
        self, width: int, layers: int, heads: int, *, causal: bool = True, settings: BlockSettings | None = None
    ) -> None:
        super().__init__(width, layers, heads, causal=causal, settings=settings or BlockSettings())
        # The projections into the residual stream shrink with depth, so that its variance does not grow with depth.
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for name, parameter in self.resblocks.named_parameters():
            if name.endswith("attn.in_proj_weight"):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith("mlp.c_fc.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)
            elif name.endswith(("attn.out_proj.weight", "mlp.c_proj.weight")):
                nn.init.normal_(parameter, std=residual_std)


class Packed(NamedTuple):
    """Captions without their padding, sorted by length.

    Attributes:
        ids: token ids of all captions, one caption after another.
        groups: number of captions and length of each group.
        ends: position of the token that is read in each caption.
        inverse_order: index among the sorted captions of each caption of the batch.
    """

    ids: Int[Tensor, " tokens"]
    groups: Groups
    ends: Int[Tensor, " batch"]
    inverse_order: Int[Tensor, " batch"]

    def positions(self, embedding: Float[Tensor, "context width"]) -> Float[Tensor, "tokens width"]:
        """Return the position embedding of every token."""
        return torch.cat([embedding[:length].repeat(captions, 1) for captions, length in self.groups])


def find_ends(ids: Int[Tensor, "batch context"], end_token: int | None) -> Int[Tensor, " batch"]:
    """Return the position of the end of text: of its id's first occurrence, or of the highest id if it is None."""
    return ids.argmax(dim=-1) if end_token is None else (ids == end_token).int().argmax(dim=-1)


def whole_captions(ids: Int[Tensor, "batch context"], ends: Int[Tensor, " batch"]) -> Packed:
    """Return captions with their padding, for a model that attends to it."""
    rows = torch.arange(ids.shape[0], device=ids.device)
    return Packed(ids.flatten(), [(ids.shape[0], ids.shape[1])], ends, rows)


def pack_captions(ids: Int[Tensor, "batch context"], end_token: int | None = None) -> Packed:
    """Sort captions by length, and cut their padding, which is what follows the end of text (see `find_ends`)."""
    ends = find_ends(ids, end_token)
    if torch.compiler.is_exporting():
        # An exported program must not depend on the lengths of its example.
        return whole_captions(ids, ends)
    ends, order = ends.sort(stable=True)
    overhead = _GROUP_OVERHEAD.get(ids.device.type, _GROUP_OVERHEAD_GPU)
    # Tensors on the meta device have no values, so every caption counts as full length.
    groups = [(ids.shape[0], ids.shape[1])] if ids.is_meta else group_lengths((ends + 1).tolist(), overhead)
    ordered, first, parts = ids[order], 0, []
    for captions, length in groups:
        parts.append(ordered[first : first + captions, :length].reshape(-1))
        first += captions
    return Packed(torch.cat(parts), groups, ends, order.argsort())


def group_lengths(lengths: Sequence[int], group_overhead: int) -> list[tuple[int, int]]:
    """Divide ascending lengths into groups, each padded to its longest, at the least cost.

    The cost is the number of tokens plus `group_overhead` for each group. Returns (captions, length) of each group.
    """
    counts = sorted(Counter(lengths).items())
    # best[j]: the least cost of the first j distinct lengths, and the index at which their last group starts.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(counts) + 1):
        longest, captions, choices = counts[stop - 1][0], 0, []
        for start in reversed(range(stop)):
            captions += counts[start][1]
            choices.append((best[start][0] + captions * longest + group_overhead, start))
        best.append(min(choices))
    groups: list[tuple[int, int]] = []
    stop = len(counts)
    while stop:
        start = best[stop][1]
        groups.append((sum(captions for _, captions in counts[start:stop]), counts[stop - 1][0]))
        stop = start
    return groups[::-1]


def stretch_position_embedding(
    embedding: Float[Tensor, "positions width"], length: int
) -> Float[Tensor, "longer width"]:
    """Stretch position embeddings to a longer context; keep the first 20 as they are.

    Those are trained best, because most captions are short. The others are interpolated linearly, and beyond the last
    one extrapolated, as in Long-CLIP (arXiv 2403.15378, section 3.2): 77 positions become 248 with a factor of 4. Of 40
    positions or fewer, the first half is kept. For a shorter context, the first ones remain.

    Args:
        embedding: embeddings of 2 or more positions.
        length: number of positions of the new context.
    """
    old = len(embedding)
    if length <= old:
        return embedding[:length]
    kept = min(_KEPT_POSITIONS, old // 2)
    source = kept + torch.arange(length - kept, dtype=torch.float64) * (old - kept) / (length - kept)
    before = source.long().clamp(max=old - 2)
    share = (source - before)[:, None].to(embedding.dtype)
    stretched = embedding[before] + share * (embedding[before + 1] - embedding[before])
    return torch.cat([embedding[:kept], stretched])
