"""The programs of tests/robustness at a small size; scripts/robustness.sh runs the whole."""

import adversarial_scores
import damaged_records
import full_disk
import kills
import not_finite
import served_model


def test_damaged_record_files_are_read_exactly_skipped_or_refused(monkeypatch):
    monkeypatch.setattr(damaged_records.logging, "warning", lambda *_: None)
    outcomes = damaged_records.run(0, 500)
    assert {outcome for _, outcome in outcomes} == {"read exactly", "skipped", "refused"}
    assert {kind for kind, _ in outcomes} >= {
        damage.__name__ for damage in damaged_records.FILE_DAMAGE + damaged_records.RECORD_DAMAGE
    }


def test_adversarial_scores_give_exact_metrics_or_are_refused():
    kinds = adversarial_scores.run(250)
    assert set(kinds) == {
        kind.__name__ for kind in adversarial_scores.SCORES + adversarial_scores.DAMAGE
    }


def test_an_exported_model_gives_right_answers_or_clear_errors():
    assert "12 wrong tensors refused" in served_model.run(60)


def test_programs_that_are_killed_leave_nothing_or_all_and_go_on():
    lines = list(kills.run(["train", "average_checkpoints"], 1))
    assert lines[0].startswith("kill -9 of train: 1 of 1 go on")
    assert lines[1].startswith("kill -9 of average_checkpoints: 1 of 1 left nothing or all")


def test_nan_and_infinity_are_refused_naming_video_step_or_weight():
    assert len(not_finite.run()) == 26


def test_a_full_disk_is_told_and_harms_nothing():
    said = list(full_disk.run(mount=False, names=("train", "inference")))
    assert all("File too large" in text for text in said)
