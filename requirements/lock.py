"""Writes the locks: every package that an environment gets, with the hashes of its files.

    make lock                                  # newer versions of everything
    .venv/bin/python requirements/lock.py --keep    # those that there are, and what pyproject.toml asks for besides

`demo.lock` is what lakeclip needs, `docs.lock` and `dev.lock` have the site's and the developers' tools besides.
`cpu.lock` is PyTorch's CPU build; `cuda.lock` is what its ordinary Linux build needs besides; `peer.lock` is what the
second environment has besides both.
docs/adr/0018-locks.md says why.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Of the largest first: the others take their versions from it.
EXTRAS = {"dev": ["--extra", "dev"], "docs": ["--extra", "docs"], "demo": []}
#: What the CPU build of PyTorch does without.
_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
#: The CPU build, which an index other than PyPI may have: torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl.
CPU_BUILD = """torch==2.13.0+cpu ; python_full_version == '3.11.*' and platform_machine == 'x86_64' \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
"""


def main() -> None:
    """Resolve each environment for all Pythons at once, and write the locks."""
    apart: set[str] = set()
    known: Path | None = None
    for name, extras in EXTRAS.items():
        lock = HERE / f"{name}.lock"
        before = lock.read_text(encoding="utf-8") if "--keep" in sys.argv else ""
        kept, cuda = split(resolve(extras, known, before))
        lock.write_text("".join(kept), encoding="utf-8")
        apart.update(cuda)
        known = known or lock
    (HERE / "cpu.lock").write_text(CPU_BUILD, encoding="utf-8")
    (HERE / "cuda.lock").write_text("".join(sorted(apart)), encoding="utf-8")
    (HERE / "peer.lock").write_text("".join(peers()), encoding="utf-8")


def peers() -> list[str]:
    """What the second environment has beside the first and CUDA's libraries."""
    shared = "".join((HERE / f"{name}.lock").read_text(encoding="utf-8") for name in ("dev", "cuda"))
    lock = HERE / "peer.lock"
    before = lock.read_text(encoding="utf-8") if "--keep" in sys.argv else ""
    found, _ = split(resolve([*EXTRAS["dev"], "--extra", "backbones", "--extra", "peer"], None, shared + before))
    known = {text.partition(" ")[0] for text in split(shared)[0]}
    more = [text for text in found if text.partition(" ")[0] not in known]
    if unlike := {text.partition("==")[0] for text in more} & {text.partition("==")[0] for text in split(shared)[0]}:
        sys.exit(f"the second environment cannot have the first one's {', '.join(sorted(unlike))}")
    # What it names besides is 100 MB for captioning.
    (alone,) = split(resolve(["--no-deps"], None, before, asked="clip-benchmark\n"))[0]
    return [*more, alone]


def resolve(extras: list[str], known: Path | None, before: str, *, asked: str = "") -> str:
    """What an environment gets, one requirement with its hashes after another.

    Args:
        known: a lock whose versions are to be taken.
        before: an earlier result; its versions stay where they can.
        asked: requirements, instead of lakeclip's.
    """
    root = HERE.parent
    command = [sys.executable, "-m", "uv", "pip", "compile", "-" if asked else str(root / "pyproject.toml"), *extras]
    command += ["--universal", "--python-version", "3.10", "--no-python-downloads", "--only-binary", ":all:"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
    command += ["--constraint", str(root / "constraints.txt")]
    if known:
        command += ["--constraint", str(known)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock"
        out.write_text(before, encoding="utf-8")
        subprocess.run([*command, "--quiet", "--output-file", str(out)], check=True, input=asked, text=True, cwd=root)
        return out.read_text(encoding="utf-8")


def split(resolved: str) -> tuple[list[str], list[str]]:
    """The requirements, each with its hashes as one text: those of every build, and those of CUDA's."""
    found = [text for text in re.split(r"^(?=[A-Za-z0-9])", resolved, flags=re.MULTILINE) if text[:1].isalnum()]
    return [text for text in found if not _CUDA.match(text)], [text for text in found if _CUDA.match(text)]


if __name__ == "__main__":
    main()
