"""A folder of images measured: against real ones, and against the prompts they were made from (Tables 2 and 4).

    table = score(out, reference="val2014", embed=embedder("inception"), text=embedder("clip:openai/clip-vit-large-patch14"))

Each number says what it was measured with: network, resize, file format, and how many images on both sides.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from . import dataset, prompts, quality
from .embed import Embedder
from .estimate import Estimate
from .outside import reading
from .store import Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CMMD = "clip:openai/clip-vit-large-patch14-336"  # whose features give a CMMD its name
UNITS = {"value": "see measure", "low": "see measure", "high": "see measure"}


def score(
    out: str | Path,
    *,
    embed: Embedder,
    reference: str | Path | None = None,
    text: Embedder | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row a measure, with its interval where it has one.

    Against a reference: FD, kernel distance, precision, recall, density, coverage, which with Inception-v3 are called FID and
    KID; with a text embedder also its Gaussian MMD. Without one: class score (Inception score), CLIP score by the prompts
    of the job, denoiser evaluations and seconds an image. A substitute network's number never has the original's name. An
    FD is biased by about 1 / n and depends on resize and file format: compare rows that share these columns only. The
    kernel distance's interval takes images for independent; with many a prompt it is too narrow.

    Args:
        out: a job's folder, or any folder of images.
        embed: the network whose features are compared.
        reference: a folder of real images, or another job's.
        text: a CLIP, for the cosine of image and prompt.
        store: where features are kept, by the images' bytes; None takes the usual place.
        progress: show a bar.

    Returns:
        Columns measure, value, low, high, n, n_reference, embedder, resize, images (their size and format).

    Raises:
        ValueError: the job is not finished, a folder holds no images, `text` is given and there are no prompts, or
            a prompt is longer than it reads.
    """
    out, store = Path(out), store or Store()
    files = images(out)
    rows = prompts.read(out / "prompts.csv") if (out / "prompts.csv").exists() else None
    if rows is not None and len(files) != len(rows):
        raise ValueError(f"{out} holds {len(files)} of {len(rows)} images: run its `generate` again to finish it")
    if text is not None and rows is None:
        raise ValueError(f"text={text.name!r}: {out} has no prompts.csv, so its images have no known prompts")
    if text is not None:  # read first: a prompt that is too long is refused before any image is looked at
        said = {row.case: row.prompt for row in rows}
        of = [said[file.stem] for file in files]
        distinct = list(dict.fromkeys(of))
        words = dict(zip(distinct, text.text(distinct), strict=True))
    made = features(files, embed, store=store, progress=progress)
    table, kind = [], describe(files)

    def add(measure: str, value: float | Estimate, by: Embedder | None = None, other: int | None = None) -> None:
        one = value if isinstance(value, Estimate) else Estimate(float(value), np.nan, np.nan, len(files))
        row = {"measure": measure, "value": one.value, "low": one.low, "high": one.high, "n": one.n}
        of = {"embedder": by.name if by else "", "resize": by.resize if by else "", "images": kind}
        table.append(row | {"n_reference": other or 0} | of)

    inception = embed.name.startswith("inception")
    if reference is not None:
        real = images(Path(reference))
        known = features(real, embed, store=store, progress=progress)
        kind = f"{describe(files)}; reference {describe(real)}"
        add("FID" if inception else "FD", quality.frechet_distance(made, known), embed, len(real))
        add("KID" if inception else "kernel distance", quality.kernel_distance(made, known), embed, len(real))
        near = quality.neighbours(made, known, k=min(5, len(files) - 1, len(real) - 1))
        for name in ("precision", "recall", "density", "coverage"):
            add(name, getattr(near, name), embed, len(real))
        if text is not None:
            a, b = (unit(features(some, text, store=store, progress=progress)) for some in (files, real))
            add("CMMD" if text.name == CMMD else "Gaussian MMD x 1000", quality.cmmd(a, b), text, len(real))
        kind = describe(files)
    if embed.classifies:
        name = "Inception score" if inception else "class score"
        add(name, quality.inception_score(embed.classify(made), splits=min(10, len(files))), embed)
    if text is not None:
        seen = features(files, text, store=store, progress=progress)
        found = quality.clip_score(seen, np.stack([words[prompt] for prompt in of]), prompts=of)
        add(f"{'CLIP' if text.name.startswith('clip:') else text.name} score", found, text)
    if told := dataset.log(out):
        add("denoiser evaluations an image", sum(told[0]["nfe"].values()))
        add(f"seconds an image ({told[0]['device']})", median(one["seconds"] / one["images"] for one in told))
    return pd.DataFrame(table)


def images(folder: Path) -> list[Path]:
    """The images of a job's folder, or of any folder, by name. ValueError: there are none."""
    folder = folder / "images" if (folder / "images").is_dir() else folder
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return found


def describe(files: Sequence[Path]) -> str:
    """Size and format of the images: "64x64 png", or "mixed sizes jpg"; the headers alone are read."""
    sizes = Counter()
    for file in files:
        with reading(file), Image.open(file) as image:
            sizes[image.size] += 1
    size = "{}x{}".format(*next(iter(sizes))) if len(sizes) == 1 else "mixed sizes"
    return f"{size} {' and '.join(sorted({file.suffix.lower()[1:] for file in files}))}"


def features(files: Sequence[Path], embed: Embedder, *, store: Store, progress: bool = True) -> np.ndarray:
    """Features (n, d) float32 of image files as the network gives them; kept, by the files' bytes and order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())

    def make() -> dict[str, np.ndarray]:
        with tqdm(total=len(files), unit="image", desc=embed.name, disable=not progress) as bar:
            parts = []
            for batch in _batches(files, embed.batch_size):
                parts.append(embed.raw(batch))
                bar.update(len(batch))
        return {"features": np.concatenate(parts)}

    facts = {"images": digest.hexdigest(), "embedder": embed.fingerprint, "of": "files"}
    return store.fetch("features", facts, make)["features"]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, d) at length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _batches(files: Sequence[Path], size: int) -> Iterator[np.ndarray]:
    """Images (b, 3, h, w) float32 in [0, 1], in order; a batch ends where the images' size changes."""
    batch: list[np.ndarray] = []
    for file in files:
        with reading(file), Image.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
        if batch and (len(batch) == size or pixels.shape != batch[0].shape):
            yield np.stack(batch)
            batch = []
        batch.append(pixels)
    yield np.stack(batch)
