"""The programs of tests/robustness at a small size; scripts/robustness.sh runs them in full."""

import pytest

import adversarial_scores
import corrupt_records
import full_disk
import kills
import many_shards
import not_finite
import odd_flags
import served_model


def test_corrupt_record_files_are_read_exactly_skipped_or_rejected(monkeypatch):
    monkeypatch.setattr(corrupt_records.logging, "warning", lambda *_: None)
    outcomes = corrupt_records.run(0, 500)
    assert {outcome for _, outcome in outcomes} == {"read exactly", "skipped", "rejected"}
    assert {kind for kind, _ in outcomes} >= {
        corrupt.__name__
        for corrupt in corrupt_records.FILE_CORRUPTIONS + corrupt_records.RECORD_CORRUPTIONS
    }


def test_adversarial_scores_give_exact_metrics_or_are_rejected():
    kinds = adversarial_scores.run(250)
    assert set(kinds) == {*adversarial_scores.SCORES, *adversarial_scores.BAD_BATCHES}


@pytest.mark.slow
def test_an_exported_model_predicts_right_or_raises_clear_errors():
    assert "12 wrong tensors rejected" in served_model.run(60)


@pytest.mark.slow
def test_killed_programs_leave_complete_output_or_none_and_recover():
    lines = list(kills.run(["train", "average_checkpoints"], 1, 0))
    assert lines[0].startswith("kill -9 of train: 1 of 1 resume")
    assert lines[1].startswith("kill -9 of average_checkpoints: 1 of 1 left nothing or all")


@pytest.mark.slow
def test_nan_and_infinity_are_rejected_naming_video_step_or_weight():
    assert len(not_finite.run()) == 26


@pytest.mark.slow
def test_odd_values_of_flags_are_used_or_rejected_in_one_line(tmp_path):
    flags = ("batch_size", "metrics_json", "weights", "tensorboard_dir", "train_dir")
    outcomes = [outcome for *_, outcome in odd_flags.run(tmp_path, flags, ("eval",))]
    assert 0 < outcomes.count("used") < len(outcomes)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_harms_nothing():
    messages = list(full_disk.run(mount=False, names=("train", "inference")))
    assert all("File too large" in text for text in messages)


@pytest.mark.slow
def test_all_programs_run_on_more_files_than_videos_in_a_batch():
    assert len(list(many_shards.run(20))) == 6
