# Sourced by the scripts: activates a virtual environment with the given requirement files.
# An active environment is used as it is; otherwise .venv in the project's directory is created.

# Conda's base environment does not count: everything on the machine shares it.
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
    sys.exit(f"Python 3.10 to 3.13 is required, this is {sys.version.split()[0]}. "
             "Remove .venv and set PYTHON to another interpreter.")
END
echo "Installing $* (the first time, TensorFlow is a download of 550 MB)"
python -m pip install --quiet --disable-pip-version-check "${@/#/--requirement=}"
