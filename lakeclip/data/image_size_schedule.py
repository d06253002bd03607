"""Smaller images in the first part of a run (CLIPA, Li et al. 2023, arXiv 2305.07017): more pairs for the same work."""

from __future__ import annotations

from dataclasses import dataclass

from lakeclip.errors import ConfigError


@dataclass(frozen=True)
class SizeSchedule:
    """The side of the images by how much of the run is done; afterwards it is the model's own.

    Attributes:
        stages: (side in pixels, share of the run up to which it holds), in order.
    """

    stages: tuple[tuple[int, float], ...] = ()

    def side(self, done: float) -> int | None:
        """The side at a share of the run; None for the model's own."""
        return next((side for side, until in self.stages if done < until), None)

    def side_at(self, step: int, steps_per_epoch: int, *, max_steps: int, max_epochs: int | None) -> int | None:
        """The side after so many steps of a run; None for the model's own.

        Args:
            max_steps, max_epochs: of which the run ends with the first; -1 or None for one that does not count.
        """
        in_all = [number for number in (max_steps, (max_epochs or -1) * steps_per_epoch) if number > 0]
        return self.side(step / min(in_all)) if in_all else None


def parse_sizes(text: str | None, image_size: int) -> SizeSchedule:
    """Read what `DataConfig.small_images` says: "112:0.4 160:0.4" for 112 pixels in the first 40%, 160 in the next.

    Args:
        image_size: the model's own side, which the sides must stay below.

    Raises:
        ConfigError: it is not written so, or the shares add up to more than the run.
    """
    stages: list[tuple[int, float]] = []
    done = 0.0
    try:
        for stage in (text or "").split():
            side, share = stage.split(":")
            if not 1 <= int(side) < image_size or not float(share) > 0:
                raise ValueError
            done += float(share)
            stages.append((int(side), done))
        if done > 1 + 1e-9 or (text is not None and not stages):
            raise ValueError
    except ValueError:
        raise ConfigError(
            "the smaller images that a run is to begin with are not understood",
            found=f"small_images {text!r}",
            allowed=f'SIDE:SHARE, with spaces between several: "112:0.6"; sides below {image_size}, shares that add up '
            "to 1 at most",
        ) from None
    return SizeSchedule(tuple(stages))
