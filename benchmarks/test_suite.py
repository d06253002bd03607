"""The claim: the tests of `make test` pass in any order, on a machine that is busy with other work.

    .venv/bin/python benchmarks/test_suite.py --out benchmarks/results/test_suite-DATE.json

Runs the suite several times, each time in another order, while other processes keep the cores busy.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.machine import machine

_ROOT = Path(__file__).resolve().parents[1]
#: As in the Makefile.
_PYTEST = ("-m", "pytest", "-n", "3", "--max-worker-restart", "0", "-q")


def main() -> None:
    """Run the suite as the flags say, write the result, and exit with code 1 if a test failed."""
    flags = _flags()
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"benchmarks/test_suite.py --runs {flags.runs} --busy {flags.busy} --seed {flags.seed}",
        "suite": " ".join(("OMP_NUM_THREADS=1 python", *_PYTEST, "--shuffle SEED")),
        "machine": machine(1),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "pytest")},
        "busy_processes": flags.busy,
        "failed": 0,
        "runs": [],
    }
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(flags.busy)]
    try:
        for seed in range(flags.seed, flags.seed + flags.runs):
            result["runs"].append(run_suite(seed))
            result["failed"] = sum(run["failed"] for run in result["runs"])
            if flags.out:
                Path(flags.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["failed"]))


def run_suite(seed: int) -> dict[str, Any]:
    """Run the tests once.

    Returns:
        The seed of their order, the seconds it took, how many passed, failed and were skipped, and which failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *_PYTEST, "--shuffle", str(seed), f"--junitxml={report}"],
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
            check=False,
        )
        seconds = time.monotonic() - began
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "seed": seed,
        "seconds": round(seconds),
        "passed": len(cases) - len(failed) - skipped,
        "failed": max(len(failed), int(done.returncode != 0)),
        "skipped": skipped,
        "which_failed": failed,
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2, help="processes that keep a core busy each")
    parser.add_argument("--seed", type=int, default=1, help="of the first order; the others follow")
    parser.add_argument("--out", help="file for the result, written after each run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
