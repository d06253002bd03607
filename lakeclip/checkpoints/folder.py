"""What a run's folder holds, and which checkpoint a path means."""

from __future__ import annotations

from pathlib import Path

from lakeclip.errors import CheckpointError

#: What the run was started with.
CONFIG = "config.yaml"
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
#: Earlier ones that are kept beside the last (`--keep-last`), in its folder.
STEPS = "step-*.ckpt"
#: Of fine-tuning with a test of what is kept: the best weights between its start and its end.
MIXED = Path("checkpoints/mixed.ckpt")


def newest_first(run: Path) -> list[Path]:
    """The checkpoints of a run that it may go on from: the last, earlier ones that are kept, the best."""
    steps = sorted((run / LAST).parent.glob(STEPS), reverse=True)
    return [path for path in (run / LAST, *steps, run / BEST) if path.is_file()]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best of a run folder, or else its last.

    Raises:
        CheckpointError: nothing is there, or the folder is no run.
    """
    path = Path(path)
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).is_file():
                return path / name
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        listed = ", ".join(entries[:8]) + (", …" if len(entries) > 8 else "")
        raise CheckpointError(
            f"the folder {path} is not a run with a checkpoint",
            found=listed or "an empty folder",
            allowed=f"a run folder with {BEST} or {LAST}, or a .ckpt file",
            next_step=_one_of_the_runs(path),
        )
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            found="" if path.parent.is_dir() else f"no folder {path.parent} either",
            allowed="a run folder, or a .ckpt file in its checkpoints/",
            next_step=_one_of_the_runs(path.parent),
        )
    return path


def _one_of_the_runs(folder: Path) -> str:
    """A run within a folder, or in `runs` there, to offer instead."""
    runs = [
        entry
        for parent in (folder, folder / "runs")
        if parent.is_dir()
        for entry in parent.iterdir()
        if (entry / BEST).is_file() or (entry / LAST).is_file()
    ]
    return f"a run that is there, such as {max(runs, key=lambda run: run.stat().st_mtime)}" if runs else ""
