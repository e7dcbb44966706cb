"""The class names of a data set travel with its runs and with exported models."""

import csv
import pathlib
import shutil

import pytest

import programs
from dataset_info import DatasetInfo, Feature
from utils import InputError

NAMES = [f"class {label}, of 10" for label in range(10)]


def write_names(path, names=NAMES):
    """Writes a vocabulary with a column that names do not need."""
    rows = [(label, f"note {label}", name) for label, name in enumerate(names)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("Index", "Note", "Name"), *rows])
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, video_data):
    """Returns a glob of video-level files with a dataset.json that names a vocabulary."""
    folder = tmp_path_factory.mktemp("named") / "data"
    shutil.copytree(pathlib.Path(video_data).parent, folder)
    sizes = {"mean_rgb": 8, "mean_audio": 4}
    features = [Feature(name=name, size=size, dtype="float32") for name, size in sizes.items()]
    info = {"level": "video", "features": features, "num_classes": 10}
    DatasetInfo(**info, vocabulary="names/words.csv").save(str(folder))
    (folder / "names").mkdir()
    write_names(folder / "names" / "words.csv")
    return f"{folder}/part*.tfrecord"


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """Returns the train directory of a run on these files."""
    return train(tmp_path_factory.mktemp("named_run") / "run", data)


def train(train_dir, data, *flags):
    model = ("--model=LogisticModel", "--batch_size=16", "--max_steps=2", *flags)
    return programs.train(train_dir, data, *model)


def names_in_predictions(tmp_path, data, *model):
    """Returns the names that inference.py and eval.py write without being told of any."""
    predictions, classes = tmp_path / "p.csv", tmp_path / "classes.csv"
    given = (*model, f"--input_data_pattern={data}", f"--output_file={predictions}")
    programs.run("inference", *given, "--output_format=csv")
    programs.evaluate(*model, f"--eval_data_pattern={data}", f"--per_class_csv={classes}")
    found = []
    for path in (predictions, classes):
        with open(path, newline="") as file:
            found.append({int(row["class"]): row.get("name") for row in csv.DictReader(file)})
    assert found[0] == found[1]
    return [found[0][label] for label in range(10)]


def test_names_travel_from_the_data_to_every_output(run, data, tmp_path):
    source = pathlib.Path(data).parent / "names" / "words.csv"
    assert (run / "vocabulary.csv").read_bytes() == source.read_bytes()
    assert names_in_predictions(tmp_path, data, f"--train_dir={run}") == NAMES
    averaged, exported = tmp_path / "averaged", tmp_path / "exported"
    programs.run("average_checkpoints", f"--train_dir={run}", f"--output_dir={averaged}")
    programs.run("export_model", f"--train_dir={averaged}", f"--output_dir={exported}")
    for model in (f"--train_dirs={averaged},{run}", f"--exported_model={exported}"):
        assert names_in_predictions(tmp_path, data, model) == NAMES


def test_a_flag_names_the_classes_of_data_without_a_description(tmp_path, video_data):
    names = write_names(tmp_path / "words.csv")
    bare = programs.train_logistic(tmp_path / "bare", video_data, "--max_steps=1")
    assert not (bare / "vocabulary.csv").exists()
    named = ("--max_steps=2", f"--class_names={names}")
    programs.train_logistic(bare, video_data, *named)  # A resumed run gets the names.
    assert (bare / "vocabulary.csv").read_bytes() == names.read_bytes()
    (tmp_path / "wrong.csv").write_text("Index,Name\n10,ten\n")
    wrong = f"--class_names={tmp_path}/wrong.csv"
    with pytest.raises(InputError, match=r"row 2 of .*: Index must be a class of the model, 0"):
        programs.train_logistic(tmp_path / "run", video_data, wrong)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_only_with_the_same_names(run, data, tmp_path, video_data):
    copy = shutil.copytree(run, tmp_path / "run")
    other = write_names(tmp_path / "other.csv", [*NAMES[:9], "dog"])
    message = (
        rf"{copy}/vocabulary\.csv and {other} name 1 classes differently, such as class 9: "
        r"'class 9, of 10' and 'dog'\. If only names have been corrected, replace"
    )
    with pytest.raises(InputError, match=message):
        train(copy, data, f"--class_names={other}")
    # Only the names count, and without any nothing contradicts the run.
    same = tmp_path / "same.csv"
    same.write_text("Name,Index\n" + "".join(f'"{name}",{i}\n' for i, name in enumerate(NAMES)))
    train(copy, data, f"--class_names={same}")
    train(copy, video_data, *programs.SMALL_DATA)
    assert (copy / "vocabulary.csv").read_bytes() == (run / "vocabulary.csv").read_bytes()


def test_starting_over_removes_the_names_but_never_the_given_ones(run, tmp_path, video_data):
    copy = shutil.copytree(run, tmp_path / "run")
    own = f"--class_names={copy}/vocabulary.csv"
    with pytest.raises(InputError, match=r"run/vocabulary\.csv would replace an input file"):
        programs.train_logistic(copy, video_data, own, "--start_new_model")
    assert (copy / "vocabulary.csv").exists()
    programs.train_logistic(copy, video_data, "--start_new_model", "--max_steps=1")
    assert not (copy / "vocabulary.csv").exists()


def test_models_with_different_names_make_no_ensemble(run, data, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    names = write_names(other / "vocabulary.csv", [*NAMES[:3], "cat", *NAMES[4:]])
    runs = f"--train_dirs={run},{other}"
    message = (
        rf"{run}/vocabulary\.csv and {names} name 1 classes differently, such as class 3: .* and "
        r"'cat'\. Models of an ensemble must have the same classes"
    )
    with pytest.raises(InputError, match=message):
        programs.run("eval", runs, f"--eval_data_pattern={data}", "--run_once")
    with pytest.raises(InputError, match=message):
        programs.run("export_model", runs, f"--output_dir={tmp_path}/exported")
    names.unlink()  # A run without names contradicts nothing.
    assert names_in_predictions(tmp_path, data, f"--train_dirs={other},{run}") == NAMES


def test_a_vocabulary_that_is_missing_is_an_error(data, tmp_path):
    folder = shutil.copytree(pathlib.Path(data).parent, tmp_path / "data")
    (folder / "names" / "words.csv").unlink()
    message = r"dataset\.json names the vocabulary .*data/names/words\.csv, which is not there"
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", f"{folder}/part*")
    names = write_names(tmp_path / "words.csv")
    assert (train(tmp_path / "run", f"{folder}/part*", f"--class_names={names}")).exists()


def test_directories_with_different_names_are_not_one_data_set(data, tmp_path):
    folder = shutil.copytree(pathlib.Path(data).parent, tmp_path / "data")
    write_names(folder / "names" / "words.csv", NAMES[::-1])
    with pytest.raises(
        InputError, match=r"name 10 classes differently.* Use records of one data set"
    ):
        train(tmp_path / "run", f"{data},{folder}/part*")
