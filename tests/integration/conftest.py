"""Runs that several tests compare theirs with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lakeclip.cli.app import main
from tests.integration.test_train import train_args


@pytest.fixture(scope="session")
def reference_run(pairs_lake: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that returns the folder of a run in one process with the given flags; each is trained once.

    The folder is for reading.
    """
    runs = tmp_path_factory.mktemp("reference")
    trained: dict[tuple[str, ...], Path] = {}

    def run(*flags: str) -> Path:
        if flags not in trained:
            name = str(len(trained))
            main(train_args(pairs_lake, tiny_models, runs, name, *flags))
            trained[flags] = runs / name
        return trained[flags]

    return run
