#!/usr/bin/env bash
# Check and measure a GPU: bash recipes/benchmarks/gpu.sh OUT [options of gpu.py]
# Writes OUT/gpu.json, after every row, and OUT/gpu.log. Needs no network and installs nothing.
set -uo pipefail
[ $# -gt 0 ] || { echo "usage: bash recipes/benchmarks/gpu.sh OUT [--tiny] [--data FOLDER] [--only SECTION ...]"; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$1"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"${PYTHON:-python3}" "$root/recipes/benchmarks/gpu.py" "$@" 2>&1 | tee "$1/gpu.log"
