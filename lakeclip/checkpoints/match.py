"""Whether weights fit a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_MAX_SHOWN = 5


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps weights from being a model's: the first few keys that are missing, unknown or of another shape.

    Args:
        wanted: the model's state dict; on the meta device will do.
        given: the weights.

    Returns:
        Nothing where they fit.
    """
    problems = [f"no {key}" for key in wanted if key not in given]
    problems += [f"unknown {key}" for key in given if key not in wanted]
    problems += [
        f"{key} is {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    more = f" (and {len(problems) - _MAX_SHOWN} more)" if len(problems) > _MAX_SHOWN else ""
    return "; ".join(problems[:_MAX_SHOWN]) + more
