"""Models and layers do not import TensorFlow, so they also run on other backends of Keras."""

import ast

import pytest

from programs import ROOT, run_command

WITHOUT_TENSORFLOW = {
    "eval_util",
    "keras_metrics",
    "layers",
    "losses",
    "nextvlad",
    "nonlocal_vlad",
    "optimizer_state",
    "optimizers",
    "options",
    "private_api",
    "recurrent",
    "registry",
    "run_config",
    "quantization",
    "segments",
    "segments.config",
    "stored_matrix",
    "utils",
    *(path.stem for path in ROOT.glob("*_models.py")),
}
PACKAGES = ("own_data", "report_page", "segments")


def module_name(path):
    """Returns the name by which a file is imported, such as `segments.config`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


OWN_MODULES = {
    module_name(path): path
    for pattern in ("*.py", *(f"{package}/*.py" for package in PACKAGES))
    for path in ROOT.glob(pattern)
}


def imported_modules(path):
    """Returns the packages and modules that a file imports when it is imported itself."""
    found, pending = set(), list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names for name in with_packages(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for imported in names for name in with_packages(imported)}
        elif not runs_later(node):
            pending += ast.iter_child_nodes(node)
    return found


def with_packages(name):
    """Returns a dotted name and those of the packages that it is in."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def runs_later(node):
    """Returns whether the statements in a node do not run when the module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.Lambda)


@pytest.mark.parametrize("name", sorted(WITHOUT_TENSORFLOW))
def test_a_module_of_models_imports_neither_tensorflow_nor_a_module_that_may(name):
    imported = imported_modules(OWN_MODULES[name])
    assert "tensorflow" not in imported
    assert imported & OWN_MODULES.keys() <= WITHOUT_TENSORFLOW


@pytest.mark.slow
def test_a_program_leaves_what_keras_imports_for_plots_and_wrappers_to_those_who_use_it():
    script = """
import gc, sys
import inference
assert not {"sklearn", "matplotlib"} & set(sys.modules)
assert gc.isenabled() and gc.get_freeze_count() > 100_000
try:
    import matplotlib.figure
except ModuleNotFoundError as error:  # It is not installed; a hidden module has another message.
    assert "halted" not in str(error), error
"""
    result = run_command("-c", script)
    assert result.returncode == 0, result.stderr
