"""Files of embeddings: an array next to a list of ids, or a Parquet file.

They are joined from parts that can be resumed, as files of predictions are. A line of a part is a
JSON object with the id of a video and the bytes of its float32 vector in Base64.
"""

import base64
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

import files
from prediction_file import FileFormat, read_json_lines, write_parquet
from utils import InputError

# Vectors that are converted to Parquet at a time; they make one row group.
_ROWS_PER_GROUP = 2048


def ids_path(output_file: str) -> str:
    """Returns the path of the ids next to an array: `vectors.ids.txt` next to `vectors.npy`."""
    return f"{output_file.removesuffix('.npy')}.ids.txt"


def format_lines(video_ids: Sequence[str], embeddings: np.ndarray) -> str:
    """Returns the lines of videos as one str.

    Args:
        video_ids: B ids.
        embeddings: float32 `[B, E]`.
    """
    return "".join(
        json.dumps({"id": video_id, "embedding": base64.b64encode(vector.tobytes()).decode()})
        + "\n"
        for video_id, vector in zip(video_ids, embeddings.astype("<f4"), strict=True)
    )


def _lines_of_text_ids(video_ids, embeddings):
    """Formats lines for a file in which each id is a line.

    Raises:
        InputError: naming an id that has a line break.
    """
    for video_id in video_ids:
        if "\n" in video_id or "\r" in video_id:
            raise InputError(
                f"the id {video_id!r} has a line break, so it cannot be a line of the list of ids. "
                "Choose --output_format=parquet."
            )
    return format_lines(video_ids, embeddings)


def _rows(parts: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields the ids in parts with the bytes of their vectors."""
    for row in read_json_lines(parts):
        yield row["id"], base64.b64decode(row["embedding"])


def _join_npy(parts, output_file):
    """Writes the ids before the array appears, so that an array always has its ids."""
    num_videos = sum(1 for _ in read_json_lines(parts))
    with files.atomic_path(output_file) as partial:
        with files.open_binary(partial, "wb") as array:
            for number, (_, vector) in enumerate(_rows(parts)):
                if number == 0:
                    shape = (num_videos, len(vector) // 4)
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(array, header)
                array.write(vector)
        if files.gfile.exists(output_file):
            files.remove(output_file)
        with files.atomic_write(ids_path(output_file)) as ids:
            ids.writelines(f"{row['id']}\n" for row in read_json_lines(parts))


def _join_parquet(parts, output_file):
    write_parquet(_tables(parts), output_file)


def _tables(parts):
    """Yields tables with the columns `id` and `embedding`, a list of float32."""
    import pyarrow

    rows = _rows(parts)
    while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
        ids, vectors = zip(*group, strict=True)
        values = pyarrow.array(np.frombuffer(b"".join(vectors), "<f4"))
        lists = pyarrow.FixedSizeListArray.from_arrays(values, len(values) // len(ids))
        yield pyarrow.table({"id": pyarrow.array(ids, pyarrow.string()), "embedding": lists})


# `lines` takes ids and embeddings.
FORMATS = {
    "npy": FileFormat("npy", ".npy", ".jsonl", _lines_of_text_ids, _join_npy),
    "parquet": FileFormat("parquet", ".parquet", ".jsonl", format_lines, _join_parquet),
}
