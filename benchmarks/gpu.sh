#!/usr/bin/env bash
# Runs gpu.py on a machine with a GPU that has PyTorch and Lightning, and little else: from a checkout, nothing installed.
#
#   benchmarks/gpu.sh --out gpu.json              # see `benchmarks/gpu.sh --help`
#   PEER_PATH=DIR benchmarks/gpu.sh …             # DIR holds open_clip's package and what it needs
#
# Without PEER_PATH it tries to install open_clip; without a network either, lakeclip alone is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PEER_PATH:+:$PEER_PATH}${PYTHONPATH:+:$PYTHONPATH}"
case " $* " in
*" --rehearse "* | *" --help "* | *" -h "*) ;;
*)
    if ! "$PYTHON" -c "import open_clip" 2>/dev/null; then
        "$PYTHON" -m pip install --quiet --timeout 10 --retries 1 open_clip_torch ||
            echo "open_clip could not be installed: lakeclip alone is measured" >&2
    fi
    ;;
esac
exec "$PYTHON" benchmarks/gpu.py "$@"
