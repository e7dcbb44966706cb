"""The graph of an exported model: its signatures, its record parser and its safety check."""

import collections
import hashlib
import json
import os
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

import files
import private_api
from ensemble import Ensemble
from run_config import DataConfig
from segments.ensemble import SegmentEnsemble
from utils import InputError, comma_separated

# The file in which an exported model states its origin and its input.
MANIFEST = "manifest.json"
# The format of an exported model, of several, that this module describes.
SAVED_MODEL = "saved_model"

# --- Signatures -----------------------------------------------------------------------------------


def make_module(
    ensemble: Ensemble,
    data: DataConfig,
    top_k: int,
    class_names: str | None = None,
    mediapipe: bool = False,
    segment_ensemble: SegmentEnsemble | None = None,
) -> tf.Module:
    """Returns a `tf.Module` to save, with only what its signatures use.

    Its attribute `served` is a dict of the functions `serving_default` and `predict`, for frames
    also `predict_floats`, if all models have embeddings, `embed`, and, with `segment_ensemble`,
    `segments`; `kept_variables` is a list of the `tf.Variable`s that they use.

    Args:
        ensemble: models that predict.
        data: data that they take.
        top_k: number of classes that `serving_default` returns per video.
        class_names: path of a file to save along, as an asset.
        mediapipe: whether `serving_default` is the signature that MediaPipe calls. The one that
            takes records is then called `records`.
        segment_ensemble: models that predict segments; None for no signature `segments`.
    """
    parse = _parse_frames if data.frame_level else _parse_vectors
    top_k = min(top_k, data.num_classes)

    def signature(output, function):
        def serve(**inputs):
            inputs = _checked(inputs, data) if data.frame_level else _checked_vectors(**inputs)
            return {output: tf.identity(function(inputs), name=output)}

        return tf.function(serve, autograph=False).get_concrete_function(**input_specs(data))

    if data.frame_level:
        # The graph has these operations once, for all signatures.
        encode = tf.function(lambda **inputs: ensemble.encodings(inputs), autograph=False)
        encode = encode.get_concrete_function(**input_specs(data))
        predict = signature(
            "predictions", lambda inputs: ensemble.mean(ensemble.classify(encode(**inputs)))
        )
    else:
        predict = signature("predictions", ensemble)

    def serve_records(example_bytes):
        video_ids, inputs = parse(example_bytes, data)
        scores, classes = tf.math.top_k(predict(**inputs)["predictions"], top_k)
        return {"video_id": video_ids, "class_indexes": classes, "predictions": scores}

    module = tf.Module()
    records = tf.TensorSpec([None], tf.string, name="example_bytes")
    serve_records = tf.function(serve_records, autograph=False).get_concrete_function(records)
    served = {"serving_default": serve_records, "predict": predict}
    if data.frame_level:
        served["predict_floats"] = _predict_floats(predict, data)
    if ensemble.has_embeddings:
        served["embed"] = signature("embeddings", lambda inputs: ensemble.embed(encode(**inputs)))
    models = ensemble.models
    if segment_ensemble is not None:
        served["segments"] = signature("predictions", segment_ensemble)
        models = segment_ensemble.models
    if mediapipe:
        served["records"] = serve_records
        served["serving_default"] = _mediapipe(served["predict_floats"], data)
    module.served = served
    used = {
        id(tensor) for function in module.served.values() for tensor in function.captured_inputs
    }
    module.kept_variables = [
        weight.value
        for model in models
        for weight in model.weights
        if id(weight.value.handle) in used
    ]
    if class_names is not None:
        module.class_names = tf.saved_model.Asset(class_names)
    return module


def _predict_floats(predict, data):
    """Returns `predict` for frames of float32 values, which it stores as the records do."""
    frame_format = data.frame_format

    def predict_floats(frames, num_frames):
        with tf.control_dependencies([_assert_finite(frames)]):
            frames = tf.identity(frames)
        if frame_format.quantization is not None:
            # As in `Quantization.quantize`.
            step = tf.constant(frame_format.quantization.step, tf.float32)
            offset = tf.constant(frame_format.quantization.offset, tf.float32)
            frames = tf.clip_by_value(tf.round((frames - offset) / step), 0.0, 255.0)
        stored = tf.cast(frames, frame_format.dtype)
        return predict(frames=stored, num_frames=num_frames)

    specs = input_specs(data)
    specs["frames"] = tf.TensorSpec(specs["frames"].shape, tf.float32, name="frames")
    return tf.function(predict_floats, autograph=False).get_concrete_function(**specs)


def _mediapipe(predict_floats, data):
    """Returns the signature that MediaPipe's inference graph calls."""

    def predict(rgb_and_audio, num_frames):
        return predict_floats(frames=rgb_and_audio, num_frames=tf.reshape(num_frames, [-1]))

    return tf.function(predict, autograph=False).get_concrete_function(
        rgb_and_audio=tf.TensorSpec(
            [None, None, sum(data.feature_sizes)], tf.float32, name="rgb_and_audio"
        ),
        num_frames=tf.TensorSpec([None, 1], tf.int32, name="num_frames"),
    )


def digest(export_dir: str, manifest: dict) -> str:
    """Returns a hash of an exported model, sixteen hexadecimal digits.

    It covers the names and contents of all files, except the manifest's, and the entries of the
    manifest, except the digest. Exports of the same weights with the same settings and versions
    have the same digest.

    Args:
        export_dir: directory of the model.
        manifest: content of its manifest.
    """
    entries = {name: value for name, value in manifest.items() if name != "digest"}
    hashed = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name, path in sorted(_files_in(export_dir)):
        if name != MANIFEST:
            hashed.update(f"\0{name}\0{files.file_size(path)}\0".encode())
            with files.open_binary(path) as file:
                while block := file.read(2**20):
                    hashed.update(block)
    return hashed.hexdigest()[:16]


def size(export_dir: str) -> int:
    """Returns the size of all files of an exported model in bytes."""
    return sum(files.file_size(path) for _, path in _files_in(export_dir))


def _files_in(export_dir):
    """Yields the name, relative to the directory, and the path of every file."""
    for folder, _, names in files.gfile.walk(export_dir):
        inside = folder[len(export_dir) :].strip("/")
        for name in names:
            yield os.path.join(inside, name), os.path.join(folder, name)


def write_frozen_graph(module: tf.Module, path: str) -> None:
    """Writes the signature `predict` as one GraphDef, with constants for weights.

    Raises:
        InputError: if it is too large for one file.
    """
    size = sum(variable.numpy().nbytes for variable in module.kept_variables)
    if size >= 2**31:
        raise InputError(
            f"--frozen_graph cannot hold {size} bytes of weights: a GraphDef has at most 2 GiB. "
            "Choose --dtype=bfloat16, or use the SavedModel."
        )
    frozen = private_api.freeze_variables(module.served["predict"])
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(frozen.graph.as_graph_def().SerializeToString())


def input_specs(data: DataConfig) -> dict[str, tf.TensorSpec]:
    """Returns the inputs of a graph that takes stored frames, or vectors, by name."""
    size = sum(data.feature_sizes)
    if not data.frame_level:
        return {"features": tf.TensorSpec([None, size], tf.float32, name="features")}
    return {
        "frames": tf.TensorSpec([None, None, size], data.frame_format.dtype, name="frames"),
        "num_frames": tf.TensorSpec([None], tf.int32, name="num_frames"),
    }


def _checked(inputs, data):
    frames, num_frames = inputs["frames"], inputs["num_frames"]
    size = sum(data.feature_sizes)
    shapes = [
        # TensorFlow does not check the static last axis at call time.
        tf.debugging.assert_equal(
            tf.size(frames),
            tf.reduce_prod(tf.shape(frames)[:2]) * size,
            f"frames must have {size} entries each",
        ),
        # The whole shape of num_frames, which may have too many axes.
        tf.debugging.assert_equal(
            tf.shape(frames)[:1],
            tf.shape(num_frames),
            "frames and num_frames must have the same number of videos",
        ),
    ]
    with tf.control_dependencies(shapes):
        num_frames = tf.identity(num_frames)
    numbers = [
        _assert_every_video(num_frames >= 1, "num_frames must be at least 1"),
        _assert_every_video(
            num_frames <= tf.shape(frames)[1], "num_frames must be at most the frames given"
        ),
    ]
    if not data.frame_format.quantization:
        numbers.append(_assert_finite(frames))
    with tf.control_dependencies(numbers):
        return {name: tf.identity(tensor) for name, tensor in inputs.items()}


def _checked_vectors(features):
    with tf.control_dependencies([_assert_finite(features)]):
        return tf.identity(features)


def _assert_finite(features):
    """Asserts that vectors `[B, D]` or frames `[B, T, D]` are finite."""
    axes = range(1, features.shape.rank)
    finite = tf.reduce_all(tf.math.is_finite(features), axis=list(axes))
    return _assert_every_video(finite, "features must be finite")


def _assert_every_video(holds, requirement):
    """Asserts a condition `[B]`; the error lists the places in the batch where it does not hold."""
    message = f"videos {{}} of the batch (counted from 0): {requirement}"
    return tf.debugging.Assert(
        tf.reduce_all(holds), [tf.strings.format(message, tf.where(~holds)[:, 0])]
    )


# --- Records --------------------------------------------------------------------------------------


def _parse_frames(records, data):
    """Returns ids and padded frames of SequenceExamples, equal to those of the readers."""
    video_ids, records, places = _checked_records(records)
    described = list(zip(data.feature_names, data.feature_sizes, data.storages, strict=True))
    dtype = data.frame_format.dtype
    _, sequences, lengths = tf.io.parse_sequence_example(
        records,
        sequence_features={
            name: tf.io.FixedLenSequenceFeature(
                *(([size], tf.float32) if storage.dtype == "float_list" else ([], tf.string))
            )
            for name, size, storage in described
        },
        example_names=places,
    )
    num_frames = tf.cast(lengths[data.feature_names[0]], tf.int32)
    features = []
    for name, size, storage in described:
        equal_numbers = _assert_every_video(
            tf.cast(lengths[name], tf.int32) == num_frames,
            f"all features of a video must have the same number of frames ({name} differs)",
        )
        with tf.control_dependencies([equal_numbers]):
            frames = tf.identity(sequences[name])
        if storage.dtype != "float_list":
            num_bytes = size * storage.type.itemsize
            right_size = _assert_every_video(
                _have_size(frames, lengths[name], num_bytes),
                f"every frame of {name} must have {num_bytes} bytes",
            )
            with tf.control_dependencies([right_size]):
                frames = tf.identity(frames)[:, : data.max_frames]
            frames = _decoded(frames, storage.type.name, num_bytes)
        frames = frames[:, : data.max_frames]
        if storage.type != dtype:
            frames = _to_float(frames, storage.quantization)
        features.append(frames)
    inputs = {
        "frames": tf.concat(features, axis=-1),
        "num_frames": tf.minimum(num_frames, data.max_frames),
    }
    return video_ids, inputs


def _have_size(strings, lengths, size):
    """Returns whether the frames of each video, strings `[B, T]`, have `size` bytes: bool `[B]`.

    Empty frames pad shorter videos.
    """
    real = tf.sequence_mask(lengths, tf.shape(strings)[1])
    return tf.reduce_all(tf.strings.length(strings) == tf.where(real, size, 0), axis=1)


def _decoded(strings, dtype, num_bytes):
    """Returns the numbers in strings of equal size; empty strings become 0."""
    if dtype != "float16":
        return tf.io.decode_raw(strings, dtype, fixed_length=num_bytes)
    # TensorFlow decodes no padded float16.
    return tf.bitcast(tf.io.decode_raw(strings, tf.uint16, fixed_length=num_bytes), tf.float16)


def _to_float(frames, quantization):
    """Returns the values of stored frames as float32."""
    frames = tf.cast(frames, tf.float32)
    if quantization is None:
        return frames
    return frames * tf.constant(quantization.step, tf.float32) + tf.constant(
        quantization.offset, tf.float32
    )


def _parse_vectors(records, data):
    """Returns ids and concatenated features of Examples, equal to those of the readers."""
    video_ids, records, places = _checked_records(records)
    # An Example has the wire format of a SequenceExample without sequences.
    parsed, _, _ = tf.io.parse_sequence_example(
        records,
        context_features={
            name: tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)
            for name in data.feature_names
        },
        example_names=places,
    )
    features = []
    for name, size in zip(data.feature_names, data.feature_sizes, strict=True):
        with tf.control_dependencies(
            [
                _assert_every_video(
                    parsed[name].row_lengths() == size, f"{name} must have {size} floats"
                )
            ]
        ):
            features.append(tf.reshape(parsed[name].values, [-1, size]))
    return video_ids, {"features": tf.concat(features, axis=-1)}


def _checked_records(records):
    """Checks serialized records before `tf.io.parse_sequence_example` reads strings from them.

    A string whose length is 2 GiB or more crashes that parser, with the whole process. The parser
    for one record, which `tf.raw_ops` has, checks lengths. Its error quotes the record up to the
    first zero byte, so the record's place is put in front, in a field that records do not have. The
    first parser explains other damage better, so it goes first, with no string to read.

    Returns:
        `(video_ids, records, places)`, string `[B]` each: the ids, the given records, and names for
        errors.
    """
    places = tf.strings.join(["video ", tf.strings.as_string(tf.range(tf.size(records)))])
    nothing = {"no such feature": tf.io.VarLenFeature(tf.int64)}
    parsed, _, _ = tf.io.parse_sequence_example(records, nothing, example_names=places)
    found = tf.size(parsed["no such feature"].values)
    # TensorFlow drops an operation whose output is not used.
    with tf.control_dependencies([tf.debugging.assert_equal(found, 0)]):
        checked = tf.identity(records)
    numbers = tf.strings.as_string(tf.range(tf.size(records)), width=10)
    # Field 7, of 32 bytes: b": ".
    fields = tf.strings.join([": video ", numbers, " of the batch\0\0\0"])
    video_ids = tf.map_fn(_video_id, (fields, checked, places), fn_output_signature=tf.string)
    with tf.control_dependencies([video_ids]):
        return video_ids, tf.identity(checked), places


def _video_id(field_record_and_place):
    """Returns the id of a record, a scalar; empty if there is none."""
    field, record, place = field_record_and_place
    video_id, older_id = tf.raw_ops.ParseSingleSequenceExample(
        serialized=tf.strings.join([field, record]),
        debug_name=place,
        context_dense_keys=["id", "video_id"],
        context_dense_defaults=["", ""],
        context_dense_shapes=[[], []],
        context_sparse_keys=[],
        feature_list_dense_keys=[],
        feature_list_sparse_keys=[],
        feature_list_dense_missing_assumed_empty=tf.constant([], tf.string),
    ).context_dense_values
    return tf.where(video_id != "", video_id, older_id)  # Older files call it video_id.


# --- Safety ---------------------------------------------------------------------------------------
#
# A TensorFlow graph can read and write files, call Python functions of its process and connect to
# other machines. An exported model needs none of that, so its operations are checked before it is
# loaded.

# Operations that only compute, from those that `keras.ops` and TensorFlow's math turn into.
_SAFE_OPS = frozenset(
    """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin
    AsString Asin Asinh Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp Atan
    Atan2 Atanh AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND
    BesselI0e BesselI1e Betainc BiasAdd Bincount Bitcast BitwiseAnd BitwiseOr BitwiseXor
    BroadcastArgs BroadcastTo Bucketize Case Cast Ceil CheckNumerics CheckNumericsV2 Cholesky
    ClipByValue Complex ComplexAbs Concat ConcatOffset ConcatV2 Conj ConjugateTranspose Const
    ControlTrigger Conv Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cos Cosh
    CropAndResize Cross Cumprod Cumsum CumulativeLogsumexp DecodePaddedRaw DecodeRaw
    DenseBincount DepthToSpace DepthwiseConv2dNative DestroyResourceOp Diag DiagPart Digamma
    Dilation2D DisableCopyOnRead Div DivNoNan Einsum Elu Empty EmptyTensorList EnsureShape Enter
    Equal Erf Erfc Erfinv EuclideanNorm Exit Exp ExpandDims Expm1 ExtractImagePatches FFT FFT2D
    FFT3D Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather
    GatherNd GatherV2 Greater GreaterEqual GuaranteeConst Histogram HistogramFixedWidth IFFT
    IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D Identity IdentityN If Igamma Igammac Imag InTopK
    InTopKV2 Invert InvertPermutation IsFinite IsInf IsNan IsotonicRegression L2Loss LRN
    LeakyRelu LeftShift Less LessEqual Lgamma LinSpace ListDiff Log Log1p LogMatrixDeterminant
    LogSoftmax LogicalAnd LogicalNot LogicalOr LoopCond LowerBound Lu MatMul MatrixBandPart
    MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2
    MatrixDiagV3 MatrixExponential MatrixInverse MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3
    MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Max MaxPool MaxPool3D
    MaxPoolV2 Maximum Mean Merge Min Minimum MirrorPad Mod Mul MulNoNan Multinomial Ndtri Neg
    NextAfter NextIteration NoOp NotEqual NthElement OneHot OnesLike Pack Pad PadV2
    ParallelConcat ParseExample ParseExampleV2 ParseSequenceExample ParseSequenceExampleV2
    ParseSingleSequenceExample
    PartitionedCall Placeholder PlaceholderV2 PlaceholderWithDefault Polygamma PopulationCount
    Pow PreventGradient Prod Qr RFFT RFFT2D RFFT3D RandomShuffle RandomStandardNormal
    RandomUniform RandomUniformInt Range Rank ReadVariableOp Real RealDiv Reciprocal
    RegexFullMatch RegexReplace Relu Relu6 Reshape ResizeArea ResizeBicubic ResizeBilinear
    ResizeNearestNeighbor ResourceGather ResourceGatherNd ResourceScatterAdd
    ResourceScatterUpdate Reverse ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt
    ScatterNd SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd
    SegmentProdV2 SegmentSum SegmentSumV2 Select SelectV2 SelfAdjointEig SelfAdjointEigV2 Selu
    Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Snapshot Softmax SoftmaxCrossEntropyWithLogits
    Softplus Softsign SpaceToBatchND SpaceToDepth SparseReorder SparseReshape
    SparseSoftmaxCrossEntropyWithLogits SparseTensorDenseMatMul SparseToDense Split SplitV Sqrt
    Square SquaredDifference Squeeze StatefulPartitionedCall StatelessCase StatelessIf
    StatelessMultinomial StatelessParameterizedTruncatedNormal StatelessRandomBinomial
    StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg
    StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomPoisson StatelessRandomUniform
    StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle
    StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessWhile StaticRegexFullMatch
    StaticRegexReplace StopGradient StridedSlice StridedSliceAssign StringFormat StringJoin
    StringLength StringLower StringStrip StringToNumber StringUpper Sub Substr Sum Svd Switch
    Tan Tanh TensorListConcat TensorListConcatLists TensorListConcatV2 TensorListElementShape
    TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack
    TensorListPushBack TensorListReserve TensorListResize TensorListScatter TensorListScatterV2
    TensorListSetItem TensorListSplit TensorListStack TensorScatterAdd TensorScatterMax
    TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile TopK
    TopKV2 Transpose TruncateDiv TruncateMod TruncatedNormal Unique UniqueV2 UniqueWithCounts
    UniqueWithCountsV2 Unpack UnravelIndex UnsortedSegmentMax UnsortedSegmentMin
    UnsortedSegmentProd UnsortedSegmentSum UpperBound VarHandleOp VarIsInitializedOp
    VariableShape Where While Xdivy Xlog1py Xlogy ZerosLike Zeta
    """.split()  # noqa: SIM905 (as a list it takes 250 lines)
)
# Further operations of the two functions in which TensorFlow saves and restores the variables of a
# SavedModel for other loaders, and the attributes of these functions.
_CHECKPOINT_OPS = _SAFE_OPS | {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}
_CHECKPOINT_FUNCTION_ATTRIBUTES = {
    "_construction_context",
    "_has_manual_control_dependencies",
    "_input_shapes",
}


def check_graph(export_dir: str) -> None:
    """Rejects SavedModels with unsafe ops.

    Checks every operation in the file, because `tf.saved_model.load` runs functions that are named
    in many places: initializers of resources, restore functions of objects, captured tensors.
    Operations that read and write checkpoints are allowed only in the two functions with which
    other loaders save and restore the variables, and only if nothing else names these functions.

    Raises:
        InputError: naming the operations, or another difference from export_model.py's files.
    """
    others = [name for name in ("saved_model.cpb", "saved_model.pbtxt") if _has(export_dir, name)]
    if others:
        _reject(export_dir, f"it has {comma_separated(others)}")
    saved = saved_model_pb2.SavedModel()
    try:
        with files.open_binary(os.path.join(export_dir, "saved_model.pb")) as file:
            saved.ParseFromString(file.read())
    except (OSError, DecodeError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot load {export_dir}: {error}") from error
    if len(saved.meta_graphs) != 1 or not saved.meta_graphs[0].HasField("object_graph_def"):
        _reject(export_dir, "it is a SavedModel of TensorFlow 1")
    (graph,) = saved.meta_graphs
    names = collections.Counter(
        function.signature.name for function in graph.graph_def.library.function
    )
    wrong = [name for name, count in names.items() if count > 1 or hasattr(tf.raw_ops, name)]
    if wrong:
        _reject(
            export_dir,
            f"it has functions with the name of an operation or of each other: "
            f"{comma_separated(sorted(wrong))}",
        )
    outside = [asset.filename for asset in graph.asset_file_def if not _is_name(asset.filename)]
    if outside:
        _reject(export_dir, f"it has assets outside its directory: {comma_separated(outside)}")
    unsafe = _unsafe_ops(graph)
    if unsafe:
        raise InputError(
            f"{export_dir} is rejected: its graph has operations that are not known to be safe: "
            f"{comma_separated(sorted(unsafe))}. Such a graph may read and write your files."
        )


def _reject(export_dir, reason):
    raise InputError(f"{export_dir} was not written by export_model.py: {reason}")


def _unsafe_ops(graph: Any) -> set[str]:
    checkpoint_functions = _checkpoint_functions(graph)
    unsafe = {node.op for node in graph.graph_def.node} - _SAFE_OPS
    for function in graph.graph_def.library.function:
        is_exempt = function.signature.name in checkpoint_functions
        allowed = _CHECKPOINT_OPS if is_exempt else _SAFE_OPS
        unsafe |= {node.op for node in function.node_def} - allowed
    return unsafe


def _checkpoint_functions(graph):
    """Returns the names of the functions that save and restore variables, unless they may run.

    Only the operations that `saver_def` names may call them. The rest of the file must not contain
    their names, wherever a loader may look for names of functions.
    """
    rest = type(graph)()
    rest.CopyFrom(graph)
    saver = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    callers = [node for node in rest.graph_def.node if node.name in saver]
    names = {node.attr["f"].func.name for node in callers} - {""}
    functions = [
        function
        for function in rest.graph_def.library.function
        if function.signature.name in names
        # Attributes can make TensorFlow replace another function by this one.
        and set(function.attr) <= _CHECKPOINT_FUNCTION_ATTRIBUTES
    ]
    names = {function.signature.name for function in functions}
    for node in callers:
        rest.graph_def.node.remove(node)
    for function in functions:
        rest.graph_def.library.function.remove(function)
    content = rest.SerializeToString()
    return {name for name in names if name.encode() not in content}


def _has(folder, name):
    return files.gfile.exists(os.path.join(folder, name))


def _is_name(text):
    return os.path.basename(text) == text and text not in ("", ".", "..")
