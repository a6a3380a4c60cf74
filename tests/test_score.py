"""dtviz.score on small folders: what each number is called, what it was measured with, and that it is the right one."""

import json

import numpy as np
import pytest
from PIL import Image

from dtviz import quality
from dtviz.embed import embedder
from dtviz.score import describe, features, images, score
from dtviz.store import Store
from dtviz.table import load, save

rng = np.random.default_rng(0)


def paint(folder, count, *, size=(64, 64), shade=0.5, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = np.clip(rng.normal(shade, 0.25, (8, 8, 3)), 0, 1)
        Image.fromarray((coarse * 255).astype(np.uint8)).resize(size).save(folder / f"{i:03}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def lite():
    return embedder("efficientnet-lite0", device="cpu")


@pytest.fixture
def job(tmp_path):
    """A finished job of twelve images of two prompts, and its log."""
    paint(tmp_path / "job" / "images", 12)
    rows = [f"{i:03},{'dog face' if i % 2 else 'sunset'},{i}" for i in range(12)]
    (tmp_path / "job" / "prompts.csv").write_text("\n".join(["case_number,prompt,evaluation_seed", *rows]) + "\n")
    (tmp_path / "job" / "log").mkdir()
    told = [
        {"batch": i, "images": 4, "seconds": s, "device": "cpu", "nfe": {"base": 1, "distilled": 3}}
        for i, s in enumerate((9.0, 2.0, 2.4))
    ]
    (tmp_path / "job" / "log" / "a-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return tmp_path / "job"


def test_every_number_is_the_measures_own_on_the_same_features(job, lite, tmp_path):
    real = paint(tmp_path / "real", 9, size=(80, 60), shade=0.7, suffix="jpg")
    store, clip = Store(tmp_path / "store"), embedder("emoji-clip", device="cpu")
    table = score(job, embed=lite, reference=real, text=clip, store=store, progress=False).set_index("measure")
    a, b = (features(images(folder), lite, store=store) for folder in (job, real))
    assert table.loc["FD", "value"] == quality.frechet_distance(a, b)
    kernel = quality.kernel_distance(a, b)
    assert tuple(table.loc["kernel distance", ["value", "low", "high", "n"]]) == (
        kernel.value,
        kernel.low,
        kernel.high,
        12,
    )
    assert table.loc["coverage", "value"] == quality.neighbours(a, b).coverage
    assert table.loc["class score", "value"] == quality.inception_score(lite.classify(a))
    seen, words = clip(read(images(job))), clip.text(["sunset", "dog face"])
    expected = np.mean([100 * (seen[i::2] @ words[i]).mean() for i in range(2)])
    assert table.loc["emoji-clip score", "value"] == pytest.approx(expected, abs=1e-4)
    assert table.loc["emoji-clip score", "n"] == 2  # prompts, not images
    assert table.loc["denoiser evaluations an image", "value"] == 4
    assert table.loc["seconds an image (cpu)", "value"] == pytest.approx(0.6)  # the median; the first batch warms up
    assert table.loc["Gaussian MMD x 1000", "value"] > 0
    assert not {"FID", "KID", "CMMD", "Inception score", "CLIP score"} & set(table.index)
    assert table.loc["FD", "images"] == "64x64 png; reference 80x60 jpg"
    assert (table.loc["FD", "resize"], table.loc["FD", "n_reference"]) == ("160 px, bilinear, antialiased", 9)


def read(files):
    return np.stack([np.asarray(Image.open(file), dtype=np.float32).transpose(2, 0, 1) / 255 for file in files])


def test_a_folder_against_itself_is_at_distance_0(job, lite, tmp_path):
    table = score(job, embed=lite, reference=job, store=Store(tmp_path / "s"), progress=False).set_index("measure")
    assert table.loc["FD", "value"] == pytest.approx(0, abs=1e-6)
    assert tuple(table.loc[["precision", "recall", "coverage"], "value"]) == (1, 1, 1)
    saved = load(save(table.reset_index(), tmp_path / "s.csv", units=dict.fromkeys(("value", "low", "high"), "1")))
    assert saved["measure"].tolist() == table.index.tolist()


def test_features_are_kept_by_the_images_bytes_and_sizes_may_differ(tmp_path, lite):
    folder = paint(tmp_path / "mixed", 3)
    Image.new("L", (30, 50), 128).save(folder / "grey.png")
    store = Store(tmp_path / "store")
    first = features(images(folder), lite, store=store, progress=False)
    alone = np.concatenate([lite.raw(read([file])) for file in images(folder)[:3]])
    assert np.abs(first[:3] - alone).max() < 1e-4 * np.abs(alone).max()
    assert first.shape == (4, 1280)
    assert describe(images(folder)) == "mixed sizes png"
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 1
    Image.new("RGB", (64, 64)).save(folder / "000.png")
    assert not np.array_equal(features(images(folder), lite, store=store, progress=False)[0], first[0])


def test_what_cannot_be_scored_is_refused(job, lite, tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        score(tmp_path / "empty", embed=lite, store=store)
    plain = paint(tmp_path / "plain", 2)
    with pytest.raises(ValueError, match="has no prompts.csv"):
        score(plain, embed=lite, text=embedder("emoji-clip", device="cpu"), store=store)
    (plain / "001.png").write_bytes((plain / "001.png").read_bytes()[:90])
    with pytest.raises(ValueError, match="001.png cannot be read, is it damaged"):
        score(plain, embed=lite, store=store, progress=False)
    (job / "images" / "003.png").unlink()
    with pytest.raises(ValueError, match="11 of 12 images"):
        score(job, embed=lite, store=store)
