"""Write the lock files: every package of an environment with the hashes of its files.

    make lock                                       # upgrade everything
    .venv/bin/python requirements/lock.py --keep    # keep the versions, and add new requirements of pyproject.toml

`demo.lock` has what lakeclip needs, `docs.lock` only what the tools for the site add to it, and `dev.lock` only what
the tools for developers add to both: each package is locked in one place (docs/adr/0023-one-lock-or-several.md).
`cpu.lock` is PyTorch's CPU build; `cuda.lock` has the additional packages of its ordinary Linux build; `peer.lock` has
the additional packages of the second environment. docs/adr/0018-locks.md says why.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Smallest environment first: each lock has what it adds to those before it.
EXTRAS = {"demo": [], "docs": ["--extra", "docs"], "dev": ["--extra", "dev"]}
#: Packages that PyTorch's CPU build does not need.
_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
#: The CPU build, which is on an index other than PyPI: torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl.
CPU_BUILD = """torch==2.13.0+cpu ; python_full_version == '3.11.*' and platform_machine == 'x86_64' \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
"""


def main() -> None:
    """Resolve each environment for all Python versions at once, and write the locks."""
    before = "".join((HERE / f"{name}.lock").read_text(encoding="utf-8") for name in EXTRAS)
    resolved = resolve(EXTRAS["dev"], None, before if "--keep" in sys.argv else "")
    kept, cuda = split_cuda(resolved)
    # Versions and markers are those of the largest environment. Some packages have a version for each Python.
    largest: dict[str, list[str]] = {}
    for text in kept:
        largest.setdefault(_name(text), []).append(text)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "dev.lock"
        constraints.write_text("".join(kept), encoding="utf-8")
        for name, extras in EXTRAS.items():
            needed = set(largest)
            if name != "dev":
                needed &= {_name(text) for text in split_cuda(resolve(extras, constraints, ""))[0]}
            added = [text for package in sorted(needed) for text in largest.pop(package)]
            (HERE / f"{name}.lock").write_text("".join(added), encoding="utf-8")
    (HERE / "cpu.lock").write_text(CPU_BUILD, encoding="utf-8")
    (HERE / "cuda.lock").write_text("".join(sorted(cuda)), encoding="utf-8")
    (HERE / "peer.lock").write_text("".join(peer_packages()), encoding="utf-8")


def peer_packages() -> list[str]:
    """Return the packages that the second environment has in addition to the first one and CUDA's libraries.

    Raises:
        SystemExit: the second environment needs another version of a shared package.
    """
    shared = "".join((HERE / f"{name}.lock").read_text(encoding="utf-8") for name in (*EXTRAS, "cuda"))
    lock = HERE / "peer.lock"
    before = lock.read_text(encoding="utf-8") if "--keep" in sys.argv else ""
    resolved, _ = split_cuda(
        resolve([*EXTRAS["dev"], "--extra", "backbones", "--extra", "peer"], None, shared + before)
    )
    locked = split_cuda(shared)[0]
    pins = {text.partition(" ")[0] for text in locked}
    additional = [text for text in resolved if text.partition(" ")[0] not in pins]
    conflicts = {text.partition("==")[0] for text in additional} & {text.partition("==")[0] for text in locked}
    if conflicts:
        sys.exit(f"the second environment needs other versions than the first of {', '.join(sorted(conflicts))}")
    # Without its dependencies, which are 100 MB for captioning.
    (clip_benchmark,) = split_cuda(resolve(["--no-deps"], None, before, requirements="clip-benchmark\n"))[0]
    return [*additional, clip_benchmark]


def resolve(extras: list[str], constraints: Path | None, before: str, *, requirements: str = "") -> str:
    """Resolve an environment to its pinned requirements with hashes.

    Args:
        constraints: a lock whose versions to use.
        before: an earlier result, whose versions are kept where possible.
        requirements: requirements to resolve instead of lakeclip's.
    """
    root = HERE.parent
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "-" if requirements else str(root / "pyproject.toml"),
        *extras,
    ]
    command += ["--universal", "--python-version", "3.10", "--no-python-downloads", "--only-binary", ":all:"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
    command += ["--constraint", str(root / "constraints.txt")]
    if constraints:
        command += ["--constraint", str(constraints)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock"
        out.write_text(before, encoding="utf-8")
        subprocess.run(
            [*command, "--quiet", "--output-file", str(out)], check=True, input=requirements, text=True, cwd=root
        )
        return out.read_text(encoding="utf-8")


def split_cuda(resolved: str) -> tuple[list[str], list[str]]:
    """Split a lock into its requirements, each with its hashes: those of every build, and those of the CUDA build."""
    requirements = [text for text in re.split(r"^(?=[A-Za-z0-9])", resolved, flags=re.MULTILINE) if text[:1].isalnum()]
    return (
        [text for text in requirements if not _CUDA.match(text)],
        [text for text in requirements if _CUDA.match(text)],
    )


def _name(requirement: str) -> str:
    return requirement.partition("==")[0]


if __name__ == "__main__":
    main()
