"""Promises of docs/security.md: files from others are data, never code."""

import ast
import json
import shutil

import pytest

import average_checkpoints
import checkpoints
import documents
import predictor
import programs
from utils import InputError

# Modules that run code from files, unpack archives or fetch from other machines.
DANGEROUS_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"),
    *("tarfile", "zipfile", "urllib", "http", "ftplib", "requests", "httpx", "telnetlib"),
    *("xmlrpc", "subprocess", "yaml", "tensorflow_hub"),
}
DANGEROUS_CALLS = {
    *("eval", "exec", "__import__", "unpack_archive", "system", "popen", "get_file"),
    *("enable_unsafe_deserialization", "deserialize_keras_object", "Lambda", "model_from_json"),
    *("unsafe_load", "py_function", "numpy_function", "extract", "extractall"),
}
# Archives of features are read in memory and not unpacked; search.py runs train.py.
ALLOWED = {
    "clips.py": {"tarfile", "zipfile"},
    "array_sources.py": {"tarfile", "zipfile"},
    "search.py": {"subprocess"},
}
PROGRAMS = sorted(
    path
    for pattern in ("*.py", "own_data/*.py", "segments/*.py")
    for path in documents.ROOT.glob(pattern)
)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", None))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_no_module_unpickles_unpacks_or_fetches(path):
    tree = ast.parse(path.read_text())
    assert not (DANGEROUS_MODULES - ALLOWED.get(path.name, set())) & set(imported(tree))
    assert not DANGEROUS_CALLS & set(called(tree))


@pytest.fixture
def run_dir(trained_mean, tmp_path):
    return shutil.copytree(trained_mean, tmp_path / "run")


def change_config(run_dir, **changes):
    path = run_dir / "model_flags.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["HarmModel", "harm_models.HarmModel", "../run/harm", "os.system"])
def test_a_config_cannot_select_code_in_its_own_directory(run_dir, name):
    (run_dir / "harm_models.py").write_text(
        "import pathlib, registry\n"
        f"pathlib.Path({str(run_dir / 'harmed')!r}).touch()\n"
        "@registry.register\nclass HarmModel: pass\n"
    )
    change_config(run_dir, model=name, hyperparameters={})
    with pytest.raises(InputError, match="unknown model"):
        checkpoints.load_model(str(run_dir))
    assert not (run_dir / "harmed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparameters": {"iterations": "__import__('os')"}},
        {"hyperparameters": {"iterations": {"class_name": "Lambda"}}},
        {"hyperparameters": {"build": 1}},
        {"hyperparameters": ["iterations"]},
        {"hyperparameters": 7},
        {"model": ["FrameLevelLogisticModel"]},
        {"model": {}},
        {"num_classes": "10"},
        {"num_classes": -1},
        {"feature_sizes": 5},
        {"feature_sizes": [8, -4]},
        {"feature_names": None},
        {"class_name": "Lambda"},
        {"max_frames": 0},
        {"batch_size": 0},
        {"label_loss": "unknown"},
        {"base_learning_rate": float("nan")},
        {"base_learning_rate": float("inf")},
        {"num_classes": 2**64},
        {"seed": 2**32},
        {"hyperparameters": {"iterations": 2**64}},
        {"hyperparameters": {"l2_penalty": float("nan")}},
        {"hyperparameters": {"video_level_classifier_model": ["LogisticModel"]}},
    ],
    ids=str,
)
def test_invalid_values_in_a_config_are_rejected(run_dir, changes):
    change_config(run_dir, **changes)
    with pytest.raises(InputError):
        checkpoints.load_model(str(run_dir))


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"model": 1}', "\x00", "[" * 10**5])
def test_a_corrupt_config_is_rejected(run_dir, content):
    (run_dir / "model_flags.json").write_text(content)
    with pytest.raises(InputError, match=r"model_flags\.json"):
        checkpoints.load_model(str(run_dir))


MANIFEST = {
    "label_loss": "CrossEntropyLoss",
    "models": [{"step": 1}],
    "digest": "",
    "data": {
        "frame_level": True,
        "feature_names": ["rgb"],
        "feature_sizes": [4],
        "num_classes": 10,
        "max_frames": 300,
    },
}


@pytest.mark.parametrize(
    "changes",
    [
        {"label_loss": "unknown"},
        {"label_loss": []},
        {"models": 7},
        {"models": [1]},
        {"models": [{"step": "1"}]},
        {"data": 7},
        *(
            {"data": {**MANIFEST["data"], name: value}}
            for name, value in [
                *(("num_classes", -1), ("num_classes", 2**64), ("max_frames", "300")),
                *(("feature_names", [1]), ("feature_sizes", [0]), ("code", "harm")),
            ]
        ),
    ],
    ids=str,
)
def test_invalid_values_in_a_manifest_are_rejected(tmp_path, changes):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    assert predictor.read_manifest(str(tmp_path))[1].max_frames == 300
    path.write_text(json.dumps({**MANIFEST, **changes}))
    with pytest.raises(InputError, match=r"manifest\.json does not fit this version"):
        predictor.read_manifest(str(tmp_path))


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "missing"])
def test_a_corrupt_checkpoint_is_rejected_by_name(run_dir, frame_data, ending, damage):
    path = run_dir / f"model.ckpt-20.{ending}"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        start = content[: len(content) // 10]
        garbage = b"\x07" * len(content)
        path.write_bytes({"cut": start, "garbage": garbage, "empty": b""}[damage])
    with pytest.raises(InputError, match=r"model\.ckpt-20"):
        checkpoints.load_model(str(run_dir))
    with pytest.raises(InputError, match=r"model\.ckpt-20"):
        programs.train_mean(run_dir, frame_data)
    with pytest.raises(InputError, match=r"model\.ckpt-20"):
        average_checkpoints.mean_of([f"{run_dir}/model.ckpt-20"])


def field(number, payload):
    """Returns a field of a serialized protocol buffer, of less than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


@pytest.mark.slow
def test_a_length_in_a_record_cannot_crash_an_exported_model(exported):
    # A string that claims to have 2**32 - 1 bytes.
    feature = field(1, b"\x0a\xff\xff\xff\xff\x0f")
    in_id = field(1, field(1, field(1, b"id") + field(2, feature)))
    features = (field(1, name) + field(2, field(1, feature)) for name in (b"rgb", b"audio"))
    in_frames = field(2, b"".join(field(1, entry) for entry in features))
    code = f"""
import tensorflow as tf
exported = tf.saved_model.load({str(exported)!r})
for record in {[in_id, in_frames]!r}:
    try:
        exported.signatures["serving_default"](example_bytes=tf.constant([record]))
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        print("rejected")
"""
    result = programs.run_command("-c", code)
    assert (result.returncode, result.stdout.split()) == (0, ["rejected"] * 2), result.stderr
