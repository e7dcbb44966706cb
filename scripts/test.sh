#!/usr/bin/env bash
# Installs the requirements and runs all checks: format, lint, types, tests in two processes.
# With --fast, leaves out the slow tests. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt \
  requirements/{beam,hdf5,litert,notebook,onnx,parquet,real_data,report,search,study,video,dev}.txt

ruff format --check .
ruff check .
mypy
arguments=()
for argument in "$@"; do
  if [ "$argument" = --fast ]; then arguments+=(-m "not slow"); else arguments+=("$argument"); fi
done
python -m pytest --numprocesses=2 --dist=worksteal "${arguments[@]}"
