"""Train on smaller images in the first part of a run, so that the same compute covers more pairs.

From CLIPA (Li et al. 2023, arXiv 2305.07017).
"""

from __future__ import annotations

from dataclasses import dataclass

from lakeclip.errors import ConfigError


@dataclass(frozen=True)
class ImageSizeSchedule:
    """Image size as a function of training progress. After the last stage the model's own size is used.

    Attributes:
        stages: (side in pixels, share of the run at which the stage ends), in order.
    """

    stages: tuple[tuple[int, float], ...] = ()

    def size_at(self, progress: float) -> int | None:
        """Return the side in pixels at a share of the run; None for the model's own."""
        return next((side for side, end in self.stages if progress < end), None)

    def size_at_step(self, step: int, steps_per_epoch: int, *, max_steps: int, max_epochs: int | None) -> int | None:
        """Return the side in pixels after a number of steps; None for the model's own.

        Args:
            max_steps, max_epochs: limits of the run; the smaller one counts. -1 or None means no limit.
        """
        limits = [limit for limit in (max_steps, (max_epochs or -1) * steps_per_epoch) if limit > 0]
        return self.size_at(step / min(limits)) if limits else None


def parse_image_size_schedule(text: str | None, image_size: int) -> ImageSizeSchedule:
    """Parse `DataConfig.small_images`: "112:0.4 160:0.4" means 112 pixels for the first 40%, then 160 for 40%.

    Args:
        image_size: the model's own side in pixels; all sides must be smaller.

    Raises:
        ConfigError: the text is malformed, or the shares add up to more than 1.
    """
    stages: list[tuple[int, float]] = []
    end = 0.0
    try:
        for stage in (text or "").split():
            side, share = stage.split(":")
            if not 1 <= int(side) < image_size or not float(share) > 0:
                raise ValueError
            end += float(share)
            stages.append((int(side), end))
        if end > 1 + 1e-9 or (text is not None and not stages):
            raise ValueError
    except ValueError:
        raise ConfigError(
            "the schedule of smaller images is invalid",
            found=f"small_images {text!r}",
            allowed=f'SIDE:SHARE, separated by spaces, such as "112:0.6"; sides below {image_size}, and shares that '
            "add up to at most 1",
        ) from None
    return ImageSizeSchedule(tuple(stages))
