"""The list of a directory's checkpoints is believed only as far as it can be right."""

import shutil

import pytest

import checkpoints
import programs
from utils import InputError


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of a trained run that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_copied_run_is_a_run_of_its_own(run_dir, trained):
    assert checkpoints.latest(str(run_dir)) == f"{run_dir}/model.ckpt-100"
    assert checkpoints.latest(f"{run_dir}/") == f"{run_dir}/model.ckpt-100"


def test_a_directory_without_a_list_has_no_checkpoint(tmp_path):
    assert checkpoints.latest(str(tmp_path)) is None


@pytest.mark.parametrize("content", ["", "garbage {", "model_checkpoint_path: 5", b"\xff\xfe\x00"])
def test_a_damaged_list_is_not_taken_for_none(run_dir, content):
    content = content if isinstance(content, bytes) else content.encode()
    (run_dir / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged\. .* has: model\.ckpt-100, "):
        checkpoints.find(str(run_dir))


@pytest.mark.parametrize("place", ["../other/model.ckpt-40", "{absolute}/model.ckpt-40"])
def test_a_list_that_names_another_run_is_refused_and_harms_none(run_dir, frame_data, place):
    # Training would remove these files when newer checkpoints come.
    other = shutil.copytree(run_dir, run_dir.parent / "other")
    place = place.format(absolute=other)
    (run_dir / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-100"\n'
        f'all_model_checkpoint_paths: "{place}"\n'
        'all_model_checkpoint_paths: "model.ckpt-100"\n'
    )
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(InputError, match=r"names a checkpoint of another directory: .*ckpt-40"):
        programs.run_small(
            run_dir, frame_data, "--num_epochs=20", "--max_steps=110", "--keep_checkpoints=1"
        )
    assert sorted(path.name for path in other.iterdir()) == before


def test_a_lost_checkpoint_is_not_taken_for_a_new_run(run_dir, frame_data):
    for path in run_dir.glob("model.ckpt-100.*"):
        path.unlink()
    with pytest.raises(InputError, match=r"model\.ckpt-100, which is not there\. .* has: model"):
        programs.run_small(run_dir, frame_data)


def test_what_an_interrupted_save_left_is_removed_when_training_goes_on(run_dir, frame_data):
    before = sorted(path.name for path in run_dir.iterdir())
    (run_dir / "model.ckpt-120_temp").mkdir()
    (run_dir / "model.ckpt-120_temp" / "part-00000-of-00001.data").write_text("half")
    (run_dir / "checkpoint.tmp0123456789abcdef").write_text("half")
    programs.run_small(run_dir, frame_data, "--max_steps=1")
    assert sorted(path.name for path in run_dir.iterdir()) == before
