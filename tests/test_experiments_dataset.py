"""The dataset job: bad rows, batches that do not depend on how the job was divided, killed processes, and scores."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

import dtviz
from dtviz.experiments import dataset
from dtviz.experiments.cache import Cache
from dtviz.experiments.dataset import Row, generate_images, image_features, image_files, read_prompts, score_images
from dtviz.files import ROOT
from dtviz.metrics import quality
from dtviz.metrics.embedders import embedder

PROMPTS = ROOT / "data" / "prompts" / "emoji.csv"
HYBRID = {"method": "hybrid"}


@pytest.fixture
def letters(pair):
    """A pair whose tokenizer reads letters alone, and rows for it: seven images in batches of two."""
    names = ("a dog", "a cat", "a dog", "an owl", "a fish", "a cat", "a dog")
    return pair, [Row(f"{i:03}", prompt, 10 * i) for i, prompt in enumerate(names)]


def contents(folder: Path, suffix: str = ".png") -> dict[str, bytes]:
    """Return the files by name, without locks."""
    return {path.name: path.read_bytes() for path in folder.rglob(f"*{suffix}") if path.suffix != ".lock"}


# The prompts file


def test_the_shipped_and_both_published_forms_are_read(tmp_path):
    """COCO-30k has `image_id` with zeros, a source, quotes and line breaks. Others have an index and `case_number`."""
    assert len(read_prompts(PROMPTS)) == 360
    path = tmp_path / "coco.csv"
    path.write_text(
        'image_id,source,prompt,evaluation_seed\r\n000000571635,coco-30k,"A bathroom with a toilet, sink.",10030\r\n'
        '000000482917,coco-30k,"A dog watching tv\n",64297\r\n'
    )
    expected = [Row("000000571635", "A bathroom with a toilet, sink.", 10030)]
    assert read_prompts(path) == [*expected, Row("000000482917", "A dog watching tv\n", 64297)]
    path.write_text("\ufeff,case_number, prompt,evaluation_seed \n0,7,château,9223372036854775807\n,,,\n,8,a,03,,\n")
    assert read_prompts(path) == [Row("7", "château", 2**63 - 1), Row("8", "a", 3)]


HEAD = "case_number,prompt,evaluation_seed\n"


def test_bad_rows_are_refused_by_line(tmp_path):
    path = tmp_path / "bad.csv"
    for text, words in (
        ("", "lacks the columns case_number, prompt, evaluation_seed; it has none"),
        ("case_number,text\n1,a\n", "line 1: lacks the columns prompt, evaluation_seed; it has case_number, text"),
        (HEAD, "no rows"),
        (HEAD + '1,"a,2\n', "unexpected end of data"),
        (HEAD + "1,a dog,5\n2,,6\n", "line 3: prompt of case 2 is empty"),
        (HEAD + '3,"a\ncat",seven\n', "line 3: evaluation_seed 'seven' must be an integer"),
        (HEAD + "4,a, owl,8\n", "line 2: too many cells"),
        (HEAD + "1,a dog,5\n1,a fish,9\n", "line 3: case '1' is there twice"),
        (HEAD + "../5,a bird,10\n", "line 2: case '../5' must be a word"),
        (HEAD + "\n7\n", "line 3: prompt of case 7 is empty"),
        (HEAD + "8,a cow,9223372036854775808\n", "evaluation_seed '9223372036854775808'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_prompts(path)
    path.write_bytes(HEAD.encode() + b"1,\xff\xfe,2\n")
    with pytest.raises(ValueError, match="utf-8"):
        read_prompts(path)


# The job in one process


def test_an_image_is_its_prompts_and_seeds_sample(letters, tmp_path):
    pair, rows = letters
    assert generate_images(pair, rows, tmp_path, settings=HYBRID, progress=False) == 7
    for row in rows:
        trace = dtviz.generate(pair, row.prompt, seeds=[row.seed], method="hybrid")
        expected = 255 * dtviz.decode(trace, pair, final=True)[0].permute(1, 2, 0).numpy()
        image = np.asarray(Image.open(tmp_path / "images" / f"{row.case}.png"), dtype=float)
        assert np.abs(image - expected).max() <= 0.6  # half a level of rounding, and float32 in another batch
    assert read_prompts(tmp_path / "prompts.csv") == rows
    job = json.loads((tmp_path / "job.json").read_text())
    assert (job["pair"], job["rows"], job["batch_size"]) == ("custom", 7, 2)
    assert job["settings"]["method"] == "hybrid" and job["settings"]["timesteps"] == [999, 749, 499, 249]
    assert not list(tmp_path.rglob("*.partial"))


def test_missing_and_damaged_images_are_generated_the_same_again(letters, tmp_path, monkeypatch):
    pair, rows = letters
    generate_images(pair, rows, tmp_path, settings=HYBRID, progress=False)
    complete, seeds, generate = contents(tmp_path), [], dataset.generate
    monkeypatch.setattr(dataset, "generate", lambda *a, **k: seeds.append(k["seeds"]) or generate(*a, **k))
    assert generate_images(pair, rows, tmp_path, settings=HYBRID, progress=False) == 0
    assert seeds == []
    kept = tmp_path / "images" / "002.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "images" / "003.png").unlink()
    (tmp_path / "images" / "006.png").write_bytes(complete["006.png"][:90])
    with pytest.warns(UserWarning, match=r"006\.png cannot be read.*generated again"):
        assert generate_images(pair, rows, tmp_path, settings=HYBRID, progress=False) == 2
    assert seeds == [[20, 30], [60]]  # the whole batch, so that it is the same to the bit
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path) == complete


def test_prompts_that_are_cut_are_named_once_at_the_start(letters, tmp_path):
    pair, rows = letters  # its tokenizer reads a letter a token, and 16 of them
    long = [*rows[:2], Row("007", "an owl and a fishing dog", 1), Row("008", "a dog and a cat and an owl", 2)]
    words = "2 of 4 prompts, first that of case 007, exceed 16 tokens and are cut"
    with pytest.warns(UserWarning, match=words) as said:
        generate_images(pair, long, tmp_path, settings=HYBRID, progress=False)
    assert len(said) == 1


def test_a_batch_that_another_process_holds_comes_last(letters, tmp_path, monkeypatch):
    """Its holder dies during the wait, and the batch is generated here."""
    (tmp_path / ".locks").mkdir()
    held = FileLock(tmp_path / ".locks" / "0.lock", thread_local=False)
    held.acquire()
    generate, seeds = dataset.generate, []

    def observed(*arguments, **options):
        seeds.append(options["seeds"][0])
        if len(seeds) == 3:
            held.release()
        return generate(*arguments, **options)

    monkeypatch.setattr(dataset, "generate", observed)
    generate_images(*letters, tmp_path, settings=HYBRID, progress=False)
    assert seeds == [20, 40, 60, 0]


def test_a_folder_holds_one_job(letters, tmp_path):
    pair, rows = letters
    generate_images(pair, rows[:2], tmp_path, settings=HYBRID, progress=False)
    for arguments, words in (
        ({"settings": HYBRID | {"k": 2}}, r"another job.*settings: there .* now .*'k': 2"),
        ({"batch_size": 1}, "batch_size: there 2, now 1"),
        ({"rows": [rows[0], rows[1]._replace(seed=1)]}, "prompts: there"),
        ({"pair": replace(pair, fingerprint="other")}, "weights: there , now other"),
    ):
        given = {"pair": pair, "rows": rows[:2], "out": tmp_path, "settings": HYBRID, "progress": False} | arguments
        with pytest.raises(ValueError, match=words):
            generate_images(**given)


def test_bad_arguments_and_images_are_refused(letters, tmp_path):
    pair, rows = letters
    for bad, size, words in ((rows, 0, "batch_size=0"), ([], 1, "rows has 0")):
        with pytest.raises(ValueError, match=words):
            generate_images(pair, bad, tmp_path, batch_size=size)

    with torch.no_grad():
        pair.pipeline.vae.post_quant_conv.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="cases 000, 001 are not finite"):
        generate_images(pair, rows, tmp_path, settings=HYBRID, progress=False)
    assert contents(tmp_path) == {}


# Several processes on the embedded pair


@pytest.fixture(scope="module")
def work(emoji):
    """Return a function that makes 48 images in batches of two."""
    rows, options = read_prompts(PROMPTS)[:48], {"settings": HYBRID, "batch_size": 2, "progress": False}
    return lambda out: generate_images(emoji, rows, out, **options)


@pytest.fixture(scope="module")
def undisturbed(work, tmp_path_factory):
    """The images by one process."""
    work(out := tmp_path_factory.mktemp("undisturbed"))
    return contents(out)


def test_two_processes_of_torchrun_share_the_work_and_make_the_same_images(undisturbed, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dtviz"]
    few, out = tmp_path / "few.csv", tmp_path / "out"
    few.write_text("".join(PROMPTS.read_text().splitlines(keepends=True)[:13]))
    command += ["generate", "--prompts", str(few), "--out", str(out), "--batch-size", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    images = contents(out)
    assert len(images) == 12 and images.items() <= undisturbed.items()
    counts = re.findall(r"12 images, (\d+) of them generated now by process [12] of 2", done.stdout)
    assert len(counts) == 2 and sum(map(int, counts)) == 12  # none twice
    assert "12/12" in done.stderr  # one bar of both processes' images


def forked(work, out) -> int:
    """Start a process that does the work with what this one has loaded, so that a kill costs no seconds."""
    child = os.fork()
    if not child:
        tqdm.set_lock(threading.RLock())  # the parent shares its own, and would wait for a killed holder
        try:
            work(out)
        finally:
            os._exit(0)
    return child


def test_killed_12_times_at_random_moments_nothing_is_lost(work, undisturbed, tmp_path):
    """Two processes on one folder, both killed again and again; every third time not before one more image exists."""
    rng, counts = random.Random(0), [0]
    (tmp_path / "images").mkdir()
    for i in range(12):
        two, deadline = [forked(work, tmp_path) for _ in range(2)], time.monotonic() + 60
        while i % 3 == 0 and dataset.count_images(tmp_path) == counts[-1] < 48 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        for process in two:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        counts.append(dataset.count_images(tmp_path))
        for path in (tmp_path / "images").glob("*.png"):
            with Image.open(path) as image:
                image.load()  # complete
    assert counts == sorted(counts)
    assert len(set(counts)) > 4 and counts[1] < 48  # it was at work when it was killed
    work(tmp_path)
    assert contents(tmp_path) == undisturbed


# Scores

rng = np.random.default_rng(0)


def paint(folder, count, *, size=(64, 64), shade=0.5, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = np.clip(rng.normal(shade, 0.25, (8, 8, 3)), 0, 1)
        Image.fromarray((coarse * 255).astype(np.uint8)).resize(size).save(folder / f"{i:03}.{suffix}")
    return folder


@pytest.fixture
def job(tmp_path):
    """A finished job of twelve images of two prompts."""
    paint(tmp_path / "job" / "images", 12)
    rows = [f"{i:03},{'dog face' if i % 2 else 'sunset'},{i}" for i in range(12)]
    (tmp_path / "job" / "prompts.csv").write_text("\n".join(["case_number,prompt,evaluation_seed", *rows]) + "\n")
    return tmp_path / "job"


def test_every_score_is_the_measures_own_on_the_same_features(job, lite, tmp_path):
    real = paint(tmp_path / "real", 9, size=(80, 60), shade=0.7, suffix="jpg")
    cache, clip = Cache(tmp_path / "cache"), embedder("emoji-clip", device="cpu")
    table = score_images(job, embed=lite, reference=real, text=clip, cache=cache).set_index("measure")
    a, b = (image_features(image_files(folder), lite, cache=cache) for folder in (job, real))
    assert table.loc["FD", "value"] == quality.frechet_distance(a, b)
    assert table.loc["class score", "value"] == quality.inception_score(lite.classify(a))
    features = clip(np.stack([dataset.read_image(file) for file in image_files(job)]))
    texts = clip.text(["sunset", "dog face"])
    expected = np.mean([100 * (features[i::2] @ texts[i]).mean() for i in range(2)])
    assert table.loc["emoji-clip score", "value"] == pytest.approx(expected, abs=1e-4)
    assert table.loc["emoji-clip score", "n"] == 2  # prompts, not images
    assert not {"FID", "Inception score", "CLIP score"} & set(table.index)
    assert table.loc["FD", "images"] == "jpg and png"
    assert (table.loc["FD", "resize"], table.loc["FD", "n_reference"]) == ("160 px, bilinear, antialiased", 9)
    itself = score_images(job, embed=lite, reference=job, cache=cache).set_index("measure")
    assert itself.loc["FD", "value"] == pytest.approx(0, abs=1e-6)


def test_features_are_cached_by_the_images_bytes_and_sizes_may_differ(tmp_path, lite):
    folder, cache = paint(tmp_path / "mixed", 3), Cache(tmp_path / "cache")
    Image.new("L", (30, 50), 128).save(folder / "grey.png")
    (folder / "note.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"skipped 1 files that are none of"):
        files = image_files(folder)
    first = image_features(files, lite, cache=cache)
    alone = np.concatenate([lite.raw(dataset.read_image(file)[None]) for file in files])
    assert np.abs(first - alone).max() < 1e-4 * np.abs(alone).max()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    Image.new("RGB", (64, 64)).save(folder / "000.png")
    assert not np.array_equal(image_features(files, lite, cache=cache)[0], first[0])


def test_deep_and_turned_images_are_read_as_they_are_meant(tmp_path):
    grey = np.array([[0, 257, 65535], [514, 1028, 32896]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_allclose(dataset.read_image(tmp_path / "deep.png"), np.stack([grey / 65535] * 3), atol=1e-6)
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(pixels, -1).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(dataset.read_image(tmp_path / "turned.png"), expected, atol=1e-6)


def test_what_cannot_be_scored_is_refused(job, lite, tmp_path):
    cache, plain = Cache(tmp_path / "cache"), paint(tmp_path / "plain", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        score_images(tmp_path / "empty", embed=lite, cache=cache)
    with pytest.raises(ValueError, match=r"has no prompts\.csv"):
        score_images(plain, embed=lite, text=embedder("emoji-clip", device="cpu"), cache=cache)
    assert score_images(plain, embed=lite, cache=cache).empty  # too few for an Inception score
    (plain / "001.png").write_bytes((plain / "001.png").read_bytes()[:90])
    with pytest.raises(ValueError, match=r"001\.png cannot be read, is it damaged"):
        score_images(plain, embed=lite, cache=cache)
    (job / "images" / "003.png").rename(job / "images" / "other.png")
    with pytest.raises(ValueError, match="has 12 images for 12 prompts, differing in 003"):
        score_images(job, embed=lite, cache=cache)
    (job / "images" / "other.png").rename(job / "images" / "003.png")
    Image.new("RGB", (8, 8)).save(job / "images" / "003.jpg")
    with pytest.raises(ValueError, match="has 13 images for 12 prompts"):
        score_images(job, embed=lite, cache=cache)
