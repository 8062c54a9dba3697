#!/usr/bin/env bash
# Set up and pass everything: bash tests/run.sh [pytest arguments]
# With arguments it is one pytest in one process, say: bash tests/run.sh -x tests/test_train.py -k resume
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
  echo "shellcheck not found, shell scripts are not linted: apt-get install shellcheck"
fi

if (($#)); then
  exec "$venv/bin/python" -m pytest "$@"
fi
# Most tests keep one core busy, and wait a third of the time for processes that start: one more at once than there are
# cores. A process takes neighbouring tests, which share module fixtures. The cluster's tests watch Slurm's clocks and
# need a quiet machine; they mostly wait for them, so two clusters are at work.
cores=$("$venv/bin/python" -c 'import os; print(os.cpu_count())')
failed=0
"$venv/bin/python" -m pytest --numprocesses $((cores < 4 ? cores + 1 : 4)) --dist worksteal -m 'not slurm and not alone' || failed=$?
"$venv/bin/python" -m pytest --numprocesses 2 --dist loadfile -m slurm || failed=$?
"$venv/bin/python" -m pytest -m alone || failed=$?
exit "$failed"
