"""Predicts the labels of videos on a cluster, by Apache Beam.

    python predict_beam.py --exported_model=exported --input_data_pattern='data/test*.tfrecord' \
        --output_prefix=predictions/test --beam_options="--runner=FnApiRunner \
        --direct_num_workers=2 --direct_running_mode=multi_processing"

It needs requirements-beam.txt. The lines are those of inference.py, in files
OUTPUT_PREFIX-00000-of-00005.csv with a header each, in any order. They appear only if no more than
--skip_corrupt_records records are damaged in all. --beam_options names the cluster and everything
else that Beam's runners take.
"""

import os
import shlex

from absl import flags, logging

import files
import predictor as predictors
import program
from utils import InputError


def define_flags(flag_values):
    """Defines the flags of this program."""
    program.define_flags(
        flag_values,
        *("input_data_pattern", "batch_size", "num_readers", "skip_corrupt_records", "top_k"),
    )
    own = {"flag_values": flag_values}
    flags.DEFINE_string("exported_model", None, "Directory written by export_model.py.", **own)
    flags.DEFINE_string(
        "output_prefix",
        None,
        "Beginning of the paths of the CSV files to write; -00000-of-00005.csv and so on follow.",
        **own,
    )
    flags.DEFINE_string(
        "beam_options",
        "--runner=FnApiRunner",
        "Options of Apache Beam, in one string: its --runner, and what that takes. FnApiRunner is "
        "the part of Beam's DirectRunner that needs no download.",
        **own,
    )


def check_new_output(output_prefix):
    """Refuses a prefix that files cannot be written under, or were written under before.

    Raises:
        InputError: naming the file in the way.
    """
    files.check_writable(f"{output_prefix}.csv")
    found = files.gfile.glob(f"{output_prefix}-*-of-*.csv")
    if found:
        raise InputError(
            f"{found[0]} exists already, and would stand beside the new files. Remove it, or "
            "choose another --output_prefix."
        )


def main(flag_values):
    """Runs the program."""
    try:
        import beam_pipeline
    except ModuleNotFoundError as error:
        raise InputError(f"{error}: pip install -r requirements-beam.txt") from error
    program.require_flags(flag_values, "exported_model", "input_data_pattern", "output_prefix")
    program.require_positive(flag_values, "batch_size", "num_readers", "top_k")
    program.require_not_negative(flag_values, "skip_corrupt_records")
    _, data = predictors.read_manifest(flag_values.exported_model)
    paths = files.expand_patterns(flag_values.input_data_pattern)
    check_new_output(flag_values.output_prefix)
    # Workers on this machine find the project's modules from any directory.
    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    num_videos, num_damaged = beam_pipeline.run(
        paths,
        beam_pipeline.ReadBatches(
            data,
            flag_values.batch_size,
            flag_values.num_readers,
            flag_values.skip_corrupt_records,
        ),
        beam_pipeline.ExportedModelHandler(flag_values.exported_model, flag_values.top_k),
        flag_values.output_prefix,
        allowed_damage=flag_values.skip_corrupt_records,
        options=shlex.split(flag_values.beam_options),
    )
    logging.info(
        "%d videos predicted, %d damaged records skipped: %s-*.csv",
        num_videos,
        num_damaged,
        flag_values.output_prefix,
    )


if __name__ == "__main__":
    program.run(main, define_flags)
