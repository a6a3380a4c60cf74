"""One image for each row of a prompts file: the 30,000-image job of Tables 2 and 4.

    rows = prompts.read("coco_30k.csv")
    dataset.run(dtviz.load("sdxl-dmd"), rows, "out/hybrid", settings={"method": "hybrid"})

Any number of processes and hosts may run the same job on the same folder at once: each claims a batch by a lock on a file,
which the system takes back when its holder dies. A batch is always the same rows, whoever makes it and whenever, so an
image does not depend on how the job was cut.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm.auto import tqdm

from .decode import decode
from .generate import generate
from .outside import reading
from .pairs import Pair
from .prompts import CASES, Row
from .store import write_whole

FORMAT = "dtviz.dataset/1"


def run(
    pair: Pair,
    rows: Sequence[Row],
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> int:
    """Make the image of every row that is not in the folder yet, and return when all are there.

    Killed at any time it loses at most the batch in flight; run it again to go on. An image that was deleted, or is damaged
    (a warning names it), is made again, the same to the bit on the same kind of machine. Processes share the work through the folder, which all of them see.

    Args:
        pair: the base and its student.
        rows: what to make, as `prompts.read` gives it.
        out: the folder: `images/<case>.png`, 8 bits, as generated; `prompts.csv`; `job.json`, what the images are of;
            `log/`, of each batch the steps that really ran and the seconds from prompt to image.
        settings: what `generate` is given beside pair, prompt, seeds and batch size: method, k, steps, guidance ...
        batch_size: rows denoised together; None takes the pair's.
        rank, world: this process among those started together; only where it starts in the list depends on it.
        progress: show a bar, of all processes' images.

    Returns:
        How many images this process made.

    Raises:
        ValueError: the folder holds images of another job, a setting is not `generate`'s, or an image is not finite.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} must be from 0 to world - 1, world={world}")
    out, rows, settings = Path(out), list(rows), dict(settings or {})
    size = pair.batch_size if batch_size is None else batch_size
    if not rows or size < 1:
        raise ValueError(f"rows has {len(rows)} entries, batch_size={size}: both must be at least 1")
    if bad := [row.case for row in rows if not CASES.fullmatch(row.case)]:
        raise ValueError(f"case {bad[0][:210]!r} names no file: it must be a word of letters, digits, - and _")
    for folder in ("images", "log", ".locks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _claim(out, rows, _facts(pair, rows, settings, size))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    order = [*range(rank, len(blocks), world)]
    order += sorted(set(range(len(blocks))) - set(order))  # done with its own, it helps the others
    made = 0
    with tqdm(total=len(rows), initial=count(out), unit="image", disable=not progress) as bar:
        for i in _open(out, blocks, order):
            made += _make(pair, blocks[i], out, settings, i)
            bar.update(count(out) - bar.n)
        bar.update(count(out) - bar.n)
    return made


def log(out: str | Path) -> list[dict[str, Any]]:
    """What each batch told: batch, images, seconds, device, steps_run, nfe; a line cut off by a kill is left out."""
    told = []
    for path in sorted(Path(out).glob("log/*.jsonl")):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, RecursionError):
                told.append(json.loads(line))
    return [one for one in told if isinstance(one, dict)]


def count(out: str | Path) -> int:
    """How many images are in a job's folder."""
    with os.scandir(Path(out) / "images") as entries:
        return sum(entry.name.endswith(".png") for entry in entries)


def _open(out: Path, blocks: list[list[Row]], order: list[int]) -> Iterator[int]:
    """The blocks that lack an image, each held by this process alone while it is at it.

    First those that nobody holds; then, waiting, those that others held: if they were killed, they are ours.
    """
    left = list(order)
    for patience in (0, -1):
        for i in list(left):
            try:
                if not _whole(out, blocks[i]):
                    with FileLock(out / ".locks" / f"{i}.lock", timeout=patience):
                        if not _whole(out, blocks[i]):  # another process may have made it while we waited
                            yield i
            except Timeout:
                continue
            left.remove(i)


def _whole(out: Path, block: list[Row]) -> bool:
    return not any(_problem(out / "images" / f"{row.case}.png") for row in block)


def _problem(path: Path) -> str:
    """What is wrong with an image, "" when it is there and whole to the last bit: a PNG has a checksum of each part."""
    try:
        with reading(path), Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except FileNotFoundError:
        return "missing"
    except ValueError as error:
        return str(error)
    return ""


def _make(pair: Pair, block: list[Row], out: Path, settings: Mapping[str, Any], number: int) -> int:
    """Generate a whole block and write the images that are missing; how many these were."""
    start = time.perf_counter()
    prompts, seeds = [row.prompt for row in block], [row.seed for row in block]
    trace = generate(pair, prompts, seeds=seeds, batch_size=len(block), **settings)
    images = decode(trace, pair, what="final").permute(0, 2, 3, 1).numpy()
    seconds = time.perf_counter() - start  # the images are in the host's memory, so the device is done
    if bad := [row.case for row, image in zip(block, images, strict=True) if not np.isfinite(image).all()]:
        raise ValueError(f"the images of cases {', '.join(bad)} are not finite: did half precision overflow?")
    made = 0
    for row, image in zip(block, images, strict=True):
        path = out / "images" / f"{row.case}.png"
        if problem := _problem(path):
            if problem != "missing":
                warnings.warn(f"{problem}; it is made again", stacklevel=3)
            data = io.BytesIO()
            Image.fromarray((image * 255).round().astype(np.uint8)).save(data, "png", compress_level=1)
            write_whole(path, data.getvalue())
            made += 1
    told = {"batch": number, "images": len(block), "seconds": seconds, "device": pair.base.device.type}
    told |= {"steps_run": trace.steps_run, "nfe": trace.provenance["nfe"]}
    with (out / "log" / f"{socket.gethostname()}-{os.getpid()}.jsonl").open("a") as file:
        # a break first: in a container the process before had the same number, and may have been killed within a line
        file.write(f"\n{json.dumps(told)}\n")
    return made


def _facts(pair: Pair, rows: list[Row], settings: dict[str, Any], size: int) -> dict[str, Any]:
    """All that decides what the images are."""
    usual = ("steps", "base_steps", "timesteps", "guidance", "base_guidance", "handover", "size")
    usual += ("call",) if pair.call else ()
    chosen = {name: getattr(pair, name) for name in usual} | {n: v for n, v in settings.items() if v is not None}
    facts = {
        "format": FORMAT,
        "pair": pair.name,
        "weights": pair.fingerprint,
        "settings": chosen,
        "rows": len(rows),
        "prompts": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "batch_size": size,
        "numbers": [str(pair.base.dtype), pair.base.device.type, version("torch"), version("diffusers")],
    }
    return json.loads(json.dumps(facts))  # as it reads back: tuples are lists


def _claim(out: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write what the folder is for, or refuse it when it is for something else."""
    with FileLock(out / ".locks" / "job.lock"):
        if (out / "job.json").exists():
            with reading(out / "job.json"):
                found = dict(json.loads((out / "job.json").read_text()))
            if other := [name for name in facts if found.get(name) != facts[name]]:
                told = "; ".join(f"{name}: there {found.get(name)}, now {facts[name]}" for name in other)
                raise ValueError(f"{out} holds images of another job, give a new folder ({told})")
            return
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # a prompt may hold a line break
        table.writerows([("case_number", "prompt", "evaluation_seed"), *rows])
        write_whole(out / "prompts.csv", text.getvalue().encode())
        write_whole(out / "job.json", (json.dumps(facts, indent=1) + "\n").encode())
