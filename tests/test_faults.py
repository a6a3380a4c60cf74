"""Disks that are full or may not be written, clocks that go back, kills and Ctrl-C, all of them real: nothing is lost."""

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
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

import dtviz
from dtviz import dataset, figures, table
from dtviz.__main__ import main
from dtviz.embed import _sha256
from dtviz.prompts import Row
from dtviz.store import Store
from dtviz.study import Study, save_figure

ROOT = Path(__file__).parents[1]
ARRAYS = {"x": np.arange(1000.0)}


def never():
    raise AssertionError("made again")


@pytest.fixture
def disk(tmp_path):
    """A disk of a megabyte of its own, mounted; `remount` changes it to "ro" or "rw"."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


@contextmanager
def full(folder: Path, left: int = 0):
    """No more space in `folder` than `left` bytes, whole pages."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - left)
    yield
    ballast.unlink()


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]


# A full disk


def test_a_full_disk_names_the_file_and_takes_nothing_that_was_there(disk):
    store = Store(disk / "store")
    store.fetch("a", {"seed": 1}, lambda: ARRAYS)
    figure = save(disk)
    before = {path.name: path.read_bytes() for path in figure}
    path = store.path("a", {"seed": 2})
    path.parent.mkdir(parents=True)
    trace = dtviz.Trace(torch.zeros(2, 1, 4, 64, 64), torch.ones(2), torch.ones(2), torch.zeros(1, 4, 64, 64))
    with full(disk, left=4096):  # a file can be begun
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            store.fetch("a", {"seed": 2}, lambda: ARRAYS)
        with pytest.raises(OSError, match=r"No space left on device: '.*/figure\.png'"):
            save(disk)
        with pytest.raises(OSError, match=r"No space left on device: '.*/t\.csv'"):
            table.save(pd.DataFrame({"n": range(3000)}), disk / "t.csv", units={})
        with pytest.raises(OSError, match=r"No space left on device: '.*/x\.trace'"):
            trace.save(disk / "x.trace")
        assert not leftovers(disk) and not path.exists() and not (disk / "x.trace").exists()
        np.testing.assert_array_equal(store.fetch("a", {"seed": 1}, never)["x"], ARRAYS["x"])
        assert {path.name: path.read_bytes() for path in figure} == before
    store.fetch("a", {"seed": 2}, lambda: ARRAYS)
    np.testing.assert_array_equal(store.fetch("a", {"seed": 2}, never)["x"], ARRAYS["x"])


def save(folder: Path) -> list[Path]:
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.plot([1, 2])
    paths = save_figure(figure, folder, "figure", provenance={"seeds": [1]})
    plt.close(figure)
    return paths


def test_a_figure_is_the_same_file_every_time(tmp_path):
    first, second = ([path.read_bytes() for path in save(tmp_path / name)] for name in "ab")
    assert first == second


def test_a_job_on_a_full_disk_goes_on_when_there_is_space(pair, disk, tmp_path):
    rows = [Row(f"{i:03}", "a dog", i) for i in range(6)]
    dataset.run(pair, rows, tmp_path / "whole", progress=False)
    expected = images(tmp_path / "whole")
    dataset.run(pair, rows, disk / "job", progress=False)
    for name in ("002.png", "003.png", "005.png"):
        (disk / "job" / "images" / name).unlink()
    with full(disk), pytest.raises(OSError, match="No space left on device"):
        dataset.run(pair, rows, disk / "job", progress=False)
    found = images(disk / "job")
    assert {"000.png", "001.png", "004.png"} <= found.keys() and not leftovers(disk)
    assert all(expected[name] == data for name, data in found.items())
    dataset.run(pair, rows, disk / "job", progress=False)
    assert images(disk / "job") == expected
    assert all(set(line) >= {"batch", "images"} for line in dataset.log(disk / "job"))


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "images").glob("*.png")}


def test_the_command_line_says_a_full_disk_in_one_line(disk, capsys):
    prompts = str(ROOT / "data" / "prompts" / "emoji.csv")
    with full(disk):
        status = main(["generate", "--prompts", prompts, "--out", str(disk / "job"), "--first", "2"])
    said = capsys.readouterr().err.splitlines()
    assert status == 2
    assert re.fullmatch(r"dtviz: \[Errno 28\] No space left on device: '.*'", said[-1])


def test_a_notebook_that_fills_the_disk_is_a_failure_with_a_reason(disk, tmp_path):
    """What papermill had written of it is cut off, and is no notebook any more."""
    write_notebook(
        tmp_path / "notebooks" / "fig5_curve.ipynb",
        "from tests.test_faults import full\nfrom pathlib import Path\nfull(Path(out)).__enter__()\nprint('x' * 10**6)",
    )
    with pytest.raises(figures.NotebookError, match="fig5_curve.*No space left on device"):
        figures.run(out=disk, folder=tmp_path / "notebooks")
    assert not (disk / "fig5_curve.ipynb").exists()


def write_notebook(path: Path, source: str) -> None:
    """A notebook of a parameters cell and this one."""
    path.parent.mkdir()
    parameters = 'pair: str = "emoji-dmd"\nprofile: str = "quick"\nout: str = ""'
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


# A disk that may only be read


def test_a_store_that_may_only_be_read_is_read_and_refuses_what_it_lacks(disk, pair, capsys):
    study = Study(replace(pair, fingerprint="known"), None, (0, 1), Store(disk))
    expected = study.trace("a dog", "distilled")
    remount(disk, "ro")
    found = Study(study.pair, None, (0, 1), Store(disk)).trace("a dog", "distilled")
    assert torch.equal(found.final, expected.final)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        study.trace("a cat", "distilled")
    assert len(str(caught.value).splitlines()) == 1
    assert main(["store", "verify", "--root", str(disk)]) == 0
    name = next(iter(study.store.entries())).name
    assert main(["store", "rm", name, "--root", str(disk)]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    remount(disk, "rw")
    assert study.trace("a cat", "distilled").prompt == "a cat"


# Images that were damaged after they were made


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_image_of_a_job_is_named_and_made_again_the_same(pair, tmp_path, damage):
    rows = [Row(f"{i:03}", "a dog", i) for i in range(4)]
    dataset.run(pair, rows, tmp_path, progress=False)
    expected = images(tmp_path)
    path = tmp_path / "images" / "002.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes({"cut": path.read_bytes()[:-20], "flip": bytes(data), "empty": b""}[damage])
    with pytest.warns(UserWarning, match=r"002\.png cannot be read, is it damaged.*made again") as said:
        assert dataset.run(pair, rows, tmp_path, progress=False) == 1
    assert len(said) == 1
    assert images(tmp_path) == expected


def test_a_log_line_cut_off_in_a_container_does_not_hide_the_next(pair, tmp_path):
    """There the next process may have the number of the one that was killed, and goes on in its file."""
    rows = [Row(f"{i:03}", "a dog", i) for i in range(2)]
    dataset.run(pair, rows, tmp_path, progress=False)
    [path] = (tmp_path / "log").iterdir()
    path.write_text(path.read_text().strip()[:40])
    (tmp_path / "images" / "000.png").unlink()
    dataset.run(pair, rows, tmp_path, progress=False)
    assert [line["images"] for line in dataset.log(tmp_path)] == [2]


def test_results_that_another_process_removes_meanwhile(tmp_path):
    store = Store(tmp_path)
    for seed in range(3):
        store.fetch("a", {"seed": seed}, lambda: ARRAYS)
    found = store.entries()
    first = next(found)
    for path in tmp_path.rglob("*.safetensors"):
        if path != first.path:
            path.unlink()
    assert list(found) == []
    assert store.fetch("a", {"seed": 9}, lambda: ARRAYS)["x"].sum() == ARRAYS["x"].sum()


# Clocks


@pytest.mark.parametrize("then", [0, 4_000_000_000])  # 1970, 2096
def test_time_stamps_decide_nothing(pair, tmp_path, then):
    study = Study(replace(pair, fingerprint="known"), None, (0, 1), Store(tmp_path / "store"))
    study.trace("a dog", "distilled")
    rows = [Row("1", "a dog", 1)]
    dataset.run(pair, rows, tmp_path / "job", progress=False)
    for path in tmp_path.rglob("*"):
        os.utime(path, (then, then))
    again = Study(study.pair, None, (0, 1), Store(tmp_path / "store"))
    again.pair.base.forward = never
    again.pair.distilled.forward = never
    again.trace("a dog", "distilled")
    assert dataset.run(pair, rows, tmp_path / "job", progress=False) == 0


def test_a_file_replaced_under_the_same_time_stamp_is_another_file(tmp_path):
    def digest(path: Path) -> str:
        found = path.stat()
        return _sha256(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))

    path = tmp_path / "weights"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    before = digest(path)
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert digest(path) != before


# Ctrl-C


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of dtviz that is executed: where a signal's handler may run."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0

    def __call__(self, frame, event, _):
        if event == "call" and "/dtviz/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.n:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def interrupted(work, n: int) -> int:
    """Run `work` and stop it at its n-th line; how many lines there were until then."""
    trace = Interrupt(n)
    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(earlier)
    return trace.seen


def test_an_interruption_at_any_line_leaves_the_pipeline_as_it_was(pair):
    pipe, usual = pair.pipeline, {"method": "hybrid", "handover": "matched-sigma", "k": 2, "seeds": [1, 2]}
    expected = dtviz.generate(pair, "a dog", **usual)
    scheduler = pipe.scheduler

    def work():
        dtviz.generate(pair, "a dog", **usual)

    lines = interrupted(work, 0)
    assert lines > 500
    rng = random.Random(0)
    for n in sorted(rng.sample(range(1, lines), 40)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(work, n)
        assert pipe.scheduler is scheduler, n
        assert "forward" not in vars(pair.base) and "forward" not in vars(pair.distilled), n
    again = dtviz.generate(pair, "a dog", **usual)
    assert torch.equal(again.x0, expected.x0) and torch.equal(again.final, expected.final)


def test_an_interruption_within_a_capture_leaves_what_was_seen_and_the_scheduler_as_it_was(pair):
    pipe, kind = pair.pipeline, type(pair.pipeline.scheduler)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with (
        pipe.unet.register_forward_pre_hook(stop),
        pytest.raises(KeyboardInterrupt),
        dtviz.capture(pipe) as trace,
    ):
        pipe("a dog", num_inference_steps=5, output_type="latent")
    assert len(trace.x0) == 2
    assert type(pipe.scheduler) is kind and not pipe.unet._forward_hooks


def test_ctrl_c_in_a_notebook_loses_nothing(tmp_path):
    """A real kernel, really interrupted while it generates: what was kept is kept, and the cell runs again to the same bits."""
    cell = """
import numpy as np
from dtviz.study import Study
study = Study.open("emoji-dmd", seeds=range(10), measure=False)
done = []
for prompt in ("sunset", "dog face", "cityscape"):
    found = study.trace(prompt, "distilled").final.numpy()
    done.append(found)
    print("made", prompt, flush=True)
print(float(np.concatenate(done).sum(dtype=np.float64)))
"""
    environment = os.environ | {"DTVIZ_STORE": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    how = {"kernel_name": "python3", "kernel_manager_class": "jupyter_client.manager.KernelManager"}
    manager = NotebookClient(nbformat.v4.new_notebook(), **how).create_kernel_manager()
    manager.start_kernel(env=environment, cwd=str(ROOT))
    client = manager.client()
    client.start_channels()
    texts, said = [], []

    def hear(message):
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])
            if "made sunset" in "".join(texts) and len(said) == 0:
                said.append("interrupted")
                manager.interrupt_kernel()

    try:
        client.wait_for_ready(timeout=120)
        reply = client.execute_interactive(cell, output_hook=hear, timeout=300)["content"]
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
        kept = list(tmp_path.rglob("*.safetensors"))
        assert len(kept) >= 1 and not leftovers(tmp_path)
        stamps = {path: path.stat().st_mtime_ns for path in kept}
        texts.clear()
        assert client.execute_interactive(cell, output_hook=hear, timeout=300)["content"]["status"] == "ok"
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())  # read, not made again
        first = "".join(texts).split()[-1]
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()
        texts.clear()
        client.execute_interactive(cell, output_hook=hear, timeout=300)  # all anew, in one go
        assert "".join(texts).split()[-1] == first
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_ctrl_c_on_the_command_line_is_one_line_and_status_130(tmp_path):
    prompts = str(ROOT / "data" / "prompts" / "emoji.csv")
    command = [sys.executable, "-m", "dtviz", "generate", "--prompts", prompts, "--out", str(tmp_path / "out")]
    command += ["--first", "60", "--batch-size", "2", "--method", "distilled"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background jobs ignore it
    ) as process:  # fmt: skip
        until = time.monotonic() + 120
        while len(images(tmp_path / "out")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert re.split(r"[\r\n]+", err.strip())[-1] == "dtviz: interrupted" and "Traceback" not in err
    made = images(tmp_path / "out")
    assert 2 <= len(made) < 60 and not leftovers(tmp_path)
    assert all(not dataset._problem(tmp_path / "out" / "images" / name) for name in made)


# SIGKILL of `figures`; of `generate` see test_dataset.py, and tests/bench/kills.py for 50 of each on real notebooks


NOTEBOOK = """
import numpy as np, pandas as pd
from dtviz import table
from dtviz.store import Store, write_whole
from pathlib import Path
found = [Store().fetch("a", {"i": i}, lambda: {"x": np.random.default_rng(i).normal(size=200_000)})["x"] for i in range(20)]
means = pd.DataFrame({"i": range(20), "mean": [x.mean() for x in found]})
table.save(means, Path(out) / "fig5_curve.csv", units={"mean": "1"})
write_whole(Path(out) / "fig5_curve.png", b"".join(x.tobytes() for x in found), shared=True)
"""


def test_figures_killed_at_random_moments_and_run_to_the_end_are_the_same(tmp_path):
    write_notebook(tmp_path / "notebooks" / "fig5_curve.ipynb", NOTEBOOK)
    script = (
        "import sys; from dtviz import __main__, figures\n"
        f"paths = figures.paths; figures.paths = lambda folder: paths({str(tmp_path / 'notebooks')!r})\n"
        "figures.IMPORTS = ('papermill.cli', 'ipykernel.kernelapp')\n"
        "sys.exit(__main__.main(['figures', '--out', sys.argv[1]]))"
    )

    def start(name: str) -> subprocess.Popen:
        environment = os.environ | {"DTVIZ_STORE": str(tmp_path / f"{name}-store"), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)], cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    began = time.monotonic()
    assert start("undisturbed").wait(120) == 0
    took, rng = time.monotonic() - began, random.Random(0)
    for group in (True, False):
        process = start("killed")
        time.sleep(rng.uniform(0.3, 0.9) * took)
        # the whole group, as a power cut; or `figures` alone, which takes its notebooks along
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    assert start("killed").wait(120) == 0
    for name in ("fig5_curve.csv", "fig5_curve.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert [entry.problem() for entry in Store(tmp_path / "killed-store").entries()] == [""] * 20
    assert (tmp_path / "killed" / "fig5_curve.ipynb").exists()
