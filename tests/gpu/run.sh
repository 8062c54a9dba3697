#!/usr/bin/env bash
# Prove the project on a machine with a GPU, in at most eight minutes: bash tests/gpu/run.sh
#   --pretend      the same on the CPU, with tiny networks and pictures: shows that the script, tests and measurements run;
#                  two minutes, or ten where the machine is busy
#   --wheels DIR   where packages that are missing here are taken from (default: what fetch_wheels.sh has fetched)
#   PYTHON=python3 the interpreter, which has torch
# Nothing is installed from the network. Every test and every measurement leaves a line in results.md and results.json
# in $OUT, or in gpu-results/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

device=cuda limit_s=460 wheels=$root/tests/gpu/wheels
while (($#)); do
  case $1 in
    --pretend) device=cpu limit_s=600 ;;
    --wheels) wheels=${2:?--wheels: expected a folder} && shift ;;
    *) echo "$1: expected --pretend or --wheels DIR" >&2 && exit 2 ;;
  esac
  shift
done
python=${PYTHON:-python3}
out=$(mkdir -p "${OUT:-gpu-results}" && cd "${OUT:-gpu-results}" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

for wheel in "$wheels"/*.whl; do
  name=$(basename "$wheel") && name=${name%%-*}
  if [[ -e $wheel ]] && ! "$python" -c "import importlib.metadata as m; m.version('$name')" 2> /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$scratch/site" "$wheel"
  fi
done
export PYTHONPATH=$root:$scratch/site${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 XDG_CACHE_HOME=$scratch/cache TMPDIR=$scratch
export FLOWERS_DEVICE=$device FLOWERS_RESULTS=$out
now=$(date +%s)
export FLOWERS_TESTS_UNTIL=$((now + limit_s * 2 / 3)) FLOWERS_DEADLINE=$((now + limit_s))

rm -f "$out"/results.{json,md}
cd "$root"
failed=0
# Tests that have not begun after two thirds of the time are skipped, and the table says so.
timeout $((limit_s * 3 / 4)) "$python" -m pytest -p no:cacheprovider --rootdir "$root" tests/gpu || failed=$?
timeout $((limit_s - SECONDS)) "$python" tests/gpu/measure.py || failed=$?
echo "results: $out/results.md"
exit "$failed"
