#!/usr/bin/env bash
# Trains the paper's models on generated data, and writes a report that compares the results with the
# paper's. Arguments are passed to study/run.py; --quick is short for --scale=quick.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt requirements/{report,study}.txt

python study/run.py "${@/#--quick/--scale=quick}"
