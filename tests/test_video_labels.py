"""Labels, splits and classes of videos."""

import csv
import itertools

import numpy as np
import pandas as pd
import pytest

import vocabulary
from own_data import record_plan, video_labels
from own_data.clips import Clip
from own_data.video_labels import LabelOptions, Labels
from utils import InputError


def write_csv(path, text):
    path.write_text(text)
    return str(path)


def read(path, **options):
    found = video_labels.read_labels(LabelOptions(labels_file=str(path), **options))
    return {name: labels.names for name, labels in found.items()}


# --- The file -------------------------------------------------------------------------------------


def test_labels_are_read_from_one_column_with_separators_and_from_several_rows(tmp_path):
    path = write_csv(
        tmp_path / "labels.csv",
        '\ufeffid,label\na,cat; dog\nb,\nc,"hot dog, eaten"\n\nc,cat\nc,cat;NA\n',
    )
    expected = {"a": ["cat", "dog"], "b": [], "c": ["hot dog, eaten", "cat", "NA"]}
    assert read(path) == expected


def test_columns_and_separator_are_options(tmp_path):
    path = write_csv(tmp_path / "l.csv", "nr,who,genre,mood,file\n1,me,a|b,c,x\n2,me,b,,y\n")
    columns = {"id_column": "file", "label_columns": ("genre", "mood"), "label_separator": "|"}
    assert read(path, **columns) == {"x": ["a", "b", "c"], "y": ["b"]}


def test_the_column_labels_is_preferred_to_others(tmp_path):
    path = write_csv(tmp_path / "l.csv", "id,title,labels\na,A film,3\n")
    assert read(path) == {"a": ["3"]}


@pytest.mark.parametrize("name", ["l.tsv", "l.csv"])
def test_tab_separated_values_are_read(tmp_path, name):
    path = write_csv(tmp_path / name, "id\tlabel\na\tred, green\n")
    assert read(path) == {"a": ["red, green"]}


def test_semicolons_may_separate_cells(tmp_path):
    path = write_csv(tmp_path / "l.csv", '\n"id";"label"\na;"cat;dog"\nb;bird, small\n')
    assert read(path) == {"a": ["cat", "dog"], "b": ["bird, small"]}
    path = write_csv(tmp_path / "l.csv", "id;label\na;cat;dog\n")
    with pytest.raises(InputError, match="3 cells instead of 2, separated by ';' as in the header"):
        read(path)


@pytest.mark.parametrize(
    ("cells", "separator", "other"),
    [
        (["dog, barking|cat", "cat|bird", "bird"], ";", "|"),
        (["cat,dog", "cat", "dog"], ";", ","),
        (["cat;dog", "cat"], "|", ";"),
        (["cat|dog"] * 30 + ["cat;dog"], ";", "|"),
    ],
)
def test_another_usual_separator_in_many_cells_is_reported(
    tmp_path, caplog, cells, separator, other
):
    rows = "".join(f'v{number},"{cell}"\n' for number, cell in enumerate(cells))
    path = write_csv(tmp_path / "l.csv", f"id,label\n{rows}")
    read(path, label_separator=separator)
    count = sum(other in cell for cell in cells)
    assert f"{other!r} is in {count} of {len(cells)} cells with labels" in caplog.text
    assert f"give --label_separator='{other}'" in caplog.text
    caplog.clear()
    read(path, label_separator=other)
    assert not caplog.text


@pytest.mark.parametrize("cells", [["hot dog, eaten;cat", "cat;dog"], ["cat"] * 10 + ["a|b"], [""]])
def test_a_separator_that_fits_is_not_questioned(tmp_path, caplog, cells):
    rows = "".join(f'v{number},"{cell}"\n' for number, cell in enumerate(cells))
    read(write_csv(tmp_path / "l.csv", f"id,label\n{rows}"))
    assert not caplog.text


@pytest.mark.parametrize("first", ["a,cat", "videos/a.mp4,cat", "cat,a"])
def test_a_file_without_a_header_is_refused(tmp_path, first):
    path = write_csv(tmp_path / "labels.csv", f"{first}\nb,dog\n")
    options = LabelOptions(labels_file=path)
    with pytest.raises(InputError, match=r"the first line of .*labels\.csv is no header: '.*a.*'"):
        video_labels.read_labels(options, ["a", "b"])


def test_a_named_index_of_parquet_is_a_column(tmp_path):
    pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")
    table = pd.DataFrame({"labels": ["x;y", "z"], "video": ["a", "b"]})
    table.set_index("video").to_parquet(tmp_path / "l.parquet")
    assert read(tmp_path / "l.parquet") == {"a": ["x", "y"], "b": ["z"]}
    table.to_parquet(tmp_path / "plain.parquet")
    assert read(tmp_path / "plain.parquet", id_column="video") == {"a": ["x", "y"], "b": ["z"]}


def test_parquet_cells_may_be_lists_numbers_or_texts(tmp_path):
    path = tmp_path / "l.parquet"
    table = {
        "id": [7, 8, 9],
        "topics": [["a", "b;c"], [], None],
        "number": [1.0, np.nan, 3.0],
        "text": ["x;y", None, "z"],
    }
    pd.DataFrame(table).to_parquet(path)
    found = read(path, label_columns=("topics", "number", "text"))
    assert found == {"7": ["a", "b;c", "1.0", "x", "y"], "8": [], "9": ["3.0", "z"]}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("id,label\na,1\n", {"id_column": "video"}, "no column 'video'. It has: 'id', 'label'"),
        ("id,label\na,1\n", {"label_columns": ("x", "label")}, "no column 'x'"),
        ("id,label\na,1\n", {"split_column": "split"}, "no column 'split'"),
        ("id,genre,mood\na,1,2\n", {}, "Name the columns with labels: --label_columns"),
        ("id\na\n", {}, "0 columns in addition to the ids in 'id'"),
        ("id,label\na,1\nb,big, red\n", {}, "data row 2: it has 3 cells instead of 2"),
        ("id,label\n,1\n", {}, "data row 1: the column 'id' has no id"),
        ("", {}, "cannot read .* Expected: CSV in UTF-8 with a header line"),
        ('id,label\na,"x\n', {}, "cannot read"),
        ("id,label,s\na,1,train\na,2,test\n", {"split_column": "s"}, "'a' belongs to test, but to"),
        ("id,label,s\na,1,\n", {"split_column": "s"}, "the split must be a word .* Received: ''"),
        ("id,label,s\na,1,0.5\n", {"split_column": "s"}, "the split must be a word"),
    ],
)
def test_a_file_that_is_not_usable_is_refused(tmp_path, text, options, message):
    path = write_csv(tmp_path / "labels.csv", text)
    with pytest.raises(InputError, match=message):
        read(path, **options)


@pytest.mark.parametrize("name", ["missing.csv", "broken.parquet", "latin.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "broken.parquet").write_text("id,label")
    (tmp_path / "latin.csv").write_bytes("id,label\na,caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_column": "id"}, "--id_column needs --labels_file"),
        ({"labels_file": "x", "label_separator": ""}, "--label_separator must be text"),
        (
            {"labels_file": "x", "split_column": "s", "eval_fraction": 0.2},
            "--split_column and --eval_fraction contradict each other",
        ),
        ({"eval_fraction": 0.5, "test_fraction": 0.5}, "must leave videos for training"),
        ({"eval_fraction": 1.0}, "--eval_fraction must be below 1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LabelOptions(**options)


# --- The videos -----------------------------------------------------------------------------------

OPTIONS = LabelOptions(labels_file="labels.csv")


def names(*found):
    return {name: Labels(["x"]) for name in found}


def test_an_id_may_be_a_path_whose_folder_and_ending_do_not_count():
    found = video_labels.match(names("a", "videos/b.mp4", "c.d"), ["a", "b", "c.d"], OPTIONS)
    assert list(found) == ["a", "b", "c.d"]


def test_an_id_that_is_written_exactly_is_not_shortened():
    found = video_labels.match(
        {"v1.5": Labels(["x"]), "v1": Labels(["y"])}, ["v1", "v1.5"], OPTIONS
    )
    assert found == {"v1": Labels(["y"]), "v1.5": Labels(["x"])}


def test_two_ids_of_one_video_are_refused():
    with pytest.raises(InputError, match=r"'a/x.mp4' and 'b/x.mp4' both match the video 'x'"):
        video_labels.match(names("a/x.mp4", "b/x.mp4"), ["x"], OPTIONS)


def test_videos_without_labels_are_counted_named_and_left_out(caplog):
    ids = ["a", "b", *(f"v{number}" for number in range(20))]
    labels = {**names("a"), "b": Labels([])}
    assert list(video_labels.match(labels, ids, OPTIONS)) == ["a"]
    assert "21 videos ('b', 'v0', 'v1'" in caplog.text
    assert "'v8', ...) without labels left out: --keep_unlabeled also writes" in caplog.text
    assert "v9" not in caplog.text


def test_videos_without_labels_are_kept_on_request(caplog):
    options = LabelOptions(labels_file="labels.csv", keep_unlabeled=True)
    found = video_labels.match(names("a"), ["b", "a"], options)
    assert found == {"b": Labels([]), "a": Labels(["x"])}
    assert not caplog.text


def test_ids_without_features_are_counted_and_named(caplog):
    assert list(video_labels.match(names("a", "b", "c"), ["b"], OPTIONS)) == ["b"]
    assert "labels.csv has 2 videos ('a', 'c') without features" in caplog.text


def test_ids_of_which_none_matches_are_refused():
    message = "Ids in the file are 'a'; ids of videos are 'b', 'c'. Choose the column .* header"
    with pytest.raises(InputError, match=message):
        video_labels.match(names("a"), ["b", "c"], OPTIONS)


def test_ids_that_lost_their_leading_zeros_are_recognized(caplog):
    message = r"may have lost leading zeros, such as '7' of '0007': write them as text\. Choose"
    with pytest.raises(InputError, match=message):
        video_labels.match(names("x", "7"), ["0007", "0012"], OPTIONS)
    video_labels.match(names("12.mp4", "2000"), ["0012", "2000"], OPTIONS)
    assert "without features. Ids in the file may have lost leading zeros" in caplog.text


def test_videos_of_which_none_has_a_label_are_refused():
    with pytest.raises(InputError, match=r"labels\.csv: none of 2 videos has a label\. Check"):
        video_labels.match({"a": Labels([])}, ["a", "b"], OPTIONS)
    with pytest.raises(InputError, match=r"has a label\. Give --labels_file; .*--keep_unlabeled"):
        video_labels.match({"a": Labels([])}, ["a"], LabelOptions())


def test_a_kept_video_must_have_a_split():
    options = LabelOptions(labels_file="labels.csv", split_column="split", keep_unlabeled=True)
    with pytest.raises(InputError, match=r"assigns 1 video \('b'\) to no split"):
        video_labels.match({"a": Labels(["x"], "train")}, ["a", "b"], options)


def test_labels_of_a_clip_are_texts():
    clip = Clip("v", {}, "file", [3, "cat", b"dog".decode(), 3])
    assert video_labels.labels_of(clip) == Labels(["3", "cat", "dog"])
    assert video_labels.labels_of(Clip("v", {}, "file")) == Labels([])


# --- Splits ---------------------------------------------------------------------------------------

MANY = [f"video{number}" for number in range(5000)]


def test_splits_by_hash_have_about_the_given_fractions():
    found = [record_plan.split_of(name, (0.1, 0.2)) for name in MANY]
    assert found.count("validate") == pytest.approx(500, abs=70)
    assert found.count("test") == pytest.approx(1000, abs=100)


def test_other_fractions_move_only_the_videos_in_between():
    def split(fractions):
        return {name: record_plan.split_of(name, fractions) for name in MANY}

    few, more = split((0.1, 0.1)), split((0.2, 0.1))
    moved = {(few[name], more[name]) for name in MANY if few[name] != more[name]}
    assert moved == {("train", "validate")}


def test_the_split_of_an_id_never_changes():
    expected = {"a": "train", "video3": "validate", "video13": "validate"}
    assert {name: record_plan.split_of(name, (0.1, 0)) for name in expected} == expected


def test_numbers_of_two_purposes_are_independent():
    pairs = [[record_plan.hash_number(name, p) for p in ("split", "order")] for name in MANY]
    assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("written", "split"),
    [("train", "train"), ("Training", "train"), ("val", "validate"), ("holdout", "holdout")],
)
def test_usual_names_of_splits_are_understood(tmp_path, written, split):
    path = write_csv(tmp_path / "l.csv", f"id,label,part\na,1,{written}\n")
    options = LabelOptions(labels_file=path, split_column="part")
    assert video_labels.read_labels(options)["a"].split == split


# --- Classes --------------------------------------------------------------------------------------


def test_names_become_classes_by_frequency_and_then_by_name():
    found = vocabulary.classes([["b", "c"], ["a"], ["c"], []])
    assert found.names == {0: "c", 1: "a", 2: "b"}
    assert found.numbers == {"c": 0, "a": 1, "b": 2}
    assert found.num_classes == 3


def test_the_classes_do_not_depend_on_the_order_of_the_videos():
    videos = [["b"], ["a"], ["c", "b"]]
    found = [vocabulary.classes(order).numbers for order in itertools.permutations(videos)]
    assert all(numbers == {"b": 0, "a": 1, "c": 2} for numbers in found)


def test_names_that_differ_only_in_case_or_spaces_are_reported(caplog):
    assert vocabulary.classes([["Cat", "hot  dog", "bird"], ["cat"], ["hot dog"]]).num_classes == 5
    assert "become different classes: 'Cat' and 'cat', 'hot  dog' and 'hot dog'" in caplog.text
    caplog.clear()
    vocabulary.classes([["cat", "dog"]])
    assert not caplog.text


def test_numbers_stay_numbers():
    found = vocabulary.classes([["3"], ["0", "1.0"]])
    assert found.numbers == {"3": 3, "0": 0, "1.0": 1}
    assert found.names == {0: "0", 1: "1", 2: "2", 3: "3"}


@pytest.mark.parametrize("labels", [["-1", "2"], ["1700000000"]])
def test_numbers_that_are_no_classes_are_refused(labels):
    with pytest.raises(InputError, match="labels that are numbers must be classes, 0 to N - 1"):
        vocabulary.classes([labels])


def test_a_vocabulary_fixes_the_classes(tmp_path):
    path = write_csv(tmp_path / "v.csv", "Name,Index\ncat,4\ndog,1\n7,0\n")
    assert vocabulary.classes([["dog"], ["cat", "7"]], path).numbers["cat"] == 4
    assert vocabulary.classes([["7"]], path).numbers["7"] == 0
    assert vocabulary.classes([["4"], ["1"]], path).numbers == {"4": 4, "1": 1}
    assert vocabulary.classes([], path).num_classes == 5


def test_labels_that_a_vocabulary_lacks_are_listed(tmp_path):
    path = write_csv(tmp_path / "v.csv", "Index,Name\n0,cat\n2,dog\n")
    with pytest.raises(InputError, match=r"lacks 2 of 3 labels: 'bird', 'cow'\. Add them"):
        vocabulary.classes([["cow", "cat"], ["bird"]], path)
    with pytest.raises(InputError, match="lacks 1 of 2 labels: '1'"):
        vocabulary.classes([["0"], ["1"]], path)


def test_videos_without_labels_need_a_vocabulary():
    with pytest.raises(InputError, match=r"no video has a label.*--vocabulary"):
        vocabulary.classes([[], []])


def test_a_vocabulary_reads_back_with_any_names(tmp_path):
    written = {0: "-minus", 1: 'say "hi", you', 2: "=1+1", 3: "é"}
    vocabulary.write(str(tmp_path), ("Index", "Name"), written.items())
    path = tmp_path / vocabulary.FILE
    assert vocabulary.read_class_names(str(path)) == written
    with open(path, newline="") as file:
        assert next(csv.reader(file)) == ["Index", "Name"]
