"""Files and requests for TensorFlow Serving and Triton fit the servers' published schemas."""

import base64
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

import documents
import model_servers
import other_runtimes
import sample_records
import saved_runs
import server_protos
import serving
from ensemble import Ensemble
from run_config import RunConfig

# Formats of the frames of two features of one entry each.
FRAME_FORMATS = {
    "bytes": {},
    "floats": {"feature_dtypes": ("float16", "float32")},
    "lists": {"feature_dtypes": ("float_list",)},
}


def module_of(name="FrameLevelLogisticModel", mediapipe=False, **options):
    """Returns signatures of a model of two features of one entry, and its `DataConfig`."""
    config = RunConfig(name, num_classes=3, feature_sizes=(1, 1), **options)
    ensemble = Ensemble([saved_runs.make_model(config)])
    return serving.make_module(ensemble, config.data, 2, mediapipe=mediapipe), config.data


def inputs_of(request):
    return {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}


# --- TensorFlow Serving ---


@pytest.mark.parametrize(
    "options",
    [
        *FRAME_FORMATS.values(),
        {"mediapipe": True},
        {"name": "LogisticModel"},
    ],
)
def test_the_warm_up_calls_every_signature_with_one_video(options, tmp_path):
    module, data = module_of(**options)
    model_servers.write_warm_up(module.served, data, str(tmp_path))
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    called = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = server_protos.serving("PredictionLog").FromString(record.numpy())
        # No field is unknown, or it would be left out or come last.
        assert log.SerializeToString(deterministic=True) == record.numpy()
        request = log.predict_log.request
        called.append(request.model_spec.signature_name)
        for output in module.served[called[-1]](**inputs_of(request)).values():
            assert output.shape[0] == 1
    assert called == list(module.served)


def test_an_exported_model_has_warm_up_requests(exported):
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    assert len(list(tf.data.TFRecordDataset(str(path)))) == 4


def blocks(language):
    """Returns the blocks of the document about model servers that are in a language."""
    text = (documents.ROOT / "docs" / "export.md").read_text().partition("## Model servers")[2]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def rest_tensors(body, specs):
    """Converts a body to tensors by the rules of https://www.tensorflow.org/tfx/serving/api_rest.

    A body has either `instances`, a list with a dict of inputs for each video, or `inputs`, a dict
    of batches. Bytes are written as {"b64": base64}.
    """
    assert set(body) in ({"signature_name", "instances"}, {"signature_name", "inputs"})
    if "instances" in body:
        names = body["instances"][0]
        batches = {name: [row[name] for row in body["instances"]] for name in names}
    else:
        batches = body["inputs"]

    def decoded(value):
        if isinstance(value, list):
            return [decoded(entry) for entry in value]
        return base64.b64decode(value["b64"]) if isinstance(value, dict) else value

    return {name: tf.constant(decoded(batches[name]), spec.dtype) for name, spec in specs.items()}


@pytest.fixture(scope="module")
def module():
    return module_of()[0]


def call(module, signature, inputs):
    return {name: value.numpy() for name, value in module.served[signature](**inputs).items()}


FRAMES = np.array([[[131, 97], [12, 240], [0, 0]]], np.uint8)


def expected_predictions(module):
    inputs = {"frames": tf.constant(FRAMES), "num_frames": tf.constant([2])}
    return call(module, "predict", inputs)["predictions"]


def assert_best_classes(answer, module):
    probabilities = expected_predictions(module)[0]
    assert answer["video_id"].tolist() == [b"a"]
    np.testing.assert_array_equal(answer["class_indexes"][0], np.argsort(-probabilities)[:2])
    np.testing.assert_allclose(answer["predictions"][0], np.sort(probabilities)[:0:-1], rtol=1e-6)


def record():
    """Returns the record of the video whose frames the document has."""
    rgb, audio = FRAMES[0, :2].T
    return sample_records.frame_record("a", [], rgb=rgb[:, None], audio=audio[:, None])


def test_the_rest_bodies_of_the_document_are_answered(module):
    of_record, of_frames = (
        json.loads(text.replace("RECORD", base64.b64encode(record()).decode()))
        for text in blocks("json")
        if "signature_name" in text
    )
    inputs = rest_tensors(of_record, {"example_bytes": tf.TensorSpec([None], tf.string)})
    assert_best_classes(call(module, of_record["signature_name"], inputs), module)
    specs = {"frames": tf.TensorSpec([], tf.uint8), "num_frames": tf.TensorSpec([], tf.int32)}
    found = call(module, of_frames["signature_name"], rest_tensors(of_frames, specs))
    np.testing.assert_array_equal(found["predictions"], expected_predictions(module))


def test_the_grpc_bodies_of_the_document_are_answered(module):
    escaped = text_format.text_encoding.CEscape(record(), as_utf8=False)
    of_record, of_frames = (
        text_format.Parse(
            text.replace("RECORD", escaped), server_protos.serving("PredictRequest")()
        )
        for text in blocks("textproto")
        if "signature_name" in text
    )
    found = call(module, of_record.model_spec.signature_name, inputs_of(of_record))
    assert_best_classes(found, module)
    found = call(module, of_frames.model_spec.signature_name, inputs_of(of_frames))
    np.testing.assert_array_equal(found["predictions"], expected_predictions(module))


# --- Triton ---


@pytest.mark.parametrize("frame_format", FRAME_FORMATS)
def test_the_configuration_for_triton_fits_the_onnx_file(frame_format, tmp_path):
    import onnxruntime

    config = RunConfig(
        "FrameLevelLogisticModel",
        num_classes=3,
        feature_sizes=(4, 2),
        **FRAME_FORMATS[frame_format],
    )
    ensemble = Ensemble([saved_runs.make_model(config)])
    other_runtimes.write("onnx", ensemble, config.data, str(tmp_path))
    text = (tmp_path / "config.pbtxt").read_text()
    parsed = text_format.Parse(text, server_protos.triton("ModelConfig")())
    assert parsed.backend == "onnxruntime"
    assert parsed.max_batch_size > 1
    assert parsed.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert described(parsed.input) == in_file(session.get_inputs())
    assert described(parsed.output) == in_file(session.get_outputs())


TYPES = {
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_INT32": "tensor(int32)",
}


def described(tensors):
    """Returns the type and the shape without the batch of each tensor, with None for any length."""
    found = {}
    for tensor in tensors:
        shape = tensor.reshape.shape if "reshape" in str(tensor) else tensor.dims
        type_name = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[
            tensor.data_type
        ]
        found[tensor.name] = TYPES[type_name.name], [None if n == -1 else n for n in shape]
    return found


def in_file(tensors):
    return {
        tensor.name: (tensor.type, [n if isinstance(n, int) else None for n in tensor.shape[1:]])
        for tensor in tensors
    }


def test_the_configuration_in_the_document_is_that_of_the_paper_s_models(tmp_path):
    config = RunConfig("LFNLNetVLADModel", num_classes=3862, feature_sizes=(1024, 128))
    model_servers.write_triton_config(config.data, str(tmp_path))
    (text,) = (text for text in blocks("textproto") if "backend" in text)
    assert (tmp_path / "config.pbtxt").read_text() == text
