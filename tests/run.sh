#!/usr/bin/env bash
# Set up and pass everything: bash tests/run.sh [pytest arguments]
#   FLOWERS_VENV=DIR   the virtual environment to make or reuse (default: .venv in the checkout)
#   PYTHON=python3     what to make it with
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${FLOWERS_VENV:-.venv}
"$venv/bin/python" -m pip --version > /dev/null 2>&1 || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if command -v shellcheck > /dev/null; then
  git ls-files '*.sh' '*.sbatch' .ci/run | xargs --no-run-if-empty shellcheck
else
  echo "shellcheck is not installed: scripts are not linted"
fi
"$venv/bin/python" -m pytest "$@"
