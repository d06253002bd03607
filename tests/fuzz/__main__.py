"""`python -m tests.fuzz TARGET --minutes 10`: search for harmful inputs and keep them.

Each session is a separate process (`session.py`). After an input that ends it, the next session continues with the same
corpus.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS

HERE = Path(__file__).resolve().parent
#: Limit on the bytes of inputs that are kept in the repository.
_LARGEST_KEPT = 4096


def main() -> None:
    """Fuzz one target for some minutes of CPU time, and write the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU time, not wall-clock time (10)")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file")
    flags = parser.parse_args()
    result = fuzz(flags.target, 60 * flags.minutes)
    result["command"] = f"python -m tests.fuzz {flags.target} --minutes {flags.minutes:g} --out FILE"
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shown = {name: result[name] for name in ("seconds", "inputs", "branches", "findings")}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    sys.exit(1 if result["findings"] else 0)


def fuzz(name: str, seconds: float) -> dict[str, Any]:
    """Run sessions for some seconds of CPU time; harmful inputs are left in the working folder."""
    seeds = HERE / "corpus" / name
    inputs, branches, spent = 0, 0, 0.0
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        shutil.copytree(seeds, corpus)
        while spent < seconds:
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.session",
                name,
                f"-max_total_time={max(5, int(seconds - spent))}",
            ]
            command += [
                f"-max_len={TARGETS[name].longest}",
                "-timeout=60",
                "-rss_limit_mb=6000",
                "-print_final_stats=1",
            ]
            before, started = os.times(), time.monotonic()
            done = subprocess.run(
                [*command, f"-artifact_prefix={folder}/found-", str(corpus)],
                cwd=HERE.parents[1],
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            spent += used
            inputs += sum(map(int, re.findall(r"number_of_executed_units: (\d+)", done.stderr)))
            branches = max([branches, *map(int, re.findall(r" cov: (\d+)", done.stderr))])
            if done.returncode:
                target = Path.cwd() / f"found-{name}-{len(findings)}"
                artifacts = sorted(Path(folder).glob("found-*"))
                if artifacts:
                    shutil.move(artifacts[0], target)
                last = [line for line in done.stderr.splitlines() if line.strip()][-12:]
                findings.append(f"{target.name}: " + " | ".join(last)[:600])
                if time.monotonic() - started < 5:
                    break  # it ends at once: further sessions would find the same input
    return {
        "date": datetime.date.today().isoformat(),
        "target": name,
        "atheris": version("atheris"),
        "seconds": round(spent),
        "inputs": inputs,
        "branches": branches,
        "findings": findings,
    }


if __name__ == "__main__":
    main()
