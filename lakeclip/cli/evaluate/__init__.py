"""`lakeclip evaluate`: evaluate a trained model, compare runs, and write a run's report.

Each module has the flags of one subcommand, calls the function of the Python API, and prints the result. An evaluation
that is registered in `EVALUATIONS` and has no module here gets the flags of `registered`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from lakeclip.cli.evaluate.compare import Compare, run_compare
from lakeclip.cli.evaluate.probe import Probe, run_probe
from lakeclip.cli.evaluate.registered import flags_of, run_registered
from lakeclip.cli.evaluate.report import Report, run_report
from lakeclip.cli.evaluate.retrieval import Retrieval, run_retrieval
from lakeclip.cli.evaluate.robustness import Robustness, run_robustness
from lakeclip.cli.evaluate.zeroshot import ZeroShot, run_zeroshot
from lakeclip.evaluation.registry import EVALUATIONS

_SUBCOMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "zeroshot": (ZeroShot, run_zeroshot),
    "retrieval": (Retrieval, run_retrieval),
    "probe": (Probe, run_probe),
    "robustness": (Robustness, run_robustness),
    "report": (Report, run_report),
    "compare": (Compare, run_compare),
}


def run(argv: list[str]) -> None:
    """Parse the flags, evaluate, and print the result.

    Raises:
        LakeclipError: the flags, the checkpoint, the data, the device or an output file is wrong.
    """
    registered = {name: (flags_of(name), run_registered) for name in EVALUATIONS if name not in _SUBCOMMANDS}
    subcommands = _SUBCOMMANDS | registered
    union: Any = reduce(or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in subcommands.items()))
    flags: object = tyro.cli(
        union,
        args=argv,
        prog="lakeclip evaluate",
        description="Evaluate a trained model.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    functions: dict[type[Any], Callable[[Any], None]] = dict(subcommands.values())
    functions[type(flags)](flags)
