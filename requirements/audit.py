"""Check the locked packages for known vulnerabilities with OSV (https://osv.dev); part of `make check`.

The exit code is 1 if a package has one, or if the check fails half-way. If the service cannot be reached at all, the
script says so and exits with 0, so that the other checks run without a network.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Vulnerability → why it does not affect lakeclip, and since when it is ignored. None today.
IGNORED: dict[str, str] = {}


def main() -> None:
    """Check all locks at once."""
    service = os.environ.get("OSV_URL", "https://api.osv.dev/v1/query")
    locks = sys.argv[1:] or [
        str(HERE / name) for name in ("dev.lock", "demo.lock", "docs.lock", "cuda.lock", "peer.lock")
    ]
    if reason := connection_error(service):
        print(f"pip-audit: NOT CHECKED for known vulnerabilities: {service} cannot be reached ({reason})")
        return
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--vulnerability-service", "osv"]
    command += ["--osv-url", service, "--progress-spinner", "off"]
    command += [argument for lock in locks for argument in ("--requirement", lock)]
    command += [argument for name in IGNORED for argument in ("--ignore-vuln", name)]
    sys.exit(subprocess.run(command).returncode)


def connection_error(service: str) -> str:
    """Return why the service cannot be reached; an empty string if it answers, even with an HTTP error."""
    request = urllib.request.Request(service, b'{"version": "0", "package": {"name": "pip", "ecosystem": "PyPI"}}')
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        return str(getattr(error, "reason", error))
    return ""


if __name__ == "__main__":
    main()
