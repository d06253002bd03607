"""Detection of loss spikes from the recent history of the loss."""

from __future__ import annotations

import math
import statistics
from collections import deque

#: Number of losses in the history, and the fewest that a threshold is derived from.
_WINDOW = 128
_MIN_LOSSES = 64
#: A spike exceeds the median by this many standard deviations, and by at least this much (in nats).
_DEVIATIONS = 10.0
_MIN_RISE = 1.0
#: Ratio of the standard deviation to the median absolute deviation of normally distributed values.
_MAD_TO_DEVIATION = 1.4826


class LossSpikeDetector:
    """Detector of losses far above the recent ones, by their median and median absolute deviation.

    A spike is ten standard deviations above the median, and at least one nat: small batches have noisy losses, and late
    in a run ten deviations are very small. Before 64 losses are known, and for a loss that falls, there is no spike.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def threshold(self) -> float:
        """Return the loss above which a step counts as a spike; infinite while too few losses are known."""
        if len(self._losses) < _MIN_LOSSES:
            return math.inf
        median = statistics.median(self._losses)
        deviation = _MAD_TO_DEVIATION * statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(_MIN_RISE, _DEVIATIONS * deviation)

    def add(self, loss: float) -> None:
        """Add the loss of a step that was taken."""
        self._losses.append(loss)

    @property
    def losses(self) -> list[float]:
        """The known losses, oldest first."""
        return list(self._losses)

    def clear(self) -> None:
        """Clear the loss history, after a rollback to earlier weights."""
        self._losses.clear()
