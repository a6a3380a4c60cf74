"""The dataset job: bad rows, batches that do not depend on how the job was cut, real processes, really killed."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import dtviz
from dtviz import dataset
from dtviz.prompts import Row
from dtviz.prompts import read as read_prompts

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data" / "prompts" / "emoji.csv"
HYBRID = {"method": "hybrid"}


@pytest.fixture
def letters(pair):
    """A pair whose tokenizer reads letters alone, and rows for it: seven images in batches of two."""
    names = ("a dog", "a cat", "a dog", "an owl", "a fish", "a cat", "a dog")
    return pair, [Row(f"{i:03}", prompt, 10 * i) for i, prompt in enumerate(names)]


def images(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(folder) / "images").iterdir()}


# The prompts file


def test_the_shipped_file_reads():
    rows = read_prompts(SHIPPED)
    assert len(rows) == 360
    assert rows[0] == Row("0", "sunset", 0)
    assert len({row.prompt for row in rows}) == 36


def test_both_published_forms_read(tmp_path):
    """COCO-30k's has `image_id` with zeros before it, a source, quotes, line breaks; others an index and `case_number`."""
    path = tmp_path / "coco.csv"
    path.write_text(
        'image_id,source,prompt,evaluation_seed\r\n000000571635,coco-30k,"A bathroom with a toilet, sink.",10030\r\n'
        '000000482917,coco-30k,"A dog watching tv\n",64297\r\n'
    )
    expected = [Row("000000571635", "A bathroom with a toilet, sink.", 10030)]
    assert read_prompts(path) == [*expected, Row("000000482917", "A dog watching tv\n", 64297)]
    path.write_text("\ufeff,case_number,prompt,evaluation_seed\n0,7,château,3\n", encoding="utf-8")
    assert read_prompts(path) == [Row("7", "château", 3)]


BAD = """case_number,prompt,evaluation_seed
1,a dog,5
2,,6
3,"a
cat",seven
4,a, owl,8
1,a fish,9
../5,a bird,10
6,a bee,-1
7
8,a cow,99999999999999999999
"""


def test_every_bad_row_is_named_with_its_line(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(BAD)
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    told = str(caught.value)
    assert "8 bad rows" in told
    for words in (
        "line 3: prompt is empty", "line 4: evaluation_seed 'seven'", "line 6: 1 cells too many",
        "line 7: case_number '1' is also on line 2", "line 8: case_number '../5'", "line 9: evaluation_seed '-1'",
        "line 10: prompt is empty", "line 11: evaluation_seed '9999",
    ):  # fmt: skip
        assert words in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks the columns case_number, prompt, evaluation_seed; it has none"),
        ("case_number,text\n1,a\n", "lacks the columns prompt, evaluation_seed; it has case_number, text"),
        ("case_number,prompt,evaluation_seed\n", "no rows"),
        ('case_number,prompt,evaluation_seed\n1,"a,2\n', "not a CSV"),
        (
            "\n".join(["case_number,prompt,evaluation_seed", *(f"{i},,1" for i in range(30))]),
            "30 bad rows.*and 20 more",
        ),
    ],
)
def test_files_that_are_no_prompts_are_refused(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_prompts(path)
    path.write_bytes(b"case_number,prompt,evaluation_seed\n1,\xff\xfe,2\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(path)


# The job in one process


def test_an_image_is_its_prompts_and_seeds_sample(letters, tmp_path):
    pair, rows = letters
    assert dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False) == 7
    for row in rows:
        trace = dtviz.generate(pair, row.prompt, seeds=[row.seed], method="hybrid")
        expected = 255 * dtviz.decode(trace, pair, final=True)[0].permute(1, 2, 0).numpy()
        found = np.asarray(Image.open(tmp_path / "images" / f"{row.case}.png"), dtype=float)
        assert np.abs(found - expected).max() <= 0.6  # half a level of rounding, and float32 in another batch
    assert read_prompts(tmp_path / "prompts.csv") == rows
    told = dataset.log(tmp_path)
    assert [line["images"] for line in told] == [2, 2, 2, 1]
    assert told[0]["steps_run"] == {"base": 1, "distilled": 3} and told[0]["nfe"] == {"base": 1, "distilled": 3}
    assert all(line["seconds"] > 0 for line in told)
    assert not list(tmp_path.rglob("*.partial"))


def test_what_is_there_is_left_and_what_is_missing_is_made_the_same(letters, tmp_path, monkeypatch):
    pair, rows = letters
    dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False)
    whole = images(tmp_path)
    made = []
    plain = dataset.generate
    monkeypatch.setattr(dataset, "generate", lambda *a, **k: made.append(k["seeds"]) or plain(*a, **k))
    assert dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False) == 0
    assert made == []
    kept = tmp_path / "images" / "002.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "images" / "003.png").unlink()
    assert dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False) == 1
    assert made == [[20, 30]]  # its whole batch, so that it is the same to the bit
    assert kept.stat().st_mtime_ns == before
    assert images(tmp_path) == whole


@pytest.mark.parametrize(("rank", "world", "order"), [(0, 1, [0, 1, 2, 3]), (0, 2, [0, 2, 1, 3]), (1, 3, [1, 0, 2, 3])])
def test_each_process_starts_with_its_own_share_and_helps_the_others(letters, tmp_path, rank, world, order):
    pair, rows = letters
    assert dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False, rank=rank, world=world) == 7
    assert [line["batch"] for line in dataset.log(tmp_path)] == order


def test_a_batch_that_another_process_holds_is_taken_last(letters, tmp_path):
    """Its holder dies in this process's second round: what it left is made."""
    pair, rows = letters
    (tmp_path / ".locks").mkdir()
    held = FileLock(tmp_path / ".locks" / "0.lock", thread_local=False)
    held.acquire()
    plain, done = dataset._make, []

    def make(*arguments):
        done.append(arguments[-1])
        if len(done) == 3:
            held.release()
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataset, "_make", make)
        dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False)
    assert done == [1, 2, 3, 0]


def test_a_folder_holds_one_job(letters, tmp_path):
    pair, rows = letters
    dataset.run(pair, rows[:2], tmp_path, settings=HYBRID, progress=False)
    for arguments, words in (
        ({"settings": HYBRID | {"k": 2}}, r"another job.*settings: there .* now .*'k': 2"),
        ({"batch_size": 1}, "batch_size: there 2, now 1"),
        ({"rows": rows[:3]}, "rows: there 2, now 3"),
        ({"rows": [rows[0], rows[1]._replace(seed=1)]}, "prompts: there"),
        ({"pair": replace(pair, fingerprint="other")}, "weights: there , now other"),
    ):
        given = {"pair": pair, "rows": rows[:2], "out": tmp_path, "settings": HYBRID, "progress": False} | arguments
        with pytest.raises(ValueError, match=words):
            dataset.run(**given)


def test_bad_arguments_and_bad_images_are_refused(letters, tmp_path, monkeypatch):
    pair, rows = letters
    with pytest.raises(ValueError, match="rank=2"):
        dataset.run(pair, rows, tmp_path, rank=2, world=2)
    with pytest.raises(ValueError, match="rows has 0"):
        dataset.run(pair, [], tmp_path)
    with pytest.raises(ValueError, match="batch_size=0"):
        dataset.run(pair, rows, tmp_path, batch_size=0)
    with torch.no_grad():
        pair.pipeline.vae.post_quant_conv.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="cases 000, 001 are not finite"):
        dataset.run(pair, rows, tmp_path, settings=HYBRID, progress=False)
    assert images(tmp_path) == {}


def test_a_failed_write_leaves_no_image(letters, tmp_path, monkeypatch):
    pair, rows = letters

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        dataset.run(pair, rows[:2], tmp_path, settings=HYBRID, progress=False)  # claims the folder
        (tmp_path / "images" / "001.png").unlink()
        patched.setattr(os, "fsync", full)
        dataset.run(pair, rows[:2], tmp_path, settings=HYBRID, progress=False)
    assert list(images(tmp_path)) == ["000.png"]


def test_a_log_line_cut_off_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a-1.jsonl").write_text('{"batch": 0}\n{"batch": 1')
    assert dataset.log(tmp_path) == [{"batch": 0}]


# Real processes on the embedded pair


def job(out, *more, prompts=SHIPPED, launcher=("-m",), **options) -> subprocess.Popen:
    command = [sys.executable, *launcher, "dtviz", "generate", "--prompts", str(prompts), "--out", str(out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **options)


@pytest.fixture(scope="module")
def emoji():
    return dtviz.load("emoji-dmd"), read_prompts(SHIPPED)[:48]


@pytest.fixture(scope="module")
def undisturbed(emoji, tmp_path_factory):
    """48 images by one process, in batches of two."""
    out = tmp_path_factory.mktemp("undisturbed")
    dataset.run(*emoji, out, settings=HYBRID, batch_size=2, progress=False)
    return images(out)


def test_two_processes_of_torchrun_make_the_same_images_and_share_the_work(undisturbed, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    small = ("--first", "48", "--batch-size", "2")
    done = job(tmp_path, *small, launcher=launcher, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = done.communicate(timeout=600)
    finally:
        done.terminate()  # torchrun ends its processes with it
    assert done.returncode == 0, err[-2000:]
    assert images(tmp_path) == undisturbed
    batches = [line["batch"] for line in dataset.log(tmp_path)]
    assert sorted(batches) == list(range(24))  # none twice
    assert "process 1 of 2" in out and "process 2 of 2" in out
    assert "48/48" in err  # one bar, of both processes' images


def forked(work) -> int:
    """A process of its own that runs `work`; it starts with what this one has loaded, so that a kill costs no seconds."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_killed_20_times_at_random_moments_nothing_is_lost(emoji, undisturbed, tmp_path):
    """Two processes on one folder, both killed again and again; every third time not before an image more is there."""
    rng, folder = random.Random(0), tmp_path / "images"
    folder.mkdir()
    counts = [0]

    def work():
        dataset.run(*emoji, tmp_path, settings=HYBRID, batch_size=2, progress=False)

    for i in range(20):
        two, ended = [forked(work) for _ in range(2)], time.monotonic() + 60
        while i % 3 == 0 and dataset.count(tmp_path) == counts[-1] < 48 and time.monotonic() < ended:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        for process in two:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        counts.append(dataset.count(tmp_path))
        for path in folder.glob("*.png"):
            with Image.open(path) as image:
                image.load()  # whole
    assert counts == sorted(counts)
    assert len(set(counts)) > 4 and counts[1] < 48  # it was really at work when it was killed
    work()
    assert images(tmp_path) == undisturbed
    batches = [line["batch"] for line in dataset.log(tmp_path)]
    assert sorted(batches) == sorted(set(batches))  # what was made was never made twice


def test_the_command_line_names_bad_rows_before_any_work(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("case_number,prompt,evaluation_seed\n1,a dog,x\n")
    done = job(tmp_path / "out", prompts=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (2, "")
    assert err.startswith("dtviz: ") and "line 2: evaluation_seed 'x'" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_the_folder_says_of_itself(letters, tmp_path):
    pair, rows = letters
    dataset.run(pair, rows[:2], tmp_path, settings=HYBRID, progress=False)
    facts = json.loads((tmp_path / "job.json").read_text())
    assert (facts["pair"], facts["rows"], facts["batch_size"]) == ("custom", 2, 2)
    assert facts["settings"]["method"] == "hybrid" and facts["settings"]["timesteps"] == [999, 749, 499, 249]
    with (tmp_path / "prompts.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["case_number", "prompt", "evaluation_seed"]
