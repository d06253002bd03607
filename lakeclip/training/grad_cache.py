"""One step for every batch: embed in micro-batches, compare the whole batch, back-propagate through each micro-batch.

The loss of a pair depends on every other pair, so a batch cannot be cut up as in other training. But the loss depends
on the towers only through the features. So: embed all micro-batches, take the gradient of the loss with respect to
the features, then push that gradient through each micro-batch's graph (Gao et al. 2021, arXiv 2101.06983). Only one
micro-batch's activations are ever held, and the gradients are those of the whole batch. One micro-batch is the plain
case: its graph is kept, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: (images, texts) of a micro-batch → (image features, text features), each (micro-batch, embed) of unit length.
Embed = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
#: (image features, text features) of this process's batch → loss.
Loss = Callable[[Tensor, Tensor], Tensor]


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
    scalars: Sequence[nn.Parameter],
    minibatch_size: int | None,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[Any]],
) -> StepResult:
    """Add the gradient of the batch's loss to every parameter's `.grad`.

    Args:
        images: (batch, …), this process's share of the global batch.
        texts: token ids (batch, context), or a mapping of such tensors.
        model: holds the batch-norm layers whose statistics must move once.
        scalars: what the loss depends on besides the features, such as `logit_scale`.
        minibatch_size: pairs embedded at a time; the whole batch when None. It need not divide the batch.
        backward: back-propagates a scalar (Lightning's `manual_backward`, which also scales it under float16).
        no_sync: context in which gradients are not averaged between processes; used until the last backward.
    """
    chunks = micro_batches(len(images), texts, minibatch_size or len(images))
    *earlier, kept = chunks

    # Every micro-batch but the last is embedded without a graph, and again with one once its gradient is known.
    states, parts = [], []
    with _statistics_of_the_whole_batch(model, chunks) as statistics:
        for chunk in earlier:
            states.append(_random_state(images.device))
            with torch.no_grad():
                parts.append(embed(images[chunk], take(texts, chunk)))
            statistics.note(chunk)
        last = embed(images[kept], take(texts, kept))
        parts.append(last)
        statistics.note(kept)

    image_features, text_features = (in_order(side, chunks).requires_grad_() for side in zip(*parts, strict=True))
    value = loss(image_features, text_features)
    image_gradient, text_gradient, *scalar_gradients = torch.autograd.grad(
        value, (image_features, text_features, *scalars)
    )

    def pull(features: tuple[Tensor, Tensor], chunk: Tensor | slice) -> Tensor:
        """A scalar whose gradient with respect to the features is the loss's."""
        return (features[0] * image_gradient[chunk]).sum() + (features[1] * text_gradient[chunk]).sum()

    # The last micro-batch's graph exists already and goes first, so that it and another are never held at once. The
    # processes average gradients in the last backward of all, which therefore has the scalars'.
    scalar_pull = sum(scalar * gradient for scalar, gradient in zip(scalars, scalar_gradients, strict=True))
    with _statistics_untouched(model):
        with no_sync() if earlier else nullcontext():
            backward(pull(last, kept) if earlier else pull(last, kept) + scalar_pull)
        del last, parts
        for chunk, state in zip(earlier, states, strict=True):
            is_final = chunk is earlier[-1]
            with nullcontext() if is_final else no_sync(), _replayed(state, images.device):
                scalar = pull(embed(images[chunk], take(texts, chunk)), chunk)
                backward(scalar + scalar_pull if is_final else scalar)
    return StepResult(value.detach(), image_features.detach(), text_features.detach())


# ── cutting a batch ───────────────────────────────────────────────────────────────────────────────────────────────


def micro_batches(batch: int, texts: Any, size: int) -> list[Tensor | slice]:
    """Which pairs are embedded together: neighbours by the length of their captions, so that little is padding."""
    if size >= batch:
        return [slice(None)]
    longest_first = _lengths(texts).argsort(descending=True, stable=True)
    return list(torch.split(longest_first, size))


def _lengths(texts: Any) -> Tensor:
    """Tokens of each caption, by its mask or by where it ends; only the order of what is embedded hangs on it."""
    if not isinstance(texts, Tensor):
        if "attention_mask" in texts:
            mask: Tensor = texts["attention_mask"]
            return mask.sum(dim=-1)
        texts = texts["input_ids"]
    ends: Tensor = texts.argmax(dim=-1)
    return ends


def take(texts: Any, chunk: Tensor | slice) -> Any:
    """Rows of a tensor, or of every tensor in a mapping such as a Hugging Face `BatchEncoding`.

    A mapping with a mask loses the columns that are padding in all of these rows; `CLIP` does so by itself.
    """
    if isinstance(texts, Tensor):
        return texts[chunk]
    taken: Mapping[str, Tensor] = {name: value[chunk] for name, value in texts.items()}
    if isinstance(chunk, Tensor) and "attention_mask" in taken:
        mask = taken["attention_mask"]
        width = int(mask.any(dim=0).nonzero().max()) + 1
        taken = {name: value[:, :width] if value.shape == mask.shape else value for name, value in taken.items()}
    return taken


def in_order(parts: Sequence[Tensor], chunks: Sequence[Tensor | slice]) -> Tensor:
    """The features of all micro-batches, detached and in the batch's order."""
    joined = torch.cat([part.detach() for part in parts])
    if isinstance(chunks[0], slice):
        return joined
    back = torch.cat([chunk for chunk in chunks if isinstance(chunk, Tensor)]).argsort()
    return joined[back]


# ── embedding twice, with the effects of once ─────────────────────────────────────────────────────────────────────


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


def _batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers that normalise by the batch and keep running statistics of it."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.running_mean is not None
    ]


@contextmanager
def _statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, and leave the running statistics as they are.

    By a momentum of zero: without running statistics the layers would keep other tensors for their backward pass, and
    gradient checkpointing insists on the same.
    """
    layers = _batch_norms(model)
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]  # type: ignore[union-attr]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.copy_(count)


@contextmanager
def _statistics_of_the_whole_batch(
    model: nn.Module, chunks: Sequence[Tensor | slice]
) -> Iterator[_Nothing | _BatchStatistics]:
    """While all micro-batches are embedded: running statistics move once, by those of the whole batch.

    Each layer normalises by its micro-batch, as it must; what it keeps for later evaluation is the mean and variance
    over all of them together.
    """
    if len(chunks) == 1 or not (layers := _batch_norms(model)):
        yield _Nothing()
        return
    statistics = _BatchStatistics(layers)
    try:
        yield statistics
    finally:
        statistics.close()


class _Nothing:
    """One micro-batch moves the statistics by itself, and most models have none."""

    def note(self, chunk: Tensor | slice) -> None:
        """Nothing to note."""


class _BatchStatistics:
    """Collects each micro-batch's mean and variance from layers that are told to forget all before it."""

    def __init__(self, layers: list[nn.modules.batchnorm._BatchNorm]) -> None:
        self._layers = layers
        self._before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
        self._momenta = [layer.momentum for layer in layers]
        self._counts = [layer.num_batches_tracked.clone() for layer in layers]  # type: ignore[union-attr]
        self._sizes: dict[nn.Module, int] = {}
        self._seen: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in layers]
        self._hooks = [layer.register_forward_pre_hook(self._measure) for layer in layers]
        for layer in layers:
            layer.momentum = 1.0

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._sizes[layer] = inputs[0].numel() // inputs[0].shape[1]

    def note(self, chunk: Tensor | slice) -> None:
        """A micro-batch has been embedded."""
        for layer, seen in zip(self._layers, self._seen, strict=True):
            if layer in self._sizes:
                seen.append((self._sizes[layer], layer.running_mean.clone(), layer.running_var.clone()))  # type: ignore[union-attr]

    @torch.no_grad()
    def close(self) -> None:
        """Let the layers be what they were, with statistics moved once."""
        for hook in self._hooks:
            hook.remove()
        for layer, (mean, variance), momentum, count, seen in zip(
            self._layers, self._before, self._momenta, self._counts, self._seen, strict=True
        ):
            layer.momentum = momentum
            if seen:
                share = 1 / (int(count) + 1) if momentum is None else momentum
                whole_mean, whole_variance = _pooled(seen)
                mean, variance = mean.lerp(whole_mean, share), variance.lerp(whole_variance, share)
                count = count + 1
            # Through `data`: the graph that is kept has seen these tensors, and does not read them again.
            for buffer, value in (
                (layer.running_mean, mean),
                (layer.running_var, variance),
                (layer.num_batches_tracked, count),
            ):
                assert buffer is not None
                buffer.data.copy_(value)


def _pooled(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of samples, from the (number, mean, unbiased variance) of their parts."""
    total = sum(number for number, _, _ in parts)
    mean = torch.stack([part_mean * (number / total) for number, part_mean, _ in parts]).sum(dim=0)
    squares = [
        variance * (number - 1) + number * (part_mean - mean).square() if number > 1 else (part_mean - mean).square()
        for number, part_mean, variance in parts
    ]
    return mean, torch.stack(squares).sum(dim=0) / max(1, total - 1)
