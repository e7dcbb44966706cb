"""Makes the archive that clusters and cloud jobs install: `python setup.py sdist`."""

import pathlib

from setuptools import setup

_HERE = pathlib.Path(__file__).parent


def _requirements(name):
    lines = (_HERE / name).read_text().splitlines()
    requirements = [line.partition("#")[0].strip() for line in lines]
    return [line for line in requirements if line and not line.startswith("-r")]


setup(
    name="youtube8m",
    version="1.0",
    description="YouTube-8M video classification on TensorFlow 2 and Keras 3",
    python_requires=">=3.10",
    py_modules=sorted(path.stem for path in _HERE.glob("*.py") if path.stem != "setup"),
    install_requires=_requirements("requirements.txt"),
    extras_require={
        "beam": _requirements("requirements-beam.txt"),
        "gcs": ["tensorflow[gcs-filesystem]"],
    },
)
