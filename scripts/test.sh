#!/usr/bin/env bash
# Makes or reuses .venv beside this repository and runs the tests there.
#   bash scripts/test.sh                 the default run (neither slow nor gpu tests)
#   bash scripts/test.sh -m slow         what pytest takes is handed on
#   NNSSL_VENV, PYTHON, NNUNET_VERSION   another environment, see environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh

nnssl_environment test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest "$@"
