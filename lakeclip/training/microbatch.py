"""One step for every batch: embed in micro-batches, compare the whole batch, back-propagate through each micro-batch.

The loss of a pair depends on every other pair, so a batch cannot be cut up as in other training. But the loss depends
on the towers only through the features. So: embed all micro-batches, take the gradient of the loss with respect to
the features, then push that gradient through each micro-batch's graph (Gao et al. 2021, arXiv 2101.06983). Only one
micro-batch's activations are ever held, and the gradients are those of the whole batch. One micro-batch is the plain
case: its graph is kept, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: (images, texts) of a micro-batch → (image features, text features), each (micro-batch, embed) of unit length.
Embed = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
#: (image features, text features, logit_scale) of this process's batch → loss.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class StepResult(NamedTuple):
    """What one step found, detached: the loss and both sides' features, (batch, embed)."""

    loss: Tensor
    image_features: Tensor
    text_features: Tensor


def backward_through_batch(
    images: Tensor,
    texts: Any,
    *,
    model: nn.Module,
    embed: Embed,
    loss: Loss,
    logit_scale: nn.Parameter,
    minibatch_size: int | None,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[Any]],
) -> StepResult:
    """Add the gradient of the batch's loss to every parameter's `.grad`.

    Args:
        images: (batch, …), this process's share of the global batch.
        texts: token ids (batch, context), or a mapping of such tensors.
        model: holds the batch-norm layers whose statistics must move once per micro-batch.
        minibatch_size: pairs embedded at a time; the whole batch when None. It need not divide the batch.
        backward: back-propagates a scalar (Lightning's `manual_backward`, which also scales it under float16).
        no_sync: context in which gradients are not averaged between processes; used until the last backward.
    """
    size = min(minibatch_size or len(images), len(images))
    chunks = [slice(start, start + size) for start in range(0, len(images), size)]

    # Every micro-batch but the last is embedded without a graph, and again with one once its gradient is known.
    states, parts = [], []
    with torch.no_grad(), _batch_statistics_untouched(model):
        for chunk in chunks[:-1]:
            states.append(_random_state(images.device))
            parts.append(embed(images[chunk], _take(texts, chunk)))
    last = embed(images[chunks[-1]], _take(texts, chunks[-1]))
    parts.append(last)

    image_features = torch.cat([part[0].detach() for part in parts]).requires_grad_()
    text_features = torch.cat([part[1].detach() for part in parts]).requires_grad_()
    value = loss(image_features, text_features, logit_scale)
    image_gradient, text_gradient, scale_gradient = torch.autograd.grad(
        value, (image_features, text_features, logit_scale)
    )

    def pull(features: tuple[Tensor, Tensor], chunk: slice) -> Tensor:
        """A scalar whose gradient with respect to the features is the loss's."""
        return (features[0] * image_gradient[chunk]).sum() + (features[1] * text_gradient[chunk]).sum()

    # The last micro-batch's graph exists already and goes first, so that it and another are never held at once. The
    # processes average gradients in the last backward of all, which therefore has `logit_scale`'s.
    *earlier, kept = chunks
    scale_pull = logit_scale * scale_gradient
    with no_sync() if earlier else nullcontext():
        backward(pull(last, kept) if earlier else pull(last, kept) + scale_pull)
    del last, parts
    for chunk, state in zip(earlier, states, strict=True):
        is_final = chunk is earlier[-1]
        with nullcontext() if is_final else no_sync(), _replayed(state, images.device):
            scalar = pull(embed(images[chunk], _take(texts, chunk)), chunk)
            backward(scalar + scale_pull if is_final else scalar)
    return StepResult(value.detach(), image_features.detach(), text_features.detach())


def _take(texts: Any, chunk: slice) -> Any:
    """Rows of a tensor, or of every tensor in a mapping such as a Hugging Face `BatchEncoding`."""
    return texts[chunk] if isinstance(texts, Tensor) else {name: value[chunk] for name, value in texts.items()}


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw the same dropout masks as when `state` was recorded, without disturbing what is drawn afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


@contextmanager
def _batch_statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, but leave the running statistics for the pass with a graph."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    tracking = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in zip(layers, tracking, strict=True):
            layer.track_running_stats = tracked
