"""The way from arrays to predictions that docs/own_data.md describes."""

import csv

import numpy as np
import pandas as pd
import pytest

import documents
import programs

NUM_VIDEOS, NUM_CLASSES, SIZE = 300, 6, 512
# Fewer and smaller steps than in the document.
SMALL = {
    "train.py": ("--max_steps=40", "--batch_size=32", "--iterations=6", "--netvlad_hidden_size=32")
}


def write_clips(folder):
    """Writes arrays and labels.csv; returns the classes by id. Every frame shows one class."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(NUM_CLASSES, SIZE))
    (folder / "clips").mkdir()
    shown = {}
    for number in range(NUM_VIDEOS):
        classes = rng.choice(NUM_CLASSES, rng.integers(1, 3), replace=False)
        frames = centers[rng.choice(classes, rng.integers(4, 9))]
        frames = frames + rng.normal(size=frames.shape)
        frames /= np.linalg.norm(frames, axis=1, keepdims=True)
        name = f"clip_{number:04d}"
        np.save(folder / "clips" / f"{name}.npy", frames.astype(np.float32))
        shown[name] = {f"kind {label}" for label in classes}
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("id", "labels"), *((name, ";".join(sorted(kinds))) for name, kinds in shown.items())]
        )
    return shown


@pytest.mark.slow
def test_the_commands_lead_from_arrays_to_named_predictions(tmp_path, monkeypatch, capsys):
    shown = write_clips(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(documents.ROOT / "recipes")
    document = documents.ROOT / "docs" / "own_data.md"
    commands = documents.commands(document)
    for _, script, *flags in commands[:6]:
        programs.run(script.removesuffix(".py"), *flags, *SMALL.get(script, ()))
    classes = pd.read_csv("classes.csv")
    assert set(classes["name"]) == {f"kind {label}" for label in range(NUM_CLASSES)}
    assert classes["ap"].mean() > 0.9
    predictions = pd.read_csv("predictions.csv")
    best = predictions[predictions["rank"] == 1].set_index("id")["name"]
    assert len(best) > 10
    hits = [best[video] in shown[video] for video in best.index]
    assert np.mean(hits) > 0.9
    embeddings = np.load("embeddings.npy")
    ids = (tmp_path / "embeddings.ids.txt").read_text().split()
    assert len(embeddings) == len(ids) == len(best)
    code = documents.python_of("docs/own_data.md", "predictor.load")
    names = {}
    exec(code, names)
    table = names["table"]
    assert len(table) == 30
    first = table[table["id"] == names["paths"][0]].iloc[0]
    assert first["name"] in shown["clip_0000"]
    assert list(table) == ["id", "class", "name", "score"]
    (tmp_path / "features").mkdir()
    for name, path in zip("ab", names["paths"], strict=False):
        np.savez(f"features/{name}.npz", rgb=np.load(path))
    exec(documents.python_of("README.md", "predictor.load"), names)
    of_readme = names["table"]
    assert of_readme["id"].tolist() == ["a"] * 5 + ["b"] * 5
    assert of_readme["name"][0] == first["name"]
    assert names["vectors"].shape == (2, embeddings.shape[1])
    (tmp_path / "new").mkdir()
    new = tmp_path / "new" / "new_0000.npy"
    new.write_bytes((tmp_path / "clips" / "clip_0000.npy").read_bytes())
    for _, script, *flags in commands[-2:]:
        programs.run(script.removesuffix(".py"), *flags)
    of_new = pd.read_csv("predictions.csv")
    assert set(of_new["id"]) == {"new_0000"}
    assert of_new["name"][0] == first["name"]
