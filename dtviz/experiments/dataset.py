"""Generate one image per row of a prompts file, and score the folder: the 30,000-image job of Tables 2 and 4.

generate_images(dtviz.load("sdxl-dmd"), read_prompts("coco_30k.csv"), "out/hybrid", settings={"method": "hybrid"})
table = score_images("out/hybrid", embed=embedder("inception"), reference="val2014")
"""

import csv
import hashlib
import io
import itertools
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ..core.decode import decode
from ..core.generate import generate
from ..core.pair import Pair
from ..files import reading, write_atomic
from ..metrics import quality
from ..metrics.embedders import Embedder
from ..metrics.statistics import Estimate
from .cache import Cache

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_CASE = re.compile(r"[A-Za-z0-9_-]{1,200}")  # a file name that stays in its folder and fits every file system


class Row(NamedTuple):
    """One image to generate. `case` is the name of its file."""

    case: str
    prompt: str
    seed: int


def read_prompts(path: str | Path) -> list[Row]:
    """Read a CSV with the columns `case_number` (or `image_id`), `prompt` and `evaluation_seed`. Others are ignored.

    A bad row is a ValueError that names its last line.
    """
    rows = {}
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="", strict=True)
        try:
            reader.fieldnames = heads = [head.strip() for head in reader.fieldnames or ()]
            case = "image_id" if "image_id" in heads and "case_number" not in heads else "case_number"
            if missing := [name for name in (case, "prompt", "evaluation_seed") if name not in heads]:
                raise ValueError(f"lacks the columns {', '.join(missing)}; it has {', '.join(heads)[:300] or 'none'}")
            for cells in reader:
                if any(cell.strip() for cell in cells.pop(None, ())):
                    raise ValueError("too many cells; a prompt with a comma needs quotes")
                if not any(cell.strip() for cell in cells.values()):
                    continue  # a spreadsheet may write rows of commas
                name = cells[case].strip()
                if name in rows:
                    raise ValueError(f"case {name!r} is there twice")
                rows[name] = _checked(Row(name, cells["prompt"], cells["evaluation_seed"].strip()))
            if not rows:
                raise ValueError("no rows below the head")
        except (csv.Error, ValueError) as error:  # the decoder's too
            raise ValueError(f"{path}, line {reader.line_num}: {' '.join(str(error).split())}") from error
    return list(rows.values())


def _checked(row: Row) -> Row:
    """Return a row, whose seed may be text, with an integer seed. Refuse a bad one."""
    if not _CASE.fullmatch(row.case):
        raise ValueError(f"case {row.case[:210]!r} must be a word of letters, digits, - and _, no longer than 200")
    if not row.prompt.strip():
        raise ValueError(f"prompt of case {row.case} is empty")
    if not re.fullmatch(r"[0-9]{1,19}", str(row.seed)) or int(row.seed) >= 2**63:
        raise ValueError(f"evaluation_seed {str(row.seed)[:30]!r} must be an integer from 0 to 2**63 - 1")
    return row._replace(seed=int(row.seed))


def generate_images(
    pair: Pair, rows: Sequence[Row], out: str | Path, *, settings: Mapping[str, Any] | None = None,
    batch_size: int | None = None, progress: bool = True,
) -> int:  # fmt: skip
    """Generate every image `out/images/<case>.png` that is missing or damaged, and return how many this process generated.

    Any number of processes may work on one folder. After a kill, run it again. A folder of another job is a ValueError.

    Args:
        settings: arguments of `generate` beside pair, prompt, seeds and batch size.
        batch_size, progress: rows generated together (None: the pair's); show a bar of all processes' images.
    """
    # A batch is always the same rows, so no image depends on the number of processes. The system releases the lock of a
    # batch when its process dies.
    out, rows, settings = Path(out), [_checked(row) for row in rows], dict(settings or {})
    size = pair.batch_size if batch_size is None else batch_size
    if not rows or size < 1:
        raise ValueError(f"rows has {len(rows)} entries, batch_size={size}: both must be at least 1")
    for folder in ("images", ".locks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _claim(out, rows, _job_settings(pair, rows, settings, size))
    _warn_of_long_prompts(pair, rows)
    batches, generated = [rows[start : start + size] for start in range(0, len(rows), size)], 0
    with tqdm(total=len(rows), initial=count_images(out), unit="image", disable=not progress) as bar:
        for batch, problems in _unfinished(out, batches):
            _generate_batch(pair, batch, out, settings, problems)
            generated += len(problems)
            bar.update(count_images(out) - bar.n)
        bar.update(count_images(out) - bar.n)
    return generated


def count_images(out: str | Path) -> int:
    """Return the number of images in a job's folder."""
    return sum(name.endswith(".png") for name in os.listdir(Path(out) / "images"))


def _unfinished(out: Path, batches: list[list[Row]]) -> Iterator[tuple[list[Row], dict[str, str]]]:
    """Yield each batch that lacks an image, with its `_problems` and its lock held. Batches that others hold come last."""
    remaining = dict(enumerate(batches))
    for timeout in (0, -1):  # first those that are free, then wait for the others, whose holders may have died
        for i, batch in list(remaining.items()):
            with suppress(Timeout), FileLock(out / ".locks" / f"{i}.lock", timeout=timeout):
                if problems := _problems(out, batch):
                    yield batch, problems
                del remaining[i]


def _problems(out: Path, batch: list[Row]) -> dict[str, str]:
    """Return what is wrong with the images of a batch, by case. A PNG has checksums, so damage is found."""
    problems = {}
    for row in batch:
        path = out / "images" / f"{row.case}.png"
        try:
            with reading(path), Image.open(path, formats=["PNG"]) as image:
                image.verify()
        except (FileNotFoundError, ValueError) as error:
            problems[row.case] = "" if isinstance(error, FileNotFoundError) else str(error)
    return problems


def _warn_of_long_prompts(pair: Pair, rows: Sequence[Row]) -> None:
    """Warn once of prompts that are longer than the pipeline reads, which the job cuts and `score` refuses."""
    tokenizers = [part for name, part in pair.pipeline.components.items() if name.startswith("tokenizer") and part]
    if not tokenizers:
        return
    tokenizer = max(tokenizers, key=lambda one: one.model_max_length)
    tokens, most = tokenizer([row.prompt for row in rows], verbose=False)["input_ids"], tokenizer.model_max_length
    if long := [row.case for row, ids in zip(rows, tokens, strict=True) if len(ids) > most]:
        count = f"{len(long)} of {len(rows)} prompts, first that of case {long[0]},"
        warnings.warn(f"{count} exceed {most} tokens and are cut", stacklevel=3)


def _generate_batch(pair: Pair, batch: list[Row], out: Path, settings: Mapping[str, Any], problems: dict) -> None:
    """Generate a whole batch and write the images that are missing or damaged."""
    cases, prompts, seeds = map(list, zip(*batch, strict=True))
    trace = generate(pair, prompts, seeds=seeds, batch_size=len(batch), **settings)
    images = dict(zip(cases, decode(trace, pair, what="final").permute(0, 2, 3, 1).numpy(), strict=True))
    if bad := [case for case in cases if not np.isfinite(images[case]).all()]:
        raise ValueError(f"the images of cases {', '.join(bad)} are not finite: did half precision overflow?")
    for case, problem in problems.items():
        if problem:
            warnings.warn(f"{problem}; it is generated again", stacklevel=3)
        content = io.BytesIO()
        Image.fromarray((images[case] * 255).round().astype(np.uint8)).save(content, "png", compress_level=1)
        write_atomic(out / "images" / f"{case}.png", content.getvalue())


def _job_settings(pair: Pair, rows: list[Row], settings: dict[str, Any], size: int) -> dict[str, Any]:
    """Return everything that decides what the images are, as it reads back from JSON."""
    names = ["steps", "base_steps", "timesteps", "guidance", "base_guidance", "handover", "size"]
    chosen = {name: getattr(pair, name) for name in names + ["call"] * bool(pair.call)}
    chosen |= {name: value for name, value in settings.items() if value is not None}
    job = {"format": "dtviz.dataset/1", "pair": pair.name, "weights": pair.fingerprint, "settings": chosen}
    job |= {"batch_size": size, "rows": len(rows), "prompts": hashlib.sha256(repr(rows).encode()).hexdigest()}
    job |= {"numbers": [str(pair.base.dtype), pair.base.device.type, version("torch"), version("diffusers")]}
    return json.loads(json.dumps(job))


def _claim(out: Path, rows: list[Row], job: dict[str, Any]) -> None:
    """Write what the folder is for. Refuse a folder of another job."""
    with FileLock(out / ".locks" / "job.lock"):
        if (out / "job.json").exists():
            with reading(out / "job.json"):
                existing = dict(json.loads((out / "job.json").read_text()))
            if changed := [name for name in job if existing.get(name) != job[name]]:
                listed = "; ".join(f"{name}: there {existing.get(name)}, now {job[name]}" for name in changed)
                raise ValueError(f"{out} holds images of another job, give a new folder ({listed})")
            return
        table = pd.DataFrame(rows, columns=["case_number", "prompt", "evaluation_seed"])
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # quotes all texts
        write_atomic(out / "prompts.csv", text.encode())
        write_atomic(out / "job.json", (json.dumps(job, indent=1) + "\n").encode())


def score_images(
    folder: str | Path, *, embed: Embedder, reference: str | Path | None = None, text: Embedder | None = None,
    cache: Cache | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return a row per measure: Fréchet distance, Inception score, CLIP score.

    FID and Inception score are of Inception-v3 only. Another network's are called FD and class score.

    Args:
        folder, reference: a job's folder, or any folder of images.
        embed, text: network of Fréchet distance and class score, and a CLIP for the similarity of image and prompt.
    """
    folder, cache, rows, prompts = Path(folder), cache or Cache(), [], {}
    files, inception = image_files(folder), embed.name.startswith("inception")
    if (folder / "prompts.csv").exists():
        prompts = {row.case: row.prompt for row in read_prompts(folder / "prompts.csv")}
        asked, made = Counter(prompts.keys()), Counter(file.stem for file in files)
        if different := sorted((asked - made) + (made - asked)):
            counts = f"has {len(files)} images for {len(prompts)} prompts, differing in {different[0]}"
            raise ValueError(f"{folder} {counts}: run its `generate` again to finish it, and remove other images")
    elif text:
        raise ValueError(f"text={text.name!r}: {folder} has no prompts.csv, so its images have no known prompts")
    if text:  # first: a prompt that is too long is refused before any image is read
        texts = [prompts[file.stem] for file in files]
        distinct, numbers = np.unique(texts, return_inverse=True)
        words = text.text(distinct.tolist())[numbers]

    def add(measure: str, value: float | Estimate, by: Embedder, real: Sequence[Path] = ()) -> None:
        one = value if isinstance(value, Estimate) else Estimate(float(value), np.nan, np.nan, len(files))
        formats = " and ".join(sorted({file.suffix[1:].lower() for file in (*files, *real)}))
        facts = {"n_reference": len(real), "embedder": by.name, "resize": by.resize, "images": formats}
        rows.append({"measure": measure} | vars(one) | facts)

    features = image_features(files, embed, cache=cache)
    if reference is not None:
        real = image_files(Path(reference))
        distance = quality.frechet_distance(features, image_features(real, embed, cache=cache))
        add("FID" if inception else "FD", distance, embed, real)
    if embed.classifies and len(files) > 10:
        add("Inception score" if inception else "class score", quality.inception_score(embed.classify(features)), embed)
    if text:
        score = quality.clip_score(image_features(files, text, cache=cache), words, prompts=texts)
        add(f"{'CLIP' if text.name.startswith('clip:') else text.name} score", score, text)
    return pd.DataFrame(rows)


def image_files(folder: Path) -> list[Path]:
    """Return the images of a job's folder, or of any folder, by name. Warn about other files."""
    folder = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(path for path in folder.glob("[!.]*") if path.is_file())
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    if skipped := len(files) - len(images):
        warnings.warn(f"{folder}: skipped {skipped} files that are none of {', '.join(SUFFIXES)}", stacklevel=3)
    return images


def image_features(files: Sequence[Path], embed: Embedder, *, cache: Cache) -> np.ndarray:
    """Return features (n, d) float32 of image files as the network gives them, cached by the files' bytes and order."""
    hashes = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)

    def compute() -> dict[str, np.ndarray]:
        parts = []
        for start in tqdm(range(0, len(files), embed.batch_size), desc=embed.name, disable=None):
            images = [read_image(file) for file in files[start : start + embed.batch_size]]
            parts += [embed.raw(np.stack(list(equal))) for _, equal in itertools.groupby(images, key=np.shape)]
        return {"features": np.concatenate(parts)}

    key = {"images": hashlib.sha256(hashes.encode()).hexdigest(), "embedder": embed.fingerprint, "of": "files"}
    return cache.get_or_compute("features", key, compute)["features"]


def read_image(file: Path) -> np.ndarray:
    """Return an image (3, h, w) float32 in [0, 1], turned as its EXIF data say."""
    with reading(file), Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            return np.repeat(np.asarray(image, dtype=np.float32)[None] / 65535, 3, axis=0)
        return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
