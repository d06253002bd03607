"""`lakeclip evaluate`: how good a trained model is. Scores on screen and as JSON, and a run's report.

One module for each kind of score, with its flags and the function that they run; `output` is where figures go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import tyro

from lakeclip.cli.evaluate.compare import Compare, evaluate_compare
from lakeclip.cli.evaluate.probe import Probe, evaluate_probe
from lakeclip.cli.evaluate.report import Report, evaluate_report
from lakeclip.cli.evaluate.retrieval import Retrieval, evaluate_retrieval
from lakeclip.cli.evaluate.robustness import Robustness, evaluate_robustness
from lakeclip.cli.evaluate.zeroshot import ZeroShot, evaluate_zeroshot

_WORK: dict[type[Any], Callable[[Any], None]] = {
    ZeroShot: evaluate_zeroshot,
    Retrieval: evaluate_retrieval,
    Probe: evaluate_probe,
    Robustness: evaluate_robustness,
    Report: evaluate_report,
    Compare: evaluate_compare,
}

_Flags = (
    Annotated[ZeroShot, tyro.conf.subcommand("zeroshot")]
    | Annotated[Retrieval, tyro.conf.subcommand("retrieval")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Robustness, tyro.conf.subcommand("robustness")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def run(argv: list[str]) -> None:
    """Parse the flags, evaluate, and show what came out.

    Raises:
        LakeclipError: of the kind that says what is wrong: flags, checkpoint, data, device or output.
    """
    flags: ZeroShot | Retrieval | Probe | Robustness | Report | Compare = tyro.cli(
        _Flags,
        args=argv,
        prog="lakeclip evaluate",
        description="How good a trained model is.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    _WORK[type(flags)](flags)
