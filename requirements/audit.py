"""Asks OSV (https://osv.dev) whether a locked package has a known vulnerability; part of `make check`.

Ends with 1 where one has, or where the question fails half-way. Where the service cannot be reached at all, it says so
and ends with 0: without a network the other checks still count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Of vulnerabilities that do not concern us: why, and since when. None today.
IGNORED: dict[str, str] = {}


def main() -> None:
    """Ask for all locks at once."""
    service = os.environ.get("OSV_URL", "https://api.osv.dev/v1/query")
    locks = sys.argv[1:] or [
        str(HERE / name) for name in ("dev.lock", "demo.lock", "docs.lock", "cuda.lock", "peer.lock")
    ]
    if reason := unreachable(service):
        print(f"pip-audit: COULD NOT ASK for known vulnerabilities, {service} does not answer ({reason}); not checked")
        return
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--vulnerability-service", "osv"]
    command += ["--osv-url", service, "--progress-spinner", "off"]
    command += [word for lock in locks for word in ("--requirement", lock)]
    command += [word for name in IGNORED for word in ("--ignore-vuln", name)]
    sys.exit(subprocess.run(command).returncode)


def unreachable(service: str) -> str:
    """Why the service cannot be asked; nothing where it answers, if only with an error."""
    asked = urllib.request.Request(service, b'{"version": "0", "package": {"name": "pip", "ecosystem": "PyPI"}}')
    try:
        urllib.request.urlopen(asked, timeout=20).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        return str(getattr(error, "reason", error))
    return ""


if __name__ == "__main__":
    main()
