#!/usr/bin/env bash
# Installs what is needed and runs all checks: format, lint, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements-dev.txt

ruff format --check .
ruff check .
python -m pytest "$@"
