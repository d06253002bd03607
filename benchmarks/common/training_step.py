"""One optimisation step of lakeclip and of open_clip, each as its own trainer takes it.

step.py, microbatch.py and gpu.py time it. Of lakeclip this needs only what a step needs, torch and jaxtyping, so that
gpu.py runs on a machine with little else.
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
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.training.microbatch import backward_through_batch
from lakeclip.training.optimizers import MAX_LOGIT_SCALE, adamw

CONTEXT = 77
_VOCABULARY = 49408
#: Without captions: lengths in tokens, start and end included, are log-normal with this median and spread. Their mean
#: is 14.1 and their 95th percentile 21, as of Flickr8k's captions; COCO's are much the same.
MEDIAN_TOKENS, SPREAD, FEWEST, MOST = 13.6, 0.26, 4, 40

#: Both sides': so small that random pairs leave the weights where they are.
LEARNING_RATE, BETAS, EPSILON, DECAY = 1e-6, (0.9, 0.98), 1e-6, 0.2


@dataclass
class Side:
    """One side, ready to step.

    Attributes:
        step: (images, token ids) → loss; takes one whole optimisation step.
        images: (pairs, side in pixels) → the images as this side's own loader hands them over.
        texts: (pairs, 77) token ids → the same.
    """

    model: nn.Module
    step: Callable[[Any, Tensor], Tensor]
    images: Callable[[int, int], Tensor]
    texts: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.model.parameters())


# ── lakeclip ────────────────────────────────────────────────────────────────────────────────────────────────────────


def lakeclip(
    config: ModelConfig,
    *,
    bf16: bool,
    minibatch_size: int | None = None,
    compiled: bool = False,
    device: str = "cpu",
) -> Side:
    """What `CLIPWrapper.training_step` does, without Lightning's Trainer around it."""
    model = CLIP(config).to(device).train()
    optimizer = adamw(model, OptimizerConfig(lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY))
    if compiled:
        model.visual.compile()

    def embed(images: Tensor, ids: Any) -> tuple[Tensor, Tensor]:
        return _unit(model.encode_image(images)), _unit(model.encode_text(ids))

    def step(images: Tensor, ids: Tensor) -> Tensor:
        # Lightning, too, has the whole of the training step within autocast.
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

    return Side(model, step, partial(pixels, device=device), lambda ids: trimmed(ids).to(device))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


# ── open_clip ───────────────────────────────────────────────────────────────────────────────────────────────────────

#: What makes open_clip faster without making it another model: its AdamW's kernels and its weights' order in memory.
PEER_OPTIONS = ("fused", "foreach", "channels_last")


def open_clip(
    name: str,
    *,
    bf16: bool,
    options: Sequence[str] = (),
    context: int | None = None,
    accumulate: int = 1,
    compiled: bool = False,
    device: str = "cpu",
) -> Side:
    """Its model, its loss, and the sequence of its `train_one_epoch`.

    Args:
        name: open_clip's, such as ViT-B-32-quickgelu.
        options: of `PEER_OPTIONS`; none is its own trainer's default.
        context: its `--force-context-length`.
        accumulate: its `--accum-freq`; the step then takes that many batches at once, joined.
    """
    import open_clip as library

    model = library.create_model(name, output_dict=True, device=device, force_context_length=context).train()
    loss = library.ClipLoss(cache_labels=True)
    if "channels_last" in options:
        model = model.to(memory_format=torch.channels_last)
    optimizer = peer_optimizer(model, options)
    called = torch.compile(model) if compiled else model

    def whole(images: Tensor, ids: Tensor) -> Tensor:
        with autocast(bf16, device):
            value: Tensor = sum(loss(**called(images, ids), output_dict=True).values())
        value.backward()
        return value.detach()

    def in_parts(images: Tensor, ids: Tensor) -> Tensor:
        parts = list(zip(images.chunk(accumulate), ids.chunk(accumulate), strict=True))
        features: dict[str, list[Tensor]] = {"image_features": [], "text_features": []}
        with torch.no_grad(), autocast(bf16, device):
            for part in parts:
                found = called(*part)
                for side, known in features.items():
                    known.append(found[side])
        for number, part in enumerate(parts):
            with autocast(bf16, device):
                found = called(*part)
                joined = {
                    side: torch.cat([*known[:number], found[side], *known[number + 1 :]])
                    for side, known in features.items()
                }
                value: Tensor = sum(loss(**joined, logit_scale=found["logit_scale"], output_dict=True).values())
            value.backward()
        return value.detach()

    def step(images: Tensor, ids: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = (whole if accumulate == 1 else in_parts)(images, ids)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return value

    return Side(
        model,
        step,
        partial(normalised, device=device),
        lambda ids: (ids if context is None else shortened(ids, context)).to(device),
    )


def peer_optimizer(model: nn.Module, options: Sequence[str]) -> torch.optim.AdamW:
    """The one of its main.py, whose gains and biases do not decay."""
    plain = ("bn", "ln", "bias", "logit_scale")
    gains = [p for name, p in model.named_parameters() if p.ndim < 2 or any(word in name for word in plain)]
    kept = {id(parameter) for parameter in gains}
    return torch.optim.AdamW(
        [
            {"params": gains, "weight_decay": 0.0},
            {"params": [p for p in model.parameters() if id(p) not in kept], "weight_decay": DECAY},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        fused="fused" in options or None,
        foreach="foreach" in options or None,
    )


# ── what a step is given ────────────────────────────────────────────────────────────────────────────────────────────


def pixels(pairs: int, side: int, *, device: str = "cpu") -> Tensor:
    """(pairs, 3, side, side) uint8, random."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (pairs, 3, side, side), dtype=torch.uint8, generator=draws).to(device)


def normalised(pairs: int, side: int, *, device: str = "cpu") -> Tensor:
    """The same, normalised, float32."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    images = torch.empty(pairs, 3, side, side)
    # Row by row: the making must not be the most memory that the process ever has.
    for row, image in zip(images, pixels(pairs, side), strict=True):
        row.copy_((image / 255 - mean) / std)
    return images.to(device)


def drawn_ids(pairs: int, batches: int, *, vocabulary: int = _VOCABULARY) -> list[Tensor]:
    """Batches of (pairs, 77) token ids: common tokens are more common, lengths as `MEDIAN_TOKENS` says."""
    draws = torch.Generator().manual_seed(0)
    lengths = torch.empty(batches * pairs).log_normal_(math.log(MEDIAN_TOKENS), SPREAD, generator=draws)
    lengths = lengths.round().clamp(FEWEST, MOST).long()[:, None]
    words = (vocabulary - 3) ** torch.rand(batches * pairs, CONTEXT, generator=draws)
    place = torch.arange(CONTEXT)
    ids = torch.where(place < lengths - 1, words.long(), 0)
    ids[:, 0] = vocabulary - 2
    ids[place == lengths - 1] = vocabulary - 1
    return list(ids.split(pairs))


def caption_ids(captions: str | None, pairs: int, batches: int) -> list[Tensor]:
    """Batches of (pairs, 77) token ids from a file with a caption a line; without one, drawn."""
    if captions is None:
        return drawn_ids(pairs, batches)
    from lakeclip.text.tokenizer import tokenize

    lines = [line for line in Path(captions).read_text(encoding="utf-8").splitlines() if line.strip()]
    # A stride that the number of captions an image, often five, does not divide: neighbours are of other images.
    wanted = [lines[number * 7 % len(lines)] for number in range(batches * pairs)]
    return list(tokenize(wanted, CONTEXT).split(pairs))


def trimmed(ids: Tensor) -> Tensor:
    """Without the columns that are padding in every row, as `lakeclip.data` leaves them out."""
    return ids[:, : int(ids.argmax(dim=-1).max()) + 1]


def shortened(ids: Tensor, context: int) -> Tensor:
    """Captions cut to fewer tokens, the end of text still at their end."""
    cut = ids[:, :context].clone()
    ended = (cut == ids.max()).any(dim=-1)
    cut[~ended, -1] = ids.max()
    return cut


# ── measures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def needed_flops(config: ModelConfig, ids: Tensor) -> float:
    """Floating-point operations that a step over these pairs needs at the least, in both towers' matrix products.

    Padding is not needed, nor what the last block computes for tokens that are not read out. Backward is twice forward.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as image:
        side = config.image_resolution
        CLIP(config).visual(torch.zeros(1, 3, side, side))
    lengths = (ids.argmax(dim=-1) + 1).double()
    width = config.transformer_width
    tokens, pairs = float(lengths.sum()), float(lengths.square().sum())
    blocks = (config.transformer_layers - 1) * (24 * width**2 * tokens + 4 * width * pairs)
    last = 4 * width**2 * tokens + 4 * width * tokens + 20 * width**2 * len(ids)
    text = blocks + last + 2 * width * config.embed_dim * len(ids)
    return 3 * (image.get_total_flops() * len(ids) + text)


def counted_flops(side: Side, images: Tensor, ids: Tensor) -> float:
    """Floating-point operations in the matrix products and convolutions of one step, as this side computes it."""
    with FlopCounterMode(display=False) as counter:
        side.step(images, ids)
    return counter.get_total_flops()


def matmul_peak(*, bf16: bool, clock: Callable[[], float], device: str = "cpu", size: int = 2048) -> float:
    """Floating-point operations a second of a large square matrix product: the best of several."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else None) for _ in range(2))
    best = math.inf
    for _ in range(12):
        settle(device)
        began = clock()
        left @ right
        settle(device)
        best = min(best, clock() - began)
    return 2 * size**3 / best


def settle(device: str) -> None:
    """Wait until all that was asked of the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def autocast(bf16: bool, device: str) -> AbstractContextManager[Any]:
    """bfloat16 where it may be, or nothing."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16) if bf16 else nullcontext()
