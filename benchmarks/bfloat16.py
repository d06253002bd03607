"""Measure matrix products in bfloat16 and float32, with all of the processor's instructions and with fewer.

    python benchmarks/bfloat16.py --out benchmarks/results/bfloat16-YYYY-MM-DD.json

oneDNN, PyTorch's library for CPUs, reads ONEDNN_MAX_CPU_ISA: so one machine shows what older processors do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from common.machine import machine
from common.results import command_line, today, write_result

#: Name of a processor's instructions → oneDNN's limit.
LIMITS = {"all instructions": "", "AVX-512 without bfloat16": "AVX512_CORE_VNNI", "AVX2": "AVX2"}


def main() -> None:
    """Parse the flags; measure each limit in a process of its own, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512, help="side of the square matrices")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each measurement")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--measure", action="store_true", help="measure in this process")
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(measure(flags.side, flags.seconds)))
        return
    rates: dict[str, Any] = {}
    for name, limit in LIMITS.items():
        command = [sys.executable, __file__, "--measure", "--side", str(flags.side), "--seconds", str(flags.seconds)]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        rates[name] = json.loads(output)
        rates[name]["float32_against_bfloat16"] = rates[name]["float32"] / rates[name]["bfloat16"]
        print(name, rates[name])
    result = {
        "benchmark": "bfloat16",
        "date": today(),
        "command": command_line("bfloat16.py"),
        "machine": machine(1),
        "side": flags.side,
        "load_before": os.getloadavg()[0],
        "gflops": rates,
    }
    write_result(result, flags.out)


def measure(side: int, seconds: float) -> dict[str, float]:
    """Return the GFLOP/s of the fastest product in each precision, on one thread."""
    import torch

    torch.set_num_threads(1)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        first, second = (torch.randn(side, side).to(dtype) for _ in range(2))
        _ = first @ second
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            _ = first @ second
            best = min(best, time.perf_counter() - started)
        rates[name] = 2 * side**3 / best / 1e9
    return rates


if __name__ == "__main__":
    main()
