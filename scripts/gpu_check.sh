#!/usr/bin/env bash
# Proves nnSSL on this machine's GPU: the tests marked `gpu`, every shipped trainer in 2D and 3D, and
# what a step costs. Needs no network and no data; a table comes last, JSON lies in the folder.
#
#   bash scripts/gpu_check.sh [--minutes 9] [--out FOLDER] [--device cpu]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
