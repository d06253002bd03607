"""Define the layout of a run folder, and find the checkpoint that a path refers to."""

from __future__ import annotations

from pathlib import Path

from lakeclip.errors import CheckpointError

#: Configuration that the run was started with.
CONFIG = "config.yaml"
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
#: Earlier checkpoints that `--keep-last` keeps in the same folder.
STEP_PATTERN = "step-*.ckpt"
#: One JSON line for each skipped step.
SKIPPED = "skipped.jsonl"
#: Best interpolation between the start and the end of a fine-tuning run (WiSE-FT), if `--keep-lake` was given.
MIXED = Path("checkpoints/mixed.ckpt")


def checkpoints_newest_first(run: Path) -> list[Path]:
    """List the checkpoints that a run can resume from: the last, earlier ones that were kept, the best."""
    steps = sorted((run / LAST).parent.glob(STEP_PATTERN), reverse=True)
    return [path for path in (run / LAST, *steps, run / BEST) if path.is_file()]


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file that a path refers to: the file itself, or a run folder's best or else last one.

    The folder of a user's own Trainer has its `ModelCheckpoint`'s files, under other names; a single one is found.

    Raises:
        CheckpointError: the path does not exist, the folder is not a run, or it has several checkpoints.
    """
    path = Path(path)
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).is_file():
                return path / name
        files = sorted((path / LAST.parent).glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        if len(files) == 1:
            return files[0]
        if files:
            raise CheckpointError(
                f"the folder {path} has several checkpoints",
                found=", ".join(file.name for file in files[-8:]),
                allowed="one of these files",
                next_step=f"{files[-1]}, the newest",
            )
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        listed = ", ".join(entries[:8]) + (", …" if len(entries) > 8 else "")
        raise CheckpointError(
            f"the folder {path} is not a run with a checkpoint",
            found=listed or "an empty folder",
            allowed=f"a run folder with {BEST} or {LAST}, or a .ckpt file",
            next_step=_suggested_run(path),
        )
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            found="" if path.parent.is_dir() else f"the folder {path.parent} does not exist either",
            allowed="a run folder, or a .ckpt file in its checkpoints/",
            next_step=_suggested_run(path.parent),
        )
    return path


def run_folder(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint file belongs to: its own, or the one above `checkpoints`."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == LAST.parent.name else folder


def _suggested_run(folder: Path) -> str:
    """Suggest the newest run in a folder or in its `runs` subfolder."""
    runs = [
        entry
        for parent in (folder, folder / "runs")
        if parent.is_dir()
        for entry in parent.iterdir()
        if (entry / BEST).is_file() or (entry / LAST).is_file()
    ]
    return f"use an existing run, such as {max(runs, key=lambda run: run.stat().st_mtime)}" if runs else ""
