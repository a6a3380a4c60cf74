"""Full and read-only disks, damaged images, Ctrl-C and kills, all of them real: no result is lost."""

import linecache
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import dtviz
from dtviz.__main__ import main
from dtviz.experiments import dataset, notebooks, tables
from dtviz.experiments.cache import Cache
from dtviz.experiments.dataset import Row, generate_images
from dtviz.experiments.study import Study, save_figure
from dtviz.files import ROOT

from .test_experiments_cache import never
from .test_experiments_dataset import PROMPTS, contents
from .test_experiments_notebooks import write
from .tiny import add_lora

ROWS = [Row(f"{i:03}", "a dog", i) for i in range(8)]


# Disks


@pytest.fixture
def disk(tmp_path):
    """A mounted disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def full(folder: Path, left: int = 0):
    """Leave `left` bytes of space, whole pages, on the disk inside the block."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - left)
    yield
    ballast.unlink()


def test_a_full_disk_is_named_and_earlier_files_stay(disk):
    cache, trace = Cache(disk), dtviz.Trace(torch.ones(2, 1, 4, 64, 64), torch.ones(2), torch.ones(2), torch.ones(1, 4))
    figure, path = plt.figure(figsize=(2, 2)), cache.path("a", {"seed": 2})
    figure.subplots().plot([1, 2])
    path.parent.mkdir(parents=True)
    writes = {
        path.name: lambda: cache.get_or_compute("a", {"seed": 2}, lambda: {"x": np.ones(1000)}),
        "figure.png": lambda: save_figure(figure, disk, "figure", provenance={"seeds": [1]}),
        "t.csv": lambda: tables.save(pd.DataFrame({"n": range(3000)}), disk / "t.csv", units={}),
        "x.trace": lambda: trace.save(disk / "x.trace"),
    }
    cache.get_or_compute("a", {"seed": 1}, lambda: {"x": np.zeros(1)})
    writes["figure.png"]()
    before = contents(disk, ".*")
    with full(disk, left=4096):  # enough to begin a file
        for name, write in writes.items():
            with pytest.raises(OSError, match=f"No space left on device: '.*/{name}'"):
                write()
        cache.get_or_compute("a", {"seed": 1}, never)
        assert contents(disk, ".*") == before
    for write in writes.values():
        write()
    assert torch.equal(dtviz.Trace.load(disk / "x.trace").x0, trace.x0)
    plt.close(figure)


def test_a_job_on_a_full_disk_goes_on_when_there_is_space(pair, disk):
    generate_images(pair, ROWS, disk, progress=False)
    expected = contents(disk, ".png")
    for name in ("002.png", "003.png", "005.png"):
        (disk / "images" / name).unlink()
    with full(disk), pytest.raises(OSError, match="No space left on device"):
        generate_images(pair, ROWS, disk, progress=False)
    assert len(contents(disk, ".png")) >= 5 and contents(disk, ".png").items() <= expected.items()
    generate_images(pair, ROWS, disk, progress=False)
    assert contents(disk, ".png") == expected and not contents(disk, ".partial")


def test_the_command_line_says_a_full_disk_in_one_line(disk, capsys):
    with full(disk):
        status = main(f"generate --prompts {PROMPTS} --out {disk / 'job'}".split())
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and re.fullmatch(r"dtviz: \[Errno 28\] No space left on device: '.*'", last)


FILL = """
from contextlib import suppress
with suppress(OSError), open(f"{out}/x", "wb") as file:
    file.write(bytes(2**21))
print("x" * 10**6)
"""


def test_a_notebook_that_fills_the_disk_is_a_failure_with_a_reason(disk, tmp_path):
    """Papermill cannot finish its file. A cut-off file is not kept as a notebook."""
    (tmp_path / "notebooks").mkdir()
    write(tmp_path / "notebooks", "fig5_curve", FILL)
    with pytest.raises(notebooks.NotebookError, match="fig5_curve.*No space left on device"):
        notebooks.run(out=disk, folder=tmp_path / "notebooks")
    assert not (disk / "fig5_curve.ipynb").exists()


def test_a_read_only_cache_is_read_and_refuses_a_new_result(pair, disk):
    study = Study(replace(pair, fingerprint="known"), None, (0, 1), Cache(disk))
    expected = study.trace("a dog", "distilled")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert torch.equal(study.trace("a dog", "distilled").final, expected.final)
    with pytest.raises(OSError, match="^[^\n]*Read-only file system[^\n]*$"):
        study.trace("a cat", "distilled")


# Ctrl-C


@pytest.mark.parametrize("distilled", ["network", "LoRA"])
def test_an_interruption_at_any_line_leaves_the_pipeline_as_it_was(pair, distilled):
    """At 80 different lines up to the last denoiser call. After it, Python itself may be interrupted in a `with`'s exit."""
    if distilled == "LoRA":
        add_lora(pair.base, "fast")
        pair = replace(pair, distilled="fast")
    scheduler, count, stop, first, calls = pair.pipeline.scheduler, 0, 0, {}, []
    last, modules = pair.base if distilled == "LoRA" else pair.distilled, list(pair.base.modules())

    def trace(frame, event, _):
        nonlocal count
        path, line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and linecache.getline(path, line).strip() != "try:":  # where no signal's handler runs
            count += 1
            first.setdefault((path, line), count)
            if count == stop:
                raise KeyboardInterrupt
        return trace if "/dtviz/" in path else None

    def run(tracer=None) -> dtviz.Trace:
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            return dtviz.generate(pair, "a dog", method="hybrid", handover="matched-sigma", k=2, seeds=[1, 2])
        finally:
            sys.settrace(before)

    with last.register_forward_hook(lambda *_: calls.append(count)):
        expected = run(trace)
    places = {number: place for place, number in first.items() if number < calls[-1]}
    for stop in random.Random(0).sample(sorted(places), 80):
        count = 0
        with pytest.raises(KeyboardInterrupt):
            run(trace)
        assert pair.pipeline.scheduler is scheduler, places[stop]
        for network in (pair.base, last):
            assert "forward" not in vars(network) and not network._forward_pre_hooks, places[stop]
        assert list(pair.base.modules()) == modules, places[stop]
    again = run()
    assert torch.equal(again.x0, expected.x0) and torch.equal(again.final, expected.final)


def test_ctrl_c_on_the_command_line_is_one_line_and_status_130(tmp_path, capsys, monkeypatch):
    def count_images(out: Path) -> int:
        return signal.raise_signal(signal.SIGINT) if contents(out, ".png") else 0

    monkeypatch.setattr(dataset, "count_images", count_images)  # called after each batch
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    status = main(f"generate --prompts {PROMPTS} --out {tmp_path} --batch-size 2 --method distilled".split())
    signal.signal(signal.SIGINT, handler)
    out, err = capsys.readouterr()
    assert (status, out, re.split(r"[\r\n]+", err.strip())[-1]) == (130, "", "dtviz: interrupted")
    assert "Traceback" not in err and len(contents(tmp_path, ".png")) == 2 and not contents(tmp_path, ".partial")


# SIGKILL of `figures`. For `generate` see test_experiments_dataset.py

NOTEBOOK = """
import numpy as np
from pathlib import Path
from dtviz.experiments.cache import Cache
draw = lambda i: {"x": np.random.default_rng(i).normal(size=200_000)}
arrays = [Cache().get_or_compute("a", {"i": i}, lambda: draw(i))["x"] for i in range(20)]
(Path(out) / "x").write_bytes(b"".join(x.tobytes() for x in arrays))
"""


def test_figures_killed_twice_and_run_to_the_end_are_the_same(tmp_path):
    folder, out, cache = (tmp_path / name for name in ("notebooks", "out", "cache"))
    folder.mkdir()
    write(folder, "fig5_curve", NOTEBOOK)
    code = f"from dtviz.experiments import notebooks; notebooks.run(folder={str(folder)!r}, out={str(out)!r})"

    def start() -> subprocess.Popen:
        environment = os.environ | {"DTVIZ_STORE": str(cache), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, start_new_session=True)

    # the whole process group, as a power cut would; then `figures` alone, which ends its notebooks and their kernels
    for kill, least in ((os.killpg, 3), (os.kill, 12)):
        process = start()
        while len(list(cache.rglob("*.safetensors"))) < least and process.poll() is None:
            time.sleep(0.005)
        kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (out / "fig5_curve.ipynb").exists()
    assert start().wait(300) == 0 and (out / "fig5_curve.ipynb").exists()
    arrays = [np.random.default_rng(i).normal(size=200_000) for i in range(20)]
    assert (out / "x").read_bytes() == b"".join(x.tobytes() for x in arrays)
    for i, expected in enumerate(arrays):
        np.testing.assert_array_equal(Cache(cache).get_or_compute("a", {"i": i}, never)["x"], expected)
