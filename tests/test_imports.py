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
    "segment_config",
    "quantization",
    "stored_matrix",
    "utils",
    *(path.stem for path in ROOT.glob("*_models.py")),
}
OWN_MODULES = {path.stem for path in ROOT.glob("*.py")}


def imported_modules(path):
    """Returns the top-level packages that a module imports when it is imported itself."""
    found, pending = set(), list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
        elif not runs_later(node):
            pending += ast.iter_child_nodes(node)
    return found


def runs_later(node):
    """Returns whether the statements in a node do not run when the module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.Lambda)


@pytest.mark.parametrize("name", sorted(WITHOUT_TENSORFLOW))
def test_a_module_of_models_imports_neither_tensorflow_nor_a_module_that_may(name):
    imported = imported_modules(ROOT / f"{name}.py")
    assert "tensorflow" not in imported
    assert imported & OWN_MODULES <= WITHOUT_TENSORFLOW


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
