#!/usr/bin/env bash
# Runs gpu.py from a checkout, without installing lakeclip, on a machine with a GPU, PyTorch, Lightning and PyYAML.
#
#   benchmarks/gpu.sh --out gpu.json              # see `benchmarks/gpu.sh --help`
#   PEER_PATH=DIR benchmarks/gpu.sh …             # DIR holds the open_clip package and its dependencies
#
# Without PEER_PATH it tries to install open_clip. Without a network as well, only lakeclip is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PEER_PATH:+:$PEER_PATH}${PYTHONPATH:+:$PYTHONPATH}"
case " $* " in
*" --rehearse "* | *" --help "* | *" -h "*) ;;
*)
    if ! "$PYTHON" -c "import open_clip" 2>/dev/null; then
        "$PYTHON" -m pip install --quiet --timeout 10 --retries 1 open_clip_torch ||
            echo "open_clip could not be installed: only lakeclip is measured" >&2
    fi
    ;;
esac
exec "$PYTHON" benchmarks/gpu.py "$@"
