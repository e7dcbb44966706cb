"""Flags, --help and errors of the programs, and how a program starts."""

import dataclasses
import fcntl
import importlib
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

import program

import pytest
import tensorflow as tf
from absl import flags

import eval
import export_model
import inference
import model_info
import predict_beam
import programs
import registry
import train
from options import Options, option, options_of
from run_config import RunConfig
from utils import InputError

MAINS = [
    importlib.import_module(path.stem).main
    for path in sorted(programs.ROOT.glob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text()
]
REQUIRED = ("--model=MoeModel", "--train_data_pattern=data", "--train_dir=run")


def error_of(main, *arguments):
    with pytest.raises(InputError) as caught:
        program.parse_options(main, arguments)
    return str(caught.value)


# --- Flags ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Options):
    """One option of every type."""

    count: int = option(7, "A number.", group="data")
    rate: float = option(0.5, "A rate.", group="data")
    name: str = option("a", "A name.", group="model", choices=("a", "b"))
    path: str | None = option(None, "A path.", group="output")
    verbose: bool = option(True, "A switch.", group="logging")
    sizes: tuple[int, ...] = option((3, 4), "Sizes.", group="data")
    weights: tuple[float, ...] | None = option(None, "Weights.", group="data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeating(Options):
    pattern: str = option(help="Patterns.", group="data", required=True, repeats=True)


def main(options: Sample) -> Sample:
    return options


def test_flags_have_the_names_defaults_and_help_of_the_fields():
    flag_values = flags.FlagValues()
    program.define_flags(main, flag_values)
    fields = {field.name: field for field, _ in options_of(Sample)}
    assert set(flag_values) == set(fields)
    for name, field in fields.items():
        # absl puts the choices before the help.
        assert flag_values[name].help.removeprefix("<a|b>: ") == field.metadata["help"]
    assert program.call(main, []) == Sample()


def test_flags_are_parsed_into_the_types_of_the_fields():
    arguments = ("--count=1", "--rate=2", "--name=b", "--path=p", "--noverbose")
    found = program.call(main, [*arguments, "--sizes=5, 6", "--weights=1,0.5"])
    assert dataclasses.astuple(found) == (1, 2.0, "b", "p", False, (5, 6), (1.0, 0.5))
    assert type(found.rate) is float


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--count=x", "--count must be an integer. Received: 'x'"),
        ("--count=1.5", "--count must be an integer. Received: '1.5'"),
        ("--rate=x", "--rate must be a number. Received: 'x'"),
        ("--rate=nan", "--rate must be finite"),
        ("--name=c", "flag --name=c"),
        ("--sizes=3,x", "--sizes must be integers, for example 1024,128. Received: 3,x"),
        ("--sizes=3.5", "--sizes must be integers, for example 1024,128. Received: 3.5"),
        ("--weights=a", "--weights must be numbers, for example 2,1,1. Received: a"),
    ],
)
def test_values_that_cannot_be_parsed_are_rejected_by_name(argument, message):
    assert message in error_of(main, argument)


def test_options_of_several_classes_share_equal_flags():
    found = programs.options("model_info", "--model=MoeModel", "--num_classes=5")
    assert found["config"].num_classes == found["options"].num_classes == 5


def test_given_flags_of_the_model_become_its_hyperparameters():
    config = programs.options("train", *REQUIRED, "--moe_num_mixtures=3")["config"]
    assert config == RunConfig("MoeModel", hyperparameters={"moe_num_mixtures": 3})
    assert config.hyperparameters["moe_num_mixtures"] == 3


def test_a_program_learns_which_flags_are_given_even_if_equal_to_the_default(tmp_path):
    (tmp_path / "my.flags").write_text("--num_classes=3862\n--moe_num_mixtures=3\n")
    flags = (f"--flagfile={tmp_path / 'my.flags'}", "--nosync_batch_norm", "--feature_sizes=8,4")
    names = {"model", "train_data_pattern", "train_dir"}
    given = programs.options("train", *REQUIRED, *flags)["given"]
    assert given == names | {"num_classes", "sync_batch_norm", "feature_sizes"}


def test_a_flag_that_repeats_has_a_line_per_value():
    def main(options: Repeating) -> str:
        return options.pattern

    assert program.call(main, ["--pattern=a,b/*", "--pattern", "~/c"]) == (
        f"a,b/*\n{os.path.expanduser('~')}/c"
    )
    for arguments in ([], ["--pattern="]):
        with pytest.raises(InputError, match="--pattern must be given"):
            program.call(main, arguments)
    assert "The flag may be repeated" in program.help_text(main)


def test_a_paths_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = programs.options("eval", "--train_dir=~/run", "--eval_data_pattern=~/a*,~/b*,c~/d")
    assert options["options"].train_dir == "/home/me/run"
    assert options["options"].eval_data_pattern == "/home/me/a*,/home/me/b*,c~/d"
    options = programs.options("eval", "--train_dirs=~/a,b,~/c", "--eval_data_pattern=x")
    assert options["options"].train_dirs == ("/home/me/a", "b", "/home/me/c")


# --- Rejected flags ---


def test_an_unknown_flag_is_rejected_with_a_suggestion():
    assert error_of(train.main, "--modle=x") == (
        "unknown flag --modle. Did you mean --model? --help lists the flags."
    )
    assert error_of(train.main, "--xyzzy") == "unknown flag --xyzzy. --help lists the flags."
    assert "Did you mean --resume?" in error_of(inference.main, "--resum=true")


@pytest.mark.parametrize("name", program._REPLACED_FLAGS)
def test_a_flag_of_the_starter_code_is_rejected_with_its_replacement(name):
    for argument in (f"--{name}=1", f"--no{name}"):
        assert error_of(main, argument) == (
            f"--{name} has no meaning here. {program._REPLACED_FLAGS[name]}"
        )


def test_no_program_defines_a_replaced_flag():
    for main in MAINS:
        flag_values = flags.FlagValues()
        program.define_flags(main, flag_values)
        assert not program._REPLACED_FLAGS.keys() & set(flag_values)


@pytest.mark.parametrize("argument", ["--model=MoeModel", "--num_classes=4", "--gru_cells=3"])
def test_settings_of_a_run_are_rejected_where_its_directory_has_them(argument):
    name = argument.partition("=")[0]
    for main in (eval.main, inference.main, export_model.main, predict_beam.main):
        assert error_of(main, argument) == (
            f"unknown flag {name}. train.py takes it and saves it with the run; this program does "
            "not take it."
        )


def test_all_missing_flags_are_listed():
    assert error_of(train.main).startswith(
        "--model, --train_data_pattern, --train_dir must be given."
    )
    assert error_of(predict_beam.main, "--output_prefix=x").startswith(
        "--exported_model, --input_data_pattern must be given."
    )
    # An empty value, as from an unset shell variable, is missing too.
    assert error_of(train.main, *REQUIRED, "--train_dir=").startswith("--train_dir must be given.")


def test_positional_arguments_are_rejected():
    assert error_of(train.main, *REQUIRED, "data1", "data2") == (
        "unexpected argument: data1 and 1 more. Flags start with --; quote patterns, so that the "
        "shell does not expand them."
    )


def test_flags_of_a_model_need_a_model():
    message = error_of(model_info.main, "--all", "--gru_cells=3", "--iterations=5")
    assert message == "--gru_cells, --iterations needs --model."
    assert programs.options("model_info", "--all")["config"] is None


def test_flags_of_another_model_are_rejected():
    message = error_of(train.main, *REQUIRED, "--gru_cells=3")
    assert message.startswith("MoeModel does not take gru_cells. It takes: ")


# --- Environment variables ---


def test_environment_variables_set_options_that_are_not_given(monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "gs://bucket/run")
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", "")
    options = programs.options("train", *REQUIRED[:2])["options"]
    assert (options.train_dir, options.tensorboard_dir) == ("gs://bucket/run", None)
    assert programs.options("train", *REQUIRED)["options"].train_dir == "run"


def test_environment_variables_do_not_compete_with_alternatives(monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "run")
    data = "--eval_data_pattern=x"
    assert programs.options("eval", data)["options"].train_dir == "run"
    options = programs.options("eval", data, "--exported_model=model")["options"]
    assert (options.train_dir, options.exported_model) == (None, "model")


# --- Help ---


@pytest.fixture
def printed_help(monkeypatch, capsys):
    """Returns a function that parses a command line with --help and returns the output."""

    def print_help(main, *arguments):
        monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
        with pytest.raises(SystemExit) as caught:
            program._parse(main, ["train.py", *arguments])
        assert caught.value.code == 0
        output = capsys.readouterr()
        assert output.err == ""
        return output.out

    return print_help


def model_flags(text):
    """Returns the flags of models that a help text lists."""
    listed = {line.split("=")[0].split("]")[-1].strip(" -") for line in text.splitlines()}
    return listed & {
        name for model in registry.models() for name in registry.hyperparameters(model)
    }


@pytest.mark.parametrize("main", MAINS, ids=lambda main: main.__module__)
def test_help_lists_every_flag_once_under_its_group(printed_help, main):
    text = printed_help(main, "--help")
    lines = text.splitlines()
    for cls in program._option_classes(main).values():
        for field, _ in options_of(cls):
            (place,) = (
                number
                for number, line in enumerate(lines)
                if line.startswith((f"  --{field.name}=", f"  --[no]{field.name}"))
            )
            heading = next(line for line in reversed(lines[:place]) if line[:1] not in ("", " "))
            assert heading == f"{field.metadata['group'].capitalize()}:"
    assert max(map(len, lines)) <= 100


def test_help_starts_with_the_description_and_lists_required_flags_first(printed_help):
    text = printed_help(train.main, "-h")
    assert text.startswith("Trains a model on YouTube-8M records.\n")
    checkpoints = text.split("Checkpoints:\n")[1]
    assert checkpoints.startswith("  --train_dir=STR\n")
    assert "Required." in checkpoints[: checkpoints.index("\n  --")]
    assert "Default in a Vertex AI job: $AIP_CHECKPOINT_DIR." in " ".join(checkpoints.split())
    assert "Default in a Vertex AI job: $AIP_MODEL_DIR." in " ".join(
        printed_help(export_model.main, "--help").split()
    )


def test_help_lists_the_flags_of_the_given_model_only(printed_help, tmp_path):
    flagfile = tmp_path / "recipe.flags"
    flagfile.write_text("--model=MoeModel\n--num_epochs=3\n")
    expected = set(registry.hyperparameters("MoeModel"))
    for arguments in (
        ("--model=MoeModel", "--help"),
        ("--help", "--model", "MoeModel"),
        ("-h", "-model=MoeModel"),
        (f"--flagfile={flagfile}", "--helpfull"),
    ):
        text = printed_help(train.main, *arguments)
        assert model_flags(text) == expected
    for name, parameter in registry.hyperparameters("MoeModel").items():
        assert f"{name}=" in text or f"[no]{name}" in text
        assert f"Default: {str(parameter.default).lower()}." in text


def test_help_without_a_model_lists_the_models_but_none_of_their_flags(printed_help):
    text = printed_help(train.main, "--help")
    assert model_flags(text) == set()
    for name in registry.models():
        assert name in text


def test_help_with_an_unknown_model_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    with pytest.raises(SystemExit, match="error: unknown model 'MoeModle'"):
        program._parse(train.main, ["train.py", "--help", "--model=MoeModle"])
    assert capsys.readouterr().out == ""


def test_a_flag_file_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    with pytest.raises(SystemExit, match=r"error: .*no_such\.flags"):
        program._parse(train.main, ["train.py", "--flagfile=no_such.flags"])


# --- Processes ---

# Runs a program, then prints whether TensorFlow initialized its devices. After that, TensorFlow
# rejects the setting.
REPORTING = """
import runpy, sys
program = sys.argv[1]
sys.argv[:] = sys.argv[1:]
try:
    runpy.run_path(program, run_name="__main__")
finally:
    import tensorflow as tf
    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
        print("no devices")
    except RuntimeError:
        print("devices")
"""


def run_all(commands, **environment):
    """Runs several commands at once and returns (status, stdout, stderr) of each."""
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=programs.ROOT,
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


def wrapped_by_keras():
    try:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    except tf.errors.ResourceExhaustedError:
        raise TypeError("Exception encountered when calling Model.call()")  # noqa: B904


def raises(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (wrapped_by_keras, "error: not enough memory. A smaller model, --batch_size or "),
        (raises(MemoryError("no")), "error: not enough memory. "),
        (raises(FileNotFoundError("no file")), "error: no file"),
        (raises(FloatingPointError("not finite")), "error: not finite"),
    ],
)
def test_errors_that_are_no_bugs_end_a_program_in_one_line(monkeypatch, fail, message):
    def failing_main() -> None:
        fail()

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        program._run(failing_main, ["train.py"], ["tensorflow"])
    assert ended.value.code.startswith(f"train.py: {message}")
    assert "\n" not in ended.value.code


def test_bugs_keep_their_traceback():
    with pytest.raises(KeyError):
        program._run(raises(KeyError("bug")), ["train.py"], ["tensorflow"])


def test_a_mistyped_flag_fails_with_one_line_before_devices_are_initialized():
    ((status, output, errors),) = run_all([("-c", REPORTING, "train.py", "--modle=x")])
    message = "unknown flag --modle. Did you mean --model? --help lists the flags."
    assert (status, output, errors) == (1, "no devices\n", f"train.py: error: {message}\n")


@pytest.mark.slow
def test_bad_input_fails_with_one_line(tmp_path):
    given = ("train.py", f"--train_dir={tmp_path}", "--train_data_pattern=/no/such/file*")
    results = run_all([(*given, "--model=MoeModle"), (*given, "--model=MoeModel")])
    messages = ("unknown model 'MoeModle'. Registered models: ", "no file matches '/no/such/file*'")
    for (status, output, errors), message in zip(results, messages, strict=True):
        assert errors.startswith(f"train.py: error: {message}")
        assert errors.count("\n") == 1
        assert (status, output) == (1, "")


@pytest.mark.slow
def test_help_exits_with_0_and_prints_nothing_on_stderr():
    ((status, output, errors),) = run_all([("train.py", "--help")])
    assert (status, errors) == (0, "")
    assert output.startswith("Trains a model on YouTube-8M records.\n")


@pytest.mark.slow
def test_tensorflows_messages_are_shown_if_its_log_level_is_set():
    ((status, _, errors),) = run_all([("train.py", "--modle=x")], TF_CPP_MIN_LOG_LEVEL="0")
    *messages, error = errors.splitlines()
    assert messages
    assert error.startswith("train.py: error: unknown flag --modle.")
    assert status == 1


# Is interrupted while `program` imports Keras.
INTERRUPTED_IMPORT = """
import sys

class Importer:
    def find_spec(name, *_):
        if name == "keras":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Importer)
import program
"""


def test_ctrl_c_during_imports_ends_with_one_line():
    ((status, output, errors),) = run_all([("-c", INTERRUPTED_IMPORT)])
    assert (status, output, errors) == (-signal.SIGINT, "", "-c: interrupted\n")


# Cleans up and does not continue after SIGTERM.
TERMINATED = """
import os, signal, program, options

def main(options: options.Options) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        print("continues")
    finally:
        print("cleaned up")

program.end_on_sigterm()
program.run(main)
"""


def test_sigterm_ends_with_one_line_where_a_program_asks_for_it():
    ((status, output, errors),) = run_all([("-c", TERMINATED)])
    line = "-c: stopped by SIGTERM; repeat the command to continue\n"
    assert (status, output, errors) == (1, "cleaned up\n", line)


# Logs before and during a progress bar, and is then interrupted.
INTERRUPTED = """
import program
from absl import logging
import options

def main(options: options.Options) -> None:
    with program.Progress(3, "step") as progress:
        for number in range(3):
            logging.warning("before step %d", number)
            progress.advance()
    raise KeyboardInterrupt

program.run(main)
"""


@pytest.mark.slow
def test_log_lines_do_not_break_the_progress_bar_and_ctrl_c_ends_with_one_line():
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=programs.ROOT, stderr=terminal
    )
    assert process.wait(timeout=300) == -signal.SIGINT
    output = os.read(main, 2**16).decode()
    os.close(main)
    os.close(terminal)
    assert output.endswith("-c: interrupted\r\n")
    # Lines as the terminal shows them: a carriage return moves to the start of the line.
    lines = [line.rpartition("\r")[2] for line in output.replace("\r\n", "\n").split("\n")]
    logged = [line for line in lines if "before step" in line]
    assert [line[0] for line in logged] == ["W"] * 3
    assert output.index("before step 0") < output.index("0%")
    assert any(line.startswith("100%") for line in lines)
