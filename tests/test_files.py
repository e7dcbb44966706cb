"""Reading and writing files: whole or not at all."""

import gzip
import os
import resource
import socket

import pytest

import files
import vocabulary
from utils import InputError


def write(path, text):
    with files.atomic_write(str(path)) as file:
        file.write(text)


def test_atomic_write_creates_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "new" / "folder" / "out.csv"
    write(path, "a,ü\n")
    assert path.read_bytes() == "a,ü\n".encode()
    assert os.listdir(path.parent) == ["out.csv"]


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "out.csv"
    with files.atomic_write(str(path)) as file:
        file.write("x" * 100_000)
        assert not path.exists()
        assert os.listdir(tmp_path) == [f"out.csv.{socket.gethostname()}-{os.getpid()}.partial"]
    assert path.stat().st_size == 100_000


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_and_removes_the_partial_file(tmp_path, name, failure):
    path = tmp_path / name
    path.write_bytes(b"old")

    def write_half():
        with files.atomic_write(str(path)) as file:
            file.write("half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


def test_atomic_write_replaces_an_old_file(tmp_path):
    path = tmp_path / "out.csv"
    write(path, "a longer old text")
    write(path, "new")
    assert path.read_text() == "new"


def test_many_files_in_a_folder_cost_one_listing_of_it(tmp_path, monkeypatch):
    listed, listdir = [], files.gfile.listdir
    monkeypatch.setattr(files.gfile, "listdir", lambda path: listed.append(path) or listdir(path))
    for number in range(20):
        write(tmp_path / f"{number}.csv", "text")
    assert listed == [str(tmp_path)]


def test_a_path_that_ends_in_gz_is_compressed(tmp_path):
    path = tmp_path / "out.csv.gz"
    write(path, "ü,1\n" * 5000)
    assert gzip.decompress(path.read_bytes()).decode() == "ü,1\n" * 5000
    assert path.stat().st_size < 1000


def test_equal_text_is_compressed_to_equal_bytes(tmp_path, monkeypatch):
    write(tmp_path / "first.gz", "text")
    # The header of a gzip file usually holds the time in seconds.
    monkeypatch.setattr(gzip.time, "time", lambda: 1e9)
    write(tmp_path / "second.gz", "text")
    assert (tmp_path / "first.gz").read_bytes() == (tmp_path / "second.gz").read_bytes()


@pytest.mark.parametrize("check", [files.check_writable, lambda path: write(path, "text")])
def test_a_path_that_cannot_be_written_is_rejected_by_name(tmp_path, check):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"cannot write .*file/out\.csv: "):
        check(str(tmp_path / "file" / "out.csv"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder: it is a directory"):
        check(str(tmp_path / "folder"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "socket"])
def test_a_special_file_is_not_replaced(tmp_path, name):
    path = str(tmp_path / name)  # An absolute name stays as it is.
    if name == "socket":
        with socket.socket(socket.AF_UNIX) as special:
            special.bind(path)
    with pytest.raises(InputError, match=f"cannot write {path}: it is a device"):
        files.check_writable(path)


def test_check_writable_leaves_no_file_and_keeps_an_old_one(tmp_path):
    path = tmp_path / "out.csv"
    files.check_writable(str(path))
    assert os.listdir(tmp_path) == []
    path.write_text("old")
    files.check_writable(str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_links_that_bear_the_name_of_a_partial_file_are_not_followed(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "folder").mkdir()
    ending = f"{socket.gethostname()}-{os.getpid()}.partial"
    (tmp_path / f"out.csv.{ending}").symlink_to(mine)
    write(tmp_path / "out.csv", "new")
    (tmp_path / f"directory.{ending}").symlink_to(tmp_path / "folder")
    with files.atomic_directory(str(tmp_path / "directory")) as partial:
        write(f"{partial}/out.csv", "new")
    assert mine.read_text() == "mine"
    assert os.listdir(tmp_path / "folder") == []
    assert not (tmp_path / "directory").is_symlink()


def test_json_is_indented_and_read_back(tmp_path):
    path, value = tmp_path / "a.json", {"b": [[1, 2.5, "ü, ]["], [2, 3]], "a": {"c": None}}
    files.write_json(str(path), value)
    assert files.read_json(str(path)) == value
    lines = ["{", '  "b": [', "    [", "      1,", "      2.5,", r'      "\u00fc, ]["', "    ],"]
    lines += ["    [2, 3]", "  ],", '  "a": {', '    "c": null', "  }", "}", ""]
    assert path.read_text().split("\n") == lines


def test_a_value_that_is_not_json_writes_no_file(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(str(tmp_path / "a.json"), {"a": 1, "b": object()})
    assert os.listdir(tmp_path) == []


NESTED = [b"[" * 100_000, b'{"a":' * 100_000]


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe\xff", b"9" * 5000, *NESTED])
def test_a_file_that_is_not_json_is_rejected_by_name(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is not valid JSON: "):
        files.read_json(str(path))


def test_patterns_expand_to_sorted_files_without_duplicates(tmp_path):
    for name in ("b1", "a2", "a1", "c1"):
        (tmp_path / name).write_text("")
    (tmp_path / "a_folder").mkdir()
    pattern = f"{tmp_path}/b*, {tmp_path}/a*,{tmp_path}/?1,"
    expected = [str(tmp_path / name) for name in ("a1", "a2", "b1", "c1")]
    assert files.expand_patterns(pattern) == expected


@pytest.mark.parametrize("folder", ["a,b", "x{y,z}", "[1]", "my data (1)", "a,b[2], c"])
def test_paths_with_special_characters_are_found(tmp_path, folder):
    path = tmp_path / folder / "train 01.tfrecord"
    path.parent.mkdir()
    path.write_text("x")
    (tmp_path / "other").write_text("x")
    assert files.expand_patterns(str(path)) == [str(path)]
    assert files.expand_patterns(f"{path.parent}/*") == [str(path)]
    both = sorted([str(path), f"{tmp_path}/other"])
    assert files.expand_patterns(f"{path.parent}/t*\n{tmp_path}/oth*,{tmp_path}/other") == both


def test_a_path_is_found_once_whether_it_is_matched_or_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a1").write_text("x")
    assert files.expand_patterns("a1,a*,./a1") == ["a1"]


def test_a_file_with_several_paths_is_found_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_text("x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "2").symlink_to(tmp_path / "a" / "1")
    assert files.expand_patterns("a/1,a//1,a/../a/1,b/1,a/2") == ["a/../a/1"]
    assert files.expand_patterns(f"a/*,b/*,{tmp_path}/a/*") == [f"{tmp_path}/a/1"]


def test_a_pattern_for_all_levels_of_directories_is_rejected(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.tfrecord").write_text("x")
    (tmp_path / "**").write_text("x")
    assert files.expand_patterns(f"{tmp_path}/**") == [f"{tmp_path}/**"]
    for pattern in (f"{tmp_path}/**/*.tfrecord", f"{tmp_path}/a/**"):
        with pytest.raises(
            InputError, match=r"\*\* does not search subdirectories\. Give a pattern"
        ):
            files.expand_patterns(pattern)


def test_directories_pipes_and_broken_links_are_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"is a directory\. Give a pattern .*/train\*\.tfrecord'\. It has: "
    ):
        files.expand_patterns(str(tmp_path))
    with pytest.raises(InputError, match=r"/pipe is a pipe or a device, which can be read only on"):
        files.expand_patterns(f"{tmp_path}/p*")
    with pytest.raises(InputError, match=r"cannot read .*/link: "):
        files.expand_patterns(f"{tmp_path}/l*")


def test_an_unreadable_file_is_rejected(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # Root may read everything.
    with pytest.raises(InputError, match=r"cannot read .*/a: this user has no permission"):
        files.expand_patterns(f"{tmp_path}/a")


def test_empty_files_among_others_are_warned_of(tmp_path, logged_warnings):
    for name, text in (("a", "x"), ("b", ""), ("c", "")):
        (tmp_path / name).write_text(text)
    assert len(files.expand_patterns(f"{tmp_path}/*")) == 3
    assert logged_warnings == [f"2 of 3 files are empty, such as {tmp_path}/b"]


def test_a_pattern_without_a_match_is_rejected_even_if_others_match(tmp_path):
    (tmp_path / "a1").write_text("")
    with pytest.raises(InputError, match=r"no file matches '.*/z\*' \(working directory /"):
        files.expand_patterns(f"{tmp_path}/a*,{tmp_path}/z*")


@pytest.mark.parametrize("patterns", ["", " , "])
def test_an_empty_pattern_is_rejected(patterns):
    with pytest.raises(InputError, match="a file pattern was expected"):
        files.expand_patterns(patterns)


def test_paths_with_a_scheme_are_remote():
    assert files.is_remote("gs://bucket/file")
    assert not files.is_remote("/folder/file")


# --- Class names ---

NAMES = 'Index,Other,Name\n0,x,Cat\n1,x,Größe\n2,x,"Dog, ""big"""\n'


@pytest.mark.parametrize(
    "content",
    [
        NAMES.encode(),
        NAMES.replace("\n", "\r\n").encode("utf-8-sig"),
        NAMES.replace("Name\n", "Name\n\n,,\n").encode(),
    ],
    ids=["plain", "from a spreadsheet", "empty rows"],
)
def test_class_names_are_read_by_class(tmp_path, content, logged_warnings):
    path = tmp_path / "vocabulary.csv"
    path.write_bytes(content)
    assert vocabulary.read_class_names(str(path), 3) == {0: "Cat", 1: "Größe", 2: 'Dog, "big"'}
    assert not logged_warnings
    assert len(vocabulary.read_class_names(str(path))) == 3
    assert not logged_warnings
    assert len(vocabulary.read_class_names(str(path), 4)) == 3
    assert logged_warnings == [f"{path} names only 3 of 4 classes"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Index;Name\n0;Cat\n", "must have the columns Index and Name, separated by commas"),
        ("Index,Title\n0,Cat\n", "must have the columns Index and Name"),
        ("", "must have the columns Index and Name"),
        ("Index,Name\n", "names no class"),
        ("Index,Name\n0,\n", "names no class"),
        ("Index,Name\nzero,Cat\n", r"row 2 of .*csv: Index must be a class .* Received: 'zero'"),
        ("Index,Name\n0,Cat\n3,Dog\n", r"row 3 of .* 0 to 2\. Received: '3'"),
        ("Index,Name\n-1,Cat\n", "Received: '-1'"),
        ("Index,Name\n1.0,Cat\n", r"Received: '1\.0'"),
        (f"Index,Name\n{'9' * 5000},Cat\n", "Received: '9999"),
        (
            "Index,Name\n0,Cat\n00,Dog\n",
            r"row 3 of .*csv names class 0, which an earlier row names",
        ),
        ("Index,Name\n0,Cat, big\n", "row 2 of .*csv has 3 cells instead of 2"),
        ('Index,Name\n0,"Cat\n1,Dog\n', "not valid CSV after row 1"),
        ("Index,Name\n0,Größe\n".encode("cp1252"), "row 2 of .*csv is not UTF-8 text"),
    ],
)
def test_a_vocabulary_that_does_not_name_classes_is_rejected_with_the_row(
    tmp_path, content, message
):
    path = tmp_path / "vocabulary.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        vocabulary.read_class_names(str(path), 3)


def test_a_lock_on_a_full_disk_fails_naming_its_file_and_leaves_none(tmp_path):
    path = tmp_path / "a.lock"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"), files.lock(str(path)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists()
