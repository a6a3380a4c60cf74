"""SIGKILL at 50 random moments of `figures` and of `generate`, each then run to the end: what was lost, and is it the same.

python -m tests.bench.kills generate 50 30      # until 50 kills or 30 minutes; writes its row of figures/bench/kills.csv
python -m tests.bench.kills figures 50 30
python -m tests.bench.kills figures 15 10 --add     # other moments, counted with those in the file

A run that reaches its end is compared with the undisturbed one, bit by bit. The next one starts in new folders, so that kills
hit every stage. Every second kill ends the whole process group, as a power cut would. The others end the command alone.
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
from safetensors import safe_open

from dtviz.experiments import dataset, tables
from dtviz.files import ROOT, content_hash

FIGURES = ["figures", "--only", "fig5", "-p", "n_seeds", "2", "-p", "n_prompts", "2"]  # Figure 5 of two prompts
FILE = ROOT / "figures" / "bench" / "kills.csv"
COUNTED = ["kills", "kills with some but not all done", "results lost or damaged", "runs to the end"]
COUNTED += ["equal to the undisturbed"]
GENERATE = ["generate", "--prompts", str(ROOT / "data" / "prompts" / "emoji.csv"), "--first", "24", "--batch-size", "4"]


def start(command: list[str], folder: Path) -> subprocess.Popen:
    environment = os.environ | {"DTVIZ_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "dtviz", *command, "--out", str(folder / "out")], cwd=ROOT, env=environment,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def results(folder: Path) -> dict[str, bytes]:
    """Return the files that have to be the same. An executed notebook contains times and is not among them."""
    kinds = (".png", ".pdf", ".csv", ".json")
    paths = [path for path in (folder / "out").rglob("*") if path.suffix in kinds and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def kept(folder: Path) -> set[str]:
    """Return the names of cached results and images of the job, after checking that each is complete."""
    results = list((folder / "store").rglob("*.safetensors"))
    for path in results:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            assert file.metadata()["sha256"] == content_hash(file.metadata()["settings"], arrays), path
    images = list((folder / "out" / "images").glob("*.png"))
    for path in images:
        dataset.read_image(path)
    return {path.stem for path in results} | {path.name for path in images}


def killed(name: str, command: list[str], kills: int, minutes: float, home: Path, seed: int) -> dict[str, object]:
    """Return one row of the table. `seed` decides the moments."""
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
                os.killpg(group, signal.SIGKILL)  # what a command that was killed alone left behind
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
            names = kept(folder)
            lost, done = lost + len(before - names), done + 1
            moments.append(len(names) / most)
            print(f"{name}: kill {done} at {len(names)} of {most} results", flush=True)
            if len(names) == most:  # complete: a kill could hit nothing more
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
    rows = tables.load(FILE) if FILE.exists() else pd.DataFrame(columns=["job"])
    before = rows[rows["job"] == name] if "--add" in sys.argv else rows[:0]
    with tempfile.TemporaryDirectory() as home:
        command = {"generate": GENERATE, "figures": FIGURES}[name]
        row = killed(name, command, kills, minutes, Path(home), seed=int(before["kills"].sum()))
    for counted in COUNTED:
        row[counted] += int(before[counted].sum())
    rows = pd.concat([rows[rows["job"] != name], pd.DataFrame([row])], ignore_index=True)
    print(tables.save(rows, FILE, units={"undisturbed": "s"}))


if __name__ == "__main__":
    main()
