"""Compare weights with a model's state dict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_MAX_SHOWN = 5


def state_dict_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """List the first few keys that are missing, unknown or of another shape.

    Args:
        expected: the model's state dict; it may be on the meta device.
        given: the weights.

    Returns:
        The mismatches in one line; empty if the weights match.
    """
    problems = [f"no {key}" for key in expected if key not in given]
    problems += [f"unknown {key}" for key in given if key not in expected]
    problems += [
        f"{key} is {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    more = f" (and {len(problems) - _MAX_SHOWN} more)" if len(problems) > _MAX_SHOWN else ""
    return "; ".join(problems[:_MAX_SHOWN]) + more
