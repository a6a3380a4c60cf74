"""What the training stages share: folders, the data, resumable checkpoints, contact sheets."""

import argparse
import json
import math
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dtviz.files import HASHES, check_hashes

DATA = Path(__file__).resolve().parents[1]
DRAWINGS = DATA / "drawings"
MODELS = DATA / "models"
WORK = Path(__file__).resolve().parent / "work"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def concepts(which: str = "concepts") -> list[str]:
    """The canonical names in `concepts.txt` or `held_out.txt`, in file order."""
    lines = (Path(__file__).parent / f"{which}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def arguments(**defaults: float) -> argparse.Namespace:
    """Command line of a stage: one `--name value` for each setting, its type taken from the default."""
    parser = argparse.ArgumentParser()
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


@contextmanager
def stage(name: str, seed: int = 0):
    """Seeds every generator, makes the work folder, keeps the seconds that the stage took in `work/seconds.json`."""
    WORK.mkdir(parents=True, exist_ok=True)
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    start = time.time()
    print(f"== {name} on {DEVICE}", flush=True)
    yield
    (MODELS / HASHES).unlink(missing_ok=True)  # what was trained anew is what `dtviz.load` expects from now on
    hashes = check_hashes(MODELS, ["."])
    (MODELS / HASHES).write_text("".join(f"{digest}  {name}\n" for name, digest in hashes.items()))
    path, seconds = WORK / "seconds.json", round(time.time() - start)
    times = json.loads(path.read_text()) if path.exists() else {}
    times.setdefault(name, {})[DEVICE.type] = seconds
    path.write_text(json.dumps(times, indent=1) + "\n")
    print(f"== {name} done in {seconds} s", flush=True)


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: a linear rise, then half a cosine down to 1%."""
    return min(1, (step + 1) / warmup) * max(0.5 * (1 + math.cos(math.pi * step / steps)), 0.01)


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the average of a model's weights a little towards them."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


class Checkpoint:
    """`work/<name>.pt`, written atomically every `every` steps, so that a killed stage goes on where it was."""

    def __init__(self, name: str, every: int = 200, **parts: torch.nn.Module | torch.optim.Optimizer) -> None:
        self.path, self.every, self.parts = WORK / f"{name}.pt", every, parts

    def resume(self) -> int:
        """Load the parts if there is a checkpoint; the number of steps already done."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location=DEVICE, weights_only=True)
        for key, part in self.parts.items():
            part.load_state_dict(saved[key])
        torch.set_rng_state(saved["rng"].cpu())
        print(f"resumed {self.path.stem} at step {saved['step']}", flush=True)
        return saved["step"]

    def save(self, step: int, *, last: bool = False) -> None:
        """Write the parts and the random state if the step is due."""
        if step % self.every and not last:
            return
        state = {key: part.state_dict() for key, part in self.parts.items()}
        torch.save(state | {"step": step, "rng": torch.get_rng_state()}, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)


def record(name: str, **measures: float | str | list | dict) -> None:
    """Print measures and keep them in `work/<name>.json`, from which the model cards are written."""
    (WORK / f"{name}.json").write_text(json.dumps(measures, indent=1) + "\n")
    print(name, json.dumps(measures), flush=True)


def eight_bits(path: Path) -> None:
    """Keep the matrices of a safetensors file in eight bits (e4m3, relative error .03), the rest in sixteen.

    So four distilled models and their base stay small enough for a repository. `from_pretrained(..., dtype=torch.float32)`
    reads them as any others.
    """
    small = {k: v.to(torch.float8_e4m3fn if v.ndim > 1 else torch.float16) for k, v in load_file(path).items()}
    save_file(small, path.with_suffix(".tmp"), metadata={"format": "pt"})
    os.replace(path.with_suffix(".tmp"), path)


@torch.no_grad()
def reconstruct(images, vae: torch.nn.Module, *, batch_size: int = 64) -> torch.Tensor:
    """Images (n, 3, h, w) in [0, 1] as the autoencoder gives them back: its blur is then no difference to samples."""
    parts = torch.as_tensor(images).to(vae.device, vae.dtype).mul(2).sub(1).split(batch_size)
    copies = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in parts]
    return torch.cat(copies).div(2).add(0.5).clamp(0, 1).float().cpu()


def contact_sheet(images: torch.Tensor, columns: int, path: Path) -> None:
    """Save (n, 3, h, w) in [-1, 1] as one picture of `columns` columns."""
    rows = images.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().split(columns)
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path, quality=85)


# Noise of one sigma destroys more of an 8x8 latent than of SDXL's 128x128, so SDXL's schedule is shifted: every sigma
# is divided by SHIFT. Too large a shift leaves the colour of the drawing legible at the last timestep, where sampling
# starts from pure noise, and the base paints in wrong colours. `commitment.py` checks the value on the trained base.
SHIFT = 1.5


def alphas_cumprod() -> torch.Tensor:
    """(1000,) float64: SDXL's scaled-linear schedule with every sigma divided by SHIFT."""
    alpha = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    return 1 / (1 + (1 - alpha) / alpha / SHIFT**2)


def betas() -> list[float]:
    """The same schedule as diffusers' `trained_betas`."""
    alpha = alphas_cumprod()
    return (1 - alpha / torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])).tolist()
