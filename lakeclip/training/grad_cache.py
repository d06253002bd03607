"""GradCache: the gradients of a large contrastive batch in the memory of a micro-batch (arXiv 2101.06983).

Each pair's loss depends on every other pair in the batch, so the batch cannot simply be split as in other training. But
the loss depends on the towers only through the features. So: embed all micro-batches without a graph, compute the
gradient of the loss with respect to the features, then back-propagate that gradient through each micro-batch in turn
(Gao et al. 2021). Only one micro-batch's activations are held at a time, and the gradients are those of the whole
batch. With a single micro-batch the graph is kept, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lakeclip.models.layers import batch_norms

#: (images, texts) of a micro-batch → (image features, text features), each (micro-batch, embed) of unit length.
EmbedFn = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
#: (image features, text features) of this process's batch → loss.
LossFn = Callable[[Tensor, Tensor], Tensor]


class StepResult(NamedTuple):
    """Detached results of one step: the loss and both sides' features, (batch, embed)."""

    loss: Tensor
    image_features: Tensor
    text_features: Tensor


def backward_through_batch(
    images: Tensor,
    texts: Any,
    *,
    model: nn.Module,
    embed: EmbedFn,
    loss: LossFn,
    scalars: Sequence[nn.Parameter],
    minibatch_size: int | None,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[Any]],
) -> StepResult:
    """Add the gradient of the batch's loss to every parameter's `.grad`.

    Args:
        images: (batch, …), this process's share of the global batch.
        texts: token ids (batch, context), or a mapping of such tensors.
        model: module whose batch-norm statistics must be updated once per batch.
        embed: computes the features of a micro-batch.
        loss: computes the loss from the whole batch's features.
        scalars: trainable parameters that the loss depends on besides the features, such as `logit_scale`.
        minibatch_size: pairs embedded at a time; the whole batch when None. It need not divide the batch.
        backward: back-propagates a scalar (Lightning's `manual_backward`, which also scales it under float16).
        no_sync: context without averaging of gradients between processes; used for all but the last backward.
    """
    chunks = micro_batches(len(images), texts, minibatch_size or len(images))
    *earlier_chunks, last_chunk = chunks

    # Every micro-batch but the last is embedded without a graph now, and with one once its gradient is known.
    random_states, features = [], []
    with _whole_batch_statistics(model, chunks) as statistics:
        for chunk in earlier_chunks:
            random_states.append(_random_state(images.device))
            with torch.no_grad():
                features.append(embed(images[chunk], select_rows(texts, chunk)))
            statistics.record()
        last_features = embed(images[last_chunk], select_rows(texts, last_chunk))
        features.append(last_features)
        statistics.record()

    image_features, text_features = (
        restore_order(side, chunks).requires_grad_() for side in zip(*features, strict=True)
    )
    value = loss(image_features, text_features)
    image_gradient, text_gradient, *scalar_gradients = torch.autograd.grad(
        value, (image_features, text_features, *scalars)
    )

    def surrogate(features: tuple[Tensor, Tensor], chunk: Tensor | slice) -> Tensor:
        """Return a scalar whose gradient with respect to the features is the loss's."""
        return (features[0] * image_gradient[chunk]).sum() + (features[1] * text_gradient[chunk]).sum()

    # The last micro-batch's graph exists already. It goes first, so that two graphs are never held at once. The
    # processes average gradients in the very last backward, which therefore includes the scalars.
    scalar_surrogate = sum(scalar * gradient for scalar, gradient in zip(scalars, scalar_gradients, strict=True))

    def back_propagate(scalar: Tensor) -> None:
        # Of frozen towers there is no graph.
        if scalar.requires_grad:
            backward(scalar)

    with _frozen_statistics(model):
        with no_sync() if earlier_chunks else nullcontext():
            last_surrogate = surrogate(last_features, last_chunk)
            back_propagate(last_surrogate if earlier_chunks else last_surrogate + scalar_surrogate)
        del last_features, last_surrogate, features
        for chunk, state in zip(earlier_chunks, random_states, strict=True):
            is_final = chunk is earlier_chunks[-1]
            with nullcontext() if is_final else no_sync(), _replayed(state, images.device):
                scalar = surrogate(embed(images[chunk], select_rows(texts, chunk)), chunk)
                back_propagate(scalar + scalar_surrogate if is_final else scalar)
    return StepResult(value.detach(), image_features.detach(), text_features.detach())


# ── micro-batches ─────────────────────────────────────────────────────────────────────────────────────────────────


def micro_batches(batch: int, texts: Any, size: int) -> list[Tensor | slice]:
    """Divide a batch into micro-batches of captions of similar length, so that few tokens are padding.

    Args:
        batch: number of pairs.
        texts: token ids (batch, context), or a mapping of such tensors.
        size: pairs per micro-batch.

    Returns:
        Row indices of each micro-batch; a single full slice if the batch is not divided.
    """
    if size >= batch:
        return [slice(None)]
    longest_first = _lengths(texts).argsort(descending=True, stable=True)
    return list(torch.split(longest_first, size))


def _lengths(texts: Any) -> Tensor:
    """Return each caption's number of tokens, from its mask or its end-of-text token. Only the order is used."""
    if not isinstance(texts, Tensor):
        if "attention_mask" in texts:
            mask: Tensor = texts["attention_mask"]
            return mask.sum(dim=-1)
        texts = texts["input_ids"]
    ends: Tensor = texts.argmax(dim=-1)
    return ends


def select_rows(texts: Any, chunk: Tensor | slice) -> Any:
    """Select rows of a tensor, or of every tensor in a mapping such as a Hugging Face `BatchEncoding`.

    In a mapping with a mask, columns that are padding in all of these rows are dropped; `CLIP` does so by itself.
    """
    if isinstance(texts, Tensor):
        return texts[chunk]
    rows: Mapping[str, Tensor] = {name: value[chunk] for name, value in texts.items()}
    if isinstance(chunk, Tensor) and "attention_mask" in rows:
        mask = rows["attention_mask"]
        width = int(mask.any(dim=0).nonzero().max()) + 1
        rows = {name: value[:, :width] if value.shape == mask.shape else value for name, value in rows.items()}
    return rows


def restore_order(parts: Sequence[Tensor], chunks: Sequence[Tensor | slice]) -> Tensor:
    """Concatenate the features of all micro-batches, detached and in the order of the batch."""
    joined = torch.cat([part.detach() for part in parts])
    if isinstance(chunks[0], slice):
        return joined
    order = torch.cat([chunk for chunk in chunks if isinstance(chunk, Tensor)]).argsort()
    return joined[order]


# ── random state and batch norm over two forward passes ───────────────────────────────────────────────────────────


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Replay the dropout masks drawn after `state` was recorded, and restore the present random state afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


def _updating_batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch-norm layers whose running statistics a forward pass moves."""
    return [layer for layer in batch_norms(model) if layer.training and layer.running_mean is not None]


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, and leave the running statistics unchanged.

    This sets the momentum to zero. Without running statistics the layers would save other tensors for their backward
    pass, and activation checkpointing requires the same ones.
    """
    layers = _updating_batch_norms(model)
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
def _whole_batch_statistics(
    model: nn.Module, chunks: Sequence[Tensor | slice]
) -> Iterator[_NoStatistics | _BatchStatistics]:
    """Update running statistics once, by those of the whole batch, while all micro-batches are embedded.

    Each layer normalises by its micro-batch. Its running statistics, which evaluation uses, receive the mean and
    variance over all micro-batches together.
    """
    if len(chunks) == 1 or not (layers := _updating_batch_norms(model)):
        yield _NoStatistics()
        return
    statistics = _BatchStatistics(layers)
    try:
        yield statistics
    finally:
        statistics.close()


class _NoStatistics:
    """Stand-in for models without batch norm, and for a single micro-batch, which updates the statistics itself."""

    def record(self) -> None:
        """Do nothing."""


class _BatchStatistics:
    """Collector of each micro-batch's mean and variance, read from running statistics with a momentum of one."""

    def __init__(self, layers: list[nn.modules.batchnorm._BatchNorm]) -> None:
        self._layers = layers
        self._before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
        self._momenta = [layer.momentum for layer in layers]
        self._counts = [layer.num_batches_tracked.clone() for layer in layers]  # type: ignore[union-attr]
        self._sizes: dict[nn.Module, int] = {}
        self._seen: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in layers]
        self._hooks = [layer.register_forward_pre_hook(self._count_values) for layer in layers]
        for layer in layers:
            layer.momentum = 1.0

    def _count_values(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._sizes[layer] = inputs[0].numel() // inputs[0].shape[1]

    def record(self) -> None:
        """Record the statistics of the micro-batch that has just been embedded."""
        for layer, seen in zip(self._layers, self._seen, strict=True):
            if layer in self._sizes:
                seen.append((self._sizes[layer], layer.running_mean.clone(), layer.running_var.clone()))  # type: ignore[union-attr]

    @torch.no_grad()
    def close(self) -> None:
        """Restore the layers' settings, and update their running statistics once."""
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
            # Through `data`, as the kept graph has these tensors saved; it does not read them again.
            for buffer, value in (
                (layer.running_mean, mean),
                (layer.running_var, variance),
                (layer.num_batches_tracked, count),
            ):
                assert buffer is not None
                buffer.data.copy_(value)


def _pooled(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Combine the (number, mean, unbiased variance) of parts into the mean and unbiased variance of all samples."""
    total = sum(number for number, _, _ in parts)
    mean = torch.stack([part_mean * (number / total) for number, part_mean, _ in parts]).sum(dim=0)
    squares = [
        variance * (number - 1) + number * (part_mean - mean).square() if number > 1 else (part_mean - mean).square()
        for number, part_mean, variance in parts
    ]
    return mean, torch.stack(squares).sum(dim=0) / max(1, total - 1)
