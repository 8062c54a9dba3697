#!/usr/bin/env bash
# Are the bounds in setup.cfg true? A fast part of the tests with the oldest versions that it allows, and with the newest
# that install: bash tests/versions.sh [oldest] [newest]
#   PYTHONS="python3.11 python3.12"   what to make environments with; the oldest set takes the first
#   FLOWERS_VERSIONS=DIR              keep the environments in DIR, and use them again (default: removed one by one)
# Not part of .ci/run: PyTorch's default build for Linux takes up to 8 GB an environment. Lower bounds are taken as exact
# versions, so each has to be a version that exists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${PYTHONS:-} ]]; then
  read -ra pythons <<< "$PYTHONS"
else
  pythons=(python3)
  for python in python3.{11..20}; do  # one more that is not the same
    if "$python" -c '' 2> /dev/null && [[ $("$python" -V) != $(python3 -V) ]]; then
      pythons+=("$python")
      break
    fi
  done
fi
sets=("${@:-oldest newest}")
read -ra sets <<< "${sets[*]}"
for set in "${sets[@]}"; do
  [[ $set =~ ^(oldest|newest)$ ]] || { echo "tests/versions.sh: got $set, expected oldest or newest" >&2; exit 2; }
done

place=${FLOWERS_VERSIONS:-$(mktemp -d)}
mkdir -p "$place"
[[ ${FLOWERS_VERSIONS:-} ]] || trap 'rm -rf "$place"' EXIT
export OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

bounds() {  # what setup.cfg says at least, as exact versions
  "${pythons[0]}" - << 'END'
import configparser, re
cfg = configparser.ConfigParser()
cfg.read("setup.cfg")
lines = cfg["options"]["install_requires"].split() + cfg["options.extras_require"]["excel"].split()
print("\n".join(line.replace(">=", "==") for line in lines if re.fullmatch(r"[\w-]+>=[\d.]+", line)))
END
}

tests=(
  tests/test_heads.py tests/test_optimizer.py tests/test_bundle.py tests/test_checkpoint.py tests/test_backbones.py
  tests/test_layouts.py tests/test_workbook.py tests/test_distributed.py tests/test_api.py
  tests/test_train.py::test_a_head_on_cached_features
  tests/test_train.py::test_two_processes_share_the_backbone_work
  tests/test_train.py::test_accelerate_launch_really_runs_two_processes
  tests/test_resume.py::test_a_head_on_features_is_resumed_bit_for_bit_too
  tests/test_resume.py::test_a_staged_run_is_resumed_in_either_stage
  tests/test_resume.py::test_one_and_two_processes_and_accumulation_do_the_same
  tests/test_whole_network.py::test_growing_views_train
  tests/test_whole_network.py::test_grad_checkpointing_changes_no_weight
  tests/test_predict_processes.py::test_one_two_and_an_array_of_three_give_the_same_bytes
  --deselect tests/test_backbones.py::test_every_torchvision_classifier_loses_its_head  # a minute
)
rows=() failed=0

try() {  # try SET PYTHON
  local venv log free constraint=()
  venv=$place/$1-$(basename "$2")
  log=$venv.log
  free=$(df --output=avail -BG "$place" | tail -1 | tr -dc 0-9)
  if [[ ! -d $venv ]] && ((free < 23)); then
    rows+=("| $1 | $($2 -V) | | | | | | not run: $free GB free, an environment takes up to 8 |")
    return
  fi
  bounds > "$place/bounds.txt"
  [[ $1 == oldest ]] && constraint=(--constraint "$place/bounds.txt")
  echo "== $1 versions, $("$2" -V): $log"
  if ! { [[ -x $venv/bin/pytest ]] || { "$2" -m venv "$venv" && "$venv/bin/python" -m pip install --quiet --no-cache-dir \
    "${constraint[@]}" --editable '.[excel]' pytest pytest-timeout; }; } &> "$log"; then
    rows+=("| $1 | $($2 -V) | | | | | | does not install: $(grep -m1 ERROR "$log" || tail -1 "$log") |")
    failed=1
  else
    "$venv/bin/python" -m pytest --override-ini addopts= -q -p no:cacheprovider "${tests[@]}" &>> "$log" || failed=1
    grep -E '^(FAILED|ERROR)' "$log" || true
    rows+=("$("$venv/bin/python" - "$1" "$(grep -E '(passed|failed).* in ' "$log" | tail -1 | tr -d =)" << 'END'
import importlib.metadata, platform, sys
names = ("torch", "torchvision", "timm", "accelerate", "numpy")
print("|", " | ".join([sys.argv[1], f"Python {platform.python_version()}", *map(importlib.metadata.version, names), sys.argv[2].strip()]), "|")
END
    )")
  fi
  [[ ${FLOWERS_VERSIONS:-} ]] || rm -rf "$venv"
}

for set in "${sets[@]}"; do
  for python in "${pythons[@]}"; do
    [[ $set == oldest && $python != "${pythons[0]}" ]] || try "$set" "$python"
  done
done
printf '%s\n' '| versions | Python | torch | torchvision | timm | accelerate | numpy | tests |' '|-|-|-|-|-|-|-|-|' "${rows[@]}"
exit "$failed"
