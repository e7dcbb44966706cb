# Sourced by the scripts: makes sure of a virtual environment with the given requirement files.
# An active environment is used as it is; else .venv is made in the project's directory.

# Conda's base environment does not count: it is everybody's.
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
  if [ ! -e .venv/bin/activate ]; then
    echo "Creating a virtual environment in $PWD/.venv"
    "${PYTHON:-python3}" -m venv .venv
  fi
  . .venv/bin/activate
fi
python - <<'END'
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Python 3.10 to 3.13 is needed, this is {sys.version.split()[0]}. "
             "Remove .venv and set PYTHON to another interpreter.")
END
for requirements in "$@"; do
  echo "Installing $requirements (the first time, TensorFlow is a download of 550 MB)"
  python -m pip install --quiet --disable-pip-version-check -r "$requirements"
done
# TensorFlow's remarks about graphics cards and instruction sets are no news here.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
