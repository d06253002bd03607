"""One fuzzing process: `python -m tests.fuzz.session TARGET …` with libFuzzer's flags, or `--replay FILE …`.

It is a separate process because an input may crash it (the decoders are written in C), exhaust its memory, or hang.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

#: Limit on the address space in addition to that of the imported modules.
MEMORY = 3 * 2**30
#: Limit on the CPU seconds for each replayed input.
SECONDS = 60


def main() -> None:
    """Fuzz a target, or replay inputs."""
    name, *rest = sys.argv[1:]
    replay = rest[:1] == ["--replay"]
    target = _target(name, instrumented=not replay)
    _limit_memory()
    if replay:
        for file in rest[1:]:
            data = Path(file).read_bytes()
            sys.stderr.write(f"input {os.path.basename(file)}\n")
            _limit_time()
            target.run(data)
        return
    import atheris

    atheris.Setup([sys.argv[0], *rest], target.run)
    atheris.Fuzz()


def _target(name: str, *, instrumented: bool) -> Target:
    """Import a target, instrumented so that the fuzzer sees new branches."""
    # PyTorch is too large to instrument as a whole: only its unpickler is.
    import torch._weights_only_unpickler as unpickler

    with contextlib.ExitStack() as stack:
        if instrumented:
            import atheris

            packages = {"lakeclip", "yaml", "PIL", "tarfile", "ftfy", "zipfile", "pickle"}
            for loaded in [module for module in sys.modules if module.partition(".")[0] in packages - {"pickle"}]:
                del sys.modules[loaded]
            unpickler.Unpickler.load = atheris.instrument_func(unpickler.Unpickler.load)
            stack.enter_context(atheris.instrument_imports(include=sorted(packages - {"pickle"})))
        from tests.fuzz.targets import TARGETS
    return TARGETS[name]


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
