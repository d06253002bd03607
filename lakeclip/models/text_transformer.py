"""The blocks of the text tower. Its embeddings and its projection stand in `CLIP` itself, as in OpenAI's layout."""

from __future__ import annotations

from torch import nn

from lakeclip.models.transformer import Transformer


class TextTransformer(Transformer):
    """A causal transformer, initialised by its width and depth as OpenAI's released model code does.

    Tokens see only what stands before them, so padding after the last token read changes nothing: a batch may be
    trimmed to its longest caption.
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
