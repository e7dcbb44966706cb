r"""Predicts the labels of videos on a cluster with Apache Beam.

    python predict_beam.py --exported_model=exported --input_data_pattern='data/test*.tfrecord' \
        --output_prefix=predictions/test --beam_options="--runner=FnApiRunner \
        --direct_num_workers=2 --direct_running_mode=multi_processing"

Needs Apache Beam (pip install '.[beam]'). The lines are those of inference.py, in any order, in
files OUTPUT_PREFIX-00000-of-00005.csv with a header each. They appear only if the total number of
corrupt records is at most --skip_corrupt_records. --beam_options selects the cluster and takes
every other option of Beam's runners.
"""

import dataclasses
import os
import shlex

import program

from absl import logging

import files
from options import option, same_option
from predictor import PredictorOptions, read_manifest
from run_config import ReadOptions
from utils import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamOptions(ReadOptions):
    """Options of this program."""

    exported_model: str = option(
        help="Directory written by export_model.py.", group="model", required=True
    )
    input_data_pattern: str = option(
        help="Globs of records to predict, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    output_prefix: str = option(
        help="Start of the paths of the CSV files to write; -00000-of-00005.csv and so on follow.",
        group="output",
        required=True,
    )
    beam_options: str = option(
        "--runner=FnApiRunner",
        "Options of Apache Beam, in one string: the --runner and its options. FnApiRunner "
        "is the part of Beam's DirectRunner that needs no download.",
        group="devices",
    )
    verify_digest: bool = same_option(PredictorOptions, "verify_digest")
    batch_size: int = same_option(PredictorOptions, "batch_size")
    top_k: int = same_option(PredictorOptions, "top_k")


def check_new_output(output_prefix: str) -> None:
    """Rejects a prefix under which files exist or cannot be written.

    Raises:
        InputError: naming the file in the way.
    """
    files.check_writable(f"{output_prefix}.csv")
    found = files.gfile.glob(f"{output_prefix}-*-of-*.csv")
    if found:
        raise InputError(
            f"{found[0]} exists already and would be mixed with the new files. Remove it, or "
            "choose another --output_prefix."
        )


def main(options: BeamOptions) -> None:
    """Runs the program."""
    try:
        import beam_pipeline
    except ModuleNotFoundError as error:
        raise InputError(f"{error}. Run: pip install '.[beam]'") from error
    _, data = read_manifest(options.exported_model, verify_digest=options.verify_digest)
    paths = files.expand_patterns(options.input_data_pattern)
    check_new_output(options.output_prefix)
    # Workers on this machine find the project's modules from any directory.
    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    logging.info("predicting the videos of %d files: %s", len(paths), options.beam_options)
    num_videos, num_corrupt = beam_pipeline.run(
        paths,
        beam_pipeline.ReadBatches(data, paths, options.batch_size, options),
        beam_pipeline.ExportedModelHandler(options.exported_model, options.top_k),
        options.output_prefix,
        max_corrupt=options.skip_corrupt_records,
        options=shlex.split(options.beam_options),
    )
    logging.info(
        "%d videos predicted, %d corrupt records skipped: %s-*.csv",
        num_videos,
        num_corrupt,
        options.output_prefix,
    )


if __name__ == "__main__":
    program.run(main)
