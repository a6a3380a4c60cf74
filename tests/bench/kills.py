"""SIGKILL at 50 random moments of `figures` and of `generate`, each run to the end: what was lost, and whether it is the same.

python -m tests.bench.kills generate 50 30      # until 50 kills or 30 minutes; writes its row of figures/bench/kills.csv
python -m tests.bench.kills figures 50 30
python -m tests.bench.kills figures 15 10 --add     # other moments, counted with those in the file

A run that reaches its end is compared with the undisturbed one, bit by bit, and the next begins in new folders, so that kills
strike every stage. Every second kill takes the whole process group, as a power cut would; the others the command alone.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dtviz import dataset, table
from dtviz.store import Store

ROOT = Path(__file__).parents[2]
FIGURES = ["figures", "--only", "fig5", "-p", "n_seeds", "2", "-p", "n_prompts", "2"]  # Figure 5 of two prompts
FILE = ROOT / "figures" / "bench" / "kills.csv"
COUNTED = (
    "kills",
    "kills with some but not all done",
    "results lost or damaged",
    "runs to the end",
    "equal to the undisturbed",
)
GENERATE = ["generate", "--prompts", str(ROOT / "data" / "prompts" / "emoji.csv"), "--first", "24", "--batch-size", "4"]


def start(command: list[str], folder: Path) -> subprocess.Popen:
    environment = os.environ | {"DTVIZ_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "dtviz", *command, "--out", str(folder / "out")], cwd=ROOT, env=environment,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def results(folder: Path) -> dict[str, bytes]:
    """The files that have to be the same; an executed notebook tells the time, and is not among them."""
    kinds = (".png", ".pdf", ".csv", ".json")
    paths = [path for path in (folder / "out").rglob("*") if path.suffix in kinds and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def kept(folder: Path) -> set[str]:
    """What is in its place and whole: results of the store, images of the job. AssertionError: something is not whole."""
    entries = list(Store(folder / "store").entries())
    assert not [entry for entry in entries if entry.problem()]
    pictures = list((folder / "out" / "images").glob("*.png"))
    assert not [path for path in pictures if dataset._problem(path)]
    return {entry.name for entry in entries} | {path.name for path in pictures}


def killed(name: str, command: list[str], kills: int, minutes: float, home: Path, seed: int) -> dict[str, object]:
    """One row of the table; `seed` is of the moments."""
    rng, moments, until = random.Random(seed), [], time.monotonic() + 60 * minutes
    began = time.monotonic()
    assert start(command, home / "undisturbed").wait() == 0
    took = time.monotonic() - began
    expected, done, lost, finished, equal = results(home / "undisturbed"), 0, 0, 0, 0
    most = len(kept(home / "undisturbed"))
    folder, groups = home / "0", []

    def ended(process: subprocess.Popen) -> None:
        nonlocal finished, equal, folder
        assert process.wait() == 0
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)  # what a command killed alone has left behind
        finished, equal = finished + 1, equal + (results(folder) == expected)
        shutil.rmtree(folder, ignore_errors=True)
        folder = home / str(finished)
        groups.clear()

    while done < kills and time.monotonic() < until:
        before = kept(folder)
        process = start(command, folder)
        try:
            process.wait(rng.uniform(0, took))
        except subprocess.TimeoutExpired:
            (os.killpg if done % 2 else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            groups.append(process.pid)
            found = kept(folder)
            lost, done = lost + len(before - found), done + 1
            moments.append(len(found) / most)
            print(f"{name}: kill {done} at {len(found)} of {most} results", flush=True)
            if len(found) == most:  # all is there: a kill could hit nothing more
                ended(start(command, folder))
        else:
            ended(process)
    ended(start(command, folder))
    return {
        "job": name, "kills": done, "kills with some but not all done": sum(0 < share < 1 for share in moments),
        "results a run": most, "results lost or damaged": lost, "runs to the end": finished,
        "equal to the undisturbed": equal, "files compared a run": len(expected), "undisturbed": took,
    }  # fmt: skip


def main() -> None:
    name, kills, minutes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    rows = table.load(FILE) if FILE.exists() else pd.DataFrame(columns=["job"])
    before = rows[rows["job"] == name] if "--add" in sys.argv else rows[:0]
    with tempfile.TemporaryDirectory() as home:
        command = {"generate": GENERATE, "figures": FIGURES}[name]
        row = killed(name, command, kills, minutes, Path(home), seed=int(before["kills"].sum()))
    for counted in COUNTED:
        row[counted] += int(before[counted].sum())
    rows = pd.concat([rows[rows["job"] != name], pd.DataFrame([row])], ignore_index=True)
    print(table.save(rows, FILE, units={"undisturbed": "s"}))


if __name__ == "__main__":
    main()
