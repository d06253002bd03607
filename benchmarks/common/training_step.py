"""One optimisation step of lakeclip and of open_clip, each as its own trainer takes it.

step.py, microbatch.py and gpu.py time it. Apart from lakeclip's step, this module imports only torch and jaxtyping, so
that gpu.py runs on a machine with little else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lakeclip.config.schema import ModelConfig, OptimizerConfig
from lakeclip.losses import contrastive_loss
from lakeclip.losses.registry import MAX_LOGIT_SCALE
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.training.grad_cache import backward_through_batch
from lakeclip.training.optim.optimizers import adamw

CONTEXT = 77
_VOCABULARY = 49408
#: Random captions: lengths in tokens, start and end included, are log-normal with this median and spread. Their mean
#: is 14.1 and their 95th percentile 21, as for Flickr8k's captions; COCO's are similar.
MEDIAN_TOKENS, SPREAD, MIN_TOKENS, MAX_TOKENS = 13.6, 0.26, 4, 40

#: AdamW's values on both sides. The learning rate is so small that random pairs hardly change the weights.
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-6, (0.9, 0.98), 1e-6, 0.2


@dataclass
class Side:
    """One side, ready to step.

    Attributes:
        step: (images, token ids) → loss; takes one complete optimisation step.
        images: (pairs, side in pixels) → images in the form that this side's own loader delivers.
        texts: (pairs, 77) token ids → token ids in the form that this side's own loader delivers.
    """

    model: nn.Module
    step: Callable[[Any, Tensor], Tensor]
    images: Callable[[int, int], Tensor]
    texts: Callable[[Tensor], Tensor]

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


# ── lakeclip ────────────────────────────────────────────────────────────────────────────────────────────────────────


def lakeclip_side(
    config: ModelConfig,
    *,
    bf16: bool,
    minibatch_size: int | None = None,
    compiled: bool = False,
    device: str = "cpu",
) -> Side:
    """Build lakeclip's side: the step of `CLIPWrapper.training_step` without Lightning's Trainer."""
    model = CLIP(config).to(device).train()
    optimizer = adamw(model, OptimizerConfig(lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY))
    if compiled:
        model.visual.compile()

    def embed(images: Tensor, ids: Any) -> tuple[Tensor, Tensor]:
        return _unit(model.encode_image(images)), _unit(model.encode_text(ids))

    def step(images: Tensor, ids: Tensor) -> Tensor:
        # Lightning also runs the complete training step under autocast.
        with autocast(bf16, device):
            optimizer.zero_grad()
            result = backward_through_batch(
                images,
                ids,
                model=model,
                embed=embed,
                loss=lambda image, text: contrastive_loss(image, text, model.logit_scale),
                scalars=(model.logit_scale,),
                minibatch_size=minibatch_size,
                backward=torch.Tensor.backward,
                no_sync=nullcontext,
            )
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        return result.loss

    return Side(model, step, partial(pixels, device=device), lambda ids: trim_padding(ids).to(device))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


# ── open_clip ───────────────────────────────────────────────────────────────────────────────────────────────────────

#: Options that make open_clip faster without changing the model: AdamW's kernels and the memory format of the weights.
PEER_OPTIONS = ("fused", "foreach", "channels_last")


def open_clip_side(
    name: str,
    *,
    bf16: bool,
    options: Sequence[str] = (),
    context: int | None = None,
    accumulate: int = 1,
    compiled: bool = False,
    device: str = "cpu",
) -> Side:
    """Build open_clip's side: its model, its loss, and the sequence of its `train_one_epoch`.

    Args:
        name: open_clip's model name, such as ViT-B-32-quickgelu.
        options: any of `PEER_OPTIONS`; open_clip's own trainer uses none by default.
        context: value of open_clip's `--force-context-length`.
        accumulate: value of open_clip's `--accum-freq`; the step then takes that many concatenated batches.
    """
    import open_clip as library

    model = library.create_model(name, output_dict=True, device=device, force_context_length=context).train()
    loss = library.ClipLoss(cache_labels=True)
    if "channels_last" in options:
        model = model.to(memory_format=torch.channels_last)
    optimizer = peer_optimizer(model, options)
    forward = torch.compile(model) if compiled else model

    def plain_loss(images: Tensor, ids: Tensor) -> Tensor:
        with autocast(bf16, device):
            value: Tensor = sum(loss(**forward(images, ids), output_dict=True).values())
        value.backward()
        return value.detach()

    def accumulated_loss(images: Tensor, ids: Tensor) -> Tensor:
        parts = list(zip(images.chunk(accumulate), ids.chunk(accumulate), strict=True))
        features: dict[str, list[Tensor]] = {"image_features": [], "text_features": []}
        with torch.no_grad(), autocast(bf16, device):
            for part in parts:
                output = forward(*part)
                for tower, cached in features.items():
                    cached.append(output[tower])
        for number, part in enumerate(parts):
            with autocast(bf16, device):
                output = forward(*part)
                joined = {
                    tower: torch.cat([*cached[:number], output[tower], *cached[number + 1 :]])
                    for tower, cached in features.items()
                }
                value: Tensor = sum(loss(**joined, logit_scale=output["logit_scale"], output_dict=True).values())
            value.backward()
        return value.detach()

    def step(images: Tensor, ids: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = (plain_loss if accumulate == 1 else accumulated_loss)(images, ids)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return value

    return Side(
        model,
        step,
        partial(normalized_pixels, device=device),
        lambda ids: (ids if context is None else truncate(ids, context)).to(device),
    )


def peer_optimizer(model: nn.Module, options: Sequence[str]) -> torch.optim.AdamW:
    """Build the AdamW of open_clip's main.py, which does not decay gains and biases."""
    no_decay_names = ("bn", "ln", "bias", "logit_scale")
    no_decay = [p for name, p in model.named_parameters() if p.ndim < 2 or any(part in name for part in no_decay_names)]
    excluded = {id(parameter) for parameter in no_decay}
    return torch.optim.AdamW(
        [
            {"params": no_decay, "weight_decay": 0.0},
            {"params": [p for p in model.parameters() if id(p) not in excluded], "weight_decay": WEIGHT_DECAY},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        fused="fused" in options or None,
        foreach="foreach" in options or None,
    )


# ── inputs of a step ──────────────────────────────────────────────────────────────────────────────────────────────────


def pixels(pairs: int, side: int, *, device: str = "cpu") -> Tensor:
    """Return random images, (pairs, 3, side, side) uint8."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (pairs, 3, side, side), dtype=torch.uint8, generator=draws).to(device)


def normalized_pixels(pairs: int, side: int, *, device: str = "cpu") -> Tensor:
    """Return the images of `pixels`, normalised, (pairs, 3, side, side) float32."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    images = torch.empty(pairs, 3, side, side)
    # Row by row, so that creating the images does not set the peak memory of the process.
    for row, image in zip(images, pixels(pairs, side), strict=True):
        row.copy_((image / 255 - mean) / std)
    return images.to(device)


def random_ids(pairs: int, batches: int, *, vocabulary: int = _VOCABULARY) -> list[Tensor]:
    """Return batches of random token ids, (pairs, 77). Low ids are more frequent; see `MEDIAN_TOKENS` for lengths."""
    draws = torch.Generator().manual_seed(0)
    lengths = torch.empty(batches * pairs).log_normal_(math.log(MEDIAN_TOKENS), SPREAD, generator=draws)
    lengths = lengths.round().clamp(MIN_TOKENS, MAX_TOKENS).long()[:, None]
    tokens = (vocabulary - 3) ** torch.rand(batches * pairs, CONTEXT, generator=draws)
    index = torch.arange(CONTEXT)
    ids = torch.where(index < lengths - 1, tokens.long(), 0)
    ids[:, 0] = vocabulary - 2
    ids[index == lengths - 1] = vocabulary - 1
    return list(ids.split(pairs))


def caption_ids(captions: str | None, pairs: int, batches: int) -> list[Tensor]:
    """Return batches of token ids, (pairs, 77), of a file with a caption per line; without a file, random ids."""
    if captions is None:
        return random_ids(pairs, batches)
    from lakeclip.text.tokenizer import tokenize

    lines = [line for line in Path(captions).read_text(encoding="utf-8").splitlines() if line.strip()]
    # Images often have five captions in adjacent lines. A stride of 7 takes neighbours from different images.
    texts = [lines[number * 7 % len(lines)] for number in range(batches * pairs)]
    return list(tokenize(texts, CONTEXT).split(pairs))


def trim_padding(ids: Tensor) -> Tensor:
    """Drop the columns that are padding in every row, as `lakeclip.data` does."""
    return ids[:, : int(ids.argmax(dim=-1).max()) + 1]


def truncate(ids: Tensor, context: int) -> Tensor:
    """Truncate captions to fewer tokens, with the end-of-text token still at their end."""
    cut = ids[:, :context].clone()
    ended = (cut == ids.max()).any(dim=-1)
    cut[~ended, -1] = ids.max()
    return cut


# ── measures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def needed_flops(config: ModelConfig, ids: Tensor) -> float:
    """Compute the least floating-point operations of a step over these pairs, in both towers' matrix products.

    Padding does not count, nor what the last block computes for tokens other than the one that is read out. The
    backward pass counts twice the forward pass.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as image:
        side = config.image_resolution
        CLIP(config).visual(torch.zeros(1, 3, side, side))
    lengths = (ids.argmax(dim=-1) + 1).double()
    width = config.transformer_width
    tokens, token_pairs = float(lengths.sum()), float(lengths.square().sum())
    blocks = (config.transformer_layers - 1) * (24 * width**2 * tokens + 4 * width * token_pairs)
    last = 4 * width**2 * tokens + 4 * width * tokens + 20 * width**2 * len(ids)
    text = blocks + last + 2 * width * config.embed_dim * len(ids)
    return 3 * (image.get_total_flops() * len(ids) + text)


def counted_flops(side: Side, images: Tensor, ids: Tensor) -> float:
    """Count the floating-point operations in the matrix products and convolutions that this side computes in a step."""
    with FlopCounterMode(display=False) as counter:
        side.step(images, ids)
    return counter.get_total_flops()


def matmul_peak(*, bf16: bool, clock: Callable[[], float], device: str = "cpu", size: int = 2048) -> float:
    """Measure the floating-point operations a second of a large square matrix product: the best of several."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else None) for _ in range(2))
    best = math.inf
    for _ in range(12):
        synchronize(device)
        start = clock()
        left @ right
        synchronize(device)
        best = min(best, clock() - start)
    return 2 * size**3 / best


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def autocast(bf16: bool, device: str) -> AbstractContextManager[Any]:
    """Return bfloat16 autocast, or a context manager that does nothing."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16) if bf16 else nullcontext()
