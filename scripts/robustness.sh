#!/usr/bin/env bash
# Tries to break the programs with corrupt files, crashes and full disks, and prints the results, in
# about half an hour on two cores. scripts/test.sh runs a quick part of it.
set -euo pipefail
if [ $# -gt 0 ]; then
  echo "usage: bash scripts/robustness.sh" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt requirements/{beam,hdf5,notebook,parquet,report,search,study,video,dev}.txt

python tests/robustness/corrupt_records.py --cases=10000
python tests/robustness/adversarial_scores.py --cases=2000
python tests/robustness/served_model.py --cases=2000
python tests/robustness/kills.py --kills=8 --stops=2
python tests/robustness/not_finite.py
python tests/robustness/odd_flags.py
python tests/robustness/full_disk.py --fills=3
python tests/robustness/many_shards.py --shards=3844
python tests/robustness/soak.py --steps=20000 --checkpoints=50
