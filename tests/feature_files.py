"""Writes the features of clips as files of every kind that `feature_sources` reads."""

import io
import tarfile

import numpy as np
import tensorflow as tf

from sample_records import bytes_feature, float_feature, int64_feature, write_records


def random_clips(num_videos=5, sizes=(("rgb", 6), ("audio", 3)), seed=0):
    """Returns float32 `[T, D]` by feature name, by video id; T differs between videos."""
    rng = np.random.default_rng(seed)
    return {
        f"v{index}": {
            name: rng.normal(size=(2 + index % 4, size)).astype(np.float32) for name, size in sizes
        }
        for index in range(num_videos)
    }


def write_npy(folder, clips):
    for video_id, features in clips.items():
        for name, values in features.items():
            np.save(folder / f"{video_id}.{name}.npy", values)
    return str(folder)


def write_npz(folder, clips):
    for video_id, features in clips.items():
        np.savez(folder / f"{video_id}.npz", **features)
    return str(folder)


def npy_bytes(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def npz_bytes(features):
    buffer = io.BytesIO()
    np.savez(buffer, **features)
    return buffer.getvalue()


def write_members(path, members):
    """Writes a tar archive of contents by member name."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_tar(folder, clips):
    members = {
        f"{video_id}.{name}.npy": npy_bytes(values)
        for video_id, features in clips.items()
        for name, values in features.items()
    }
    return write_members(folder / "shard-000000.tar", members)


def write_tar_of_npz(folder, clips):
    members = {f"{video_id}.npz": npz_bytes(features) for video_id, features in clips.items()}
    return write_members(folder / "shard-000000.tar", members)


def write_hdf5(folder, clips):
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        for video_id, features in clips.items():
            for name, values in features.items():
                file[f"{video_id}/{name}"] = values
    return str(folder / "features.h5")


def write_table(path, columns, types=None, **options):
    """Writes columns as a Parquet file; `types` gives PyArrow types by column."""
    import pyarrow
    from pyarrow import parquet

    arrays = {
        name: pyarrow.array(values, (types or {}).get(name)) for name, values in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), path, **options)
    return str(path)


def names_of(clips):
    return list(next(iter(clips.values())))


def rows_of(clips):
    """Returns the columns of a table with a row per frame, without those of features."""
    counts = {video_id: len(next(iter(clips[video_id].values()))) for video_id in clips}
    return {
        "video_id": [video_id for video_id, count in counts.items() for _ in range(count)],
        "time": [float(frame) for count in counts.values() for frame in range(count)],
    }


def frames_of(clips, name):
    return [frame for features in clips.values() for frame in features[name]]


def write_videos_as_rows(folder, clips):
    import pyarrow

    columns = {"id": list(clips)}
    for name in names_of(clips):
        columns[name] = [features[name].tolist() for features in clips.values()]
    types = dict.fromkeys(names_of(clips), pyarrow.list_(pyarrow.list_(pyarrow.float32())))
    return write_table(folder / "a.parquet", columns, types, row_group_size=2)


def write_videos_as_rows_of_fixed_size(folder, clips):
    import pyarrow

    columns, types = {"id": list(clips)}, {}
    for name in names_of(clips):
        columns[name] = [features[name].tolist() for features in clips.values()]
        size = len(columns[name][0][0])
        types[name] = pyarrow.large_list(pyarrow.list_(pyarrow.float32(), size))
    return write_table(folder / "a.parquet", columns, types)


def write_frames_as_rows(folder, clips):
    import pyarrow

    columns = rows_of(clips)
    for name in names_of(clips):
        columns[name] = [frame.tolist() for frame in frames_of(clips, name)]
    types = dict.fromkeys(names_of(clips), pyarrow.list_(pyarrow.float32()))
    return write_table(folder / "a.parquet", columns, types, row_group_size=3)


def write_dimensions_as_columns(folder, clips):
    columns = rows_of(clips)
    for name in names_of(clips):
        for number, values in enumerate(np.array(frames_of(clips, name)).T):
            columns[f"{name}_{number}"] = values
    return write_table(folder / "a.parquet", columns)


def sequence_example(context, **lists):
    """Returns a serialized SequenceExample of features, and lists of features by name."""
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context),
        feature_lists=tf.train.FeatureLists(
            feature_list={
                name: tf.train.FeatureList(feature=features) for name, features in lists.items()
            }
        ),
    ).SerializeToString()


def write_float_records(folder, clips):
    records = [
        sequence_example(
            {"video_id": bytes_feature(video_id.encode())},
            **{name: list(map(float_feature, values)) for name, values in features.items()},
        )
        for video_id, features in clips.items()
    ]
    return write_records(folder / "a.tfrecord", records)


def write_messages(folder, clips):
    """Writes a file per video as MediaPipe does, with features of the names given."""
    for video_id, features in clips.items():
        lists = {name: list(map(float_feature, values)) for name, values in features.items()}
        times = [int64_feature([frame]) for frame in range(3)]
        context = {"clip/data_path": bytes_feature(b"video.mp4")}
        message = sequence_example(context, **lists, **{"RGB/feature/timestamp": times})
        (folder / f"{video_id}.pb").write_bytes(message)
    return str(folder)
