"""Images -> features whose dot products are cosines. Each embedder owns its preprocessing.

    embed = embedder("efficientnet-lite0")
    features = embed(images)                 # (n, 3, h, w) float in [0, 1] -> (n, d) float32, rows of length 1
    distance = 1 - features @ features.T     # the embedder's own distance, every pair at once

Nothing here touches the network: a model is used when its files are on this machine and refused at once when they are
not. `embedders()` says which is which. Third-party packages are imported when an embedder that needs them is made.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .batches import batches
from .embedders.backbones import Model
from .embedders.specs import NAMES as NAMES
from .embedders.specs import EmbedderSpec, embedder_spec
from .errors import Unavailable
from .outside import SUMS, digests, reading

PREPROCESSING = "1"  # part of every fingerprint: raise it when a number below that changes features is changed


class Embedder:
    """A frozen network that maps images to unit-length features; made by `embedder`.

    `name`; `title` (for figures); `dim` (d); `licence`; `source`; `resize`; `batch_size`; `fingerprint`; `logit_scale`, what a
    model with a text half multiplies cosines of image and text by before a softmax, None for one without.
    """

    def __init__(self, *, spec: EmbedderSpec, model: Model, device: torch.device, batch_size: int) -> None:
        self._spec, self._model = spec, model
        self.name, self.title, self.licence, self.source = spec.name, spec.title, spec.licence, spec.source
        self.resize, self.dim, self.device, self.batch_size = spec.resize, model.dim, device, batch_size
        self.logit_scale = model.scale

    def __call__(self, images: torch.Tensor | np.ndarray) -> np.ndarray:
        """Features (n, d) float32 of `images` (n, 3, h, w), floating point, finite, within [0, 1].

        Every row has length 1 and carries the embedder's own centring, so `1 - a @ b.T` is its distance. A row does
        not depend on the batch it was in (to float tolerance). TypeError, ValueError: other types, shapes or ranges.
        """
        with torch.inference_mode():
            return self._unit(torch.from_numpy(self.raw(images)))

    def raw(self, images: torch.Tensor | np.ndarray) -> np.ndarray:
        """Like calling it, but (n, d) as the network gives them, neither centred nor normalised: what an FID is made of."""
        images = _checked(images)

        def encoded(rows: slice) -> torch.Tensor:
            return self._model.encode(images[rows].to(self.device, torch.float32)).float()

        with torch.inference_mode():
            parts = [part for _, part in batches(encoded, n=len(images), size=self.batch_size)]
            return torch.cat(parts).cpu().numpy()

    def classify(self, raw: np.ndarray) -> np.ndarray:
        """Class probabilities (n, classes) float32 of what `raw` gave. TypeError: the network has no classifier."""
        if not self.classifies:
            raise TypeError(f"embedder {self.name!r} has no classifier; use 'inception' or 'efficientnet-lite0'")
        with torch.inference_mode():
            return self._model.classify(torch.from_numpy(raw).to(self.device)).cpu().numpy()

    @property
    def classifies(self) -> bool:
        """Whether `classify` can be called."""
        return self._model.classify is not None

    @property
    def reads(self) -> bool:
        """Whether `text` can be called."""
        return self._model.text is not None

    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Features (n, d) float32 of n >= 1 prompts, in the space of the images: `text @ image.T` are cosines.

        TypeError: the embedder has no text half. ValueError: no prompts, or one longer than the model reads.
        """
        if not self.reads:
            raise TypeError(f"embedder {self.name!r} has no text half; use 'emoji-clip' or 'clip:<hub id or folder>'")
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts={prompts!r}: must be a list of at least one string (is it a bare string?)")
        with torch.inference_mode():
            parts = [
                self._model.text(prompts[i : i + self.batch_size]) for i in range(0, len(prompts), self.batch_size)
            ]
            return self._unit(torch.cat(parts))

    def _unit(self, features: torch.Tensor) -> np.ndarray:
        features = features.float()
        if self._spec.centre:
            features = features - features.mean(dim=1, keepdim=True)
        return F.normalize(features, dim=1).cpu().numpy()

    @property
    def fingerprint(self) -> str:
        """Family, preprocessing version and sha256 of all files: equal exactly when the features are, for cache keys.

        A folder's place is left out, so the same weights have the same fingerprint on every machine.
        """
        total = hashlib.sha256()
        for name in self._spec.files:
            path = self._spec.folder / name
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                found = file.stat()
                changed = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                total.update(f"{file.name} {_sha256(file, changed)}\n".encode())
        return f"{self.name.split(':')[0]}-v{PREPROCESSING}-{total.hexdigest()[:16]}"

    def __repr__(self) -> str:
        return f"Embedder({self.name!r}, dim={self.dim}, device={str(self.device)!r})"


def embedder(
    name: str, *, device: str | torch.device | None = None, batch_size: int = 64, cache_dir: str | Path | None = None
) -> Embedder:
    """The embedder called `name`:

    - `"efficientnet-lite0"`: ImageNet classifier from PyPI, d = 1280. 160 px, globally averaged last feature map, each
      vector centred by its own mean as DreamSim does: the distance is 1 - Pearson correlation.
    - `"efficientnet-lite0-style"`: the same network's early channels, mean and deviation over positions, d = 320: how
      an image is drawn rather than what it shows.
    - `"emoji-clip"`: this project's own CLIP in `data/models` (or `$DTVIZ_MODELS`), images and text.
    - `"dreamsim"` (= `"dreamsim:ensemble"`) or `"dreamsim:<type>"`, types as in `NAMES`: the published metric through
      its own package (Fu et al. 2023, arXiv 2306.09344), 224 px; a `*_patch` type compares class token and mean patch token.
    - `"inception"`: FID's Inception-v3 and its 1,008 classes, 299 px; `"inception-legacy"`: the same with pytorch-fid's
      resize, which is not antialiased, so that the number depends on the images' size (Parmar et al. 2022).
    - `"clip:<hub id or folder>"`: any transformers CLIP that is on this machine, images and text; of ViT-L/14 at 336 px for CMMD.
    - `"dinov2:<hub id or folder>"`: any transformers DINOv2 that is on this machine (Oquab et al. 2023).

    `device`: None is CUDA where there is one, else the CPU. `cache_dir`: DreamSim's weights (None: `$DREAMSIM_CACHE`,
    else `~/.cache/dreamsim`) or the hub's cache of a `clip:` or `dinov2:` (None: its usual place); the others take none.
    Raises ValueError for an unknown name, a bad setting or damaged files, `Unavailable` when files are missing.

        features = dtviz.embedder("efficientnet-lite0")(images)  # (n, 1280)
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: must be an integer of at least 1")
    spec = embedder_spec(name, cache_dir)
    if missing := spec.missing():
        here = [row["name"] for row in embedders() if row["available"]]
        raise Unavailable(
            f"embedder {spec.name!r} is not on this machine: missing {missing}. To get it: {spec.get}. "
            f"Available now: {', '.join(here) or 'none'}."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(
        devices=[]
    ):  # layers are initialised before their weights are read: spare the caller's seed
        if (spec.folder.parent / SUMS).exists():
            digests(spec.folder.parent, [spec.folder.name])  # a damaged file is refused before anything reads it
        with reading(f"embedder {spec.name!r}, {spec.folder}"):
            model = spec.build(device)
    return Embedder(spec=spec, model=model, device=device, batch_size=batch_size)


def embedders(*, cache_dir: str | Path | None = None) -> list[dict[str, str | bool]]:
    """One row for each of `NAMES`: name, title, available (now, here), missing, get, licence, source. Loads nothing.

    `cache_dir`: as in `embedder`, for DreamSim. Models for `"clip:..."` and `"dinov2:..."` are not listed.
    """
    rows = []
    for name in NAMES:
        spec = embedder_spec(name, cache_dir if name.startswith("dreamsim") else None)
        row = {key: getattr(spec, key) for key in ("name", "title", "licence", "source", "get")}
        rows.append(row | {"missing": spec.missing(), "available": not spec.missing()})
    return rows


def _checked(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """`images` as a tensor, unchanged; TypeError or ValueError says what is wrong with it."""
    if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
        images = torch.from_numpy(np.require(images, requirements=("C", "W")))  # read-only arrays make torch warn
    if not isinstance(images, torch.Tensor):
        what = f"an array of {images.dtype}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
        raise TypeError(f"images is {what}: must be a floating-point tensor or array in [0, 1] (divide uint8 by 255)")
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}: must be floating point in [0, 1] (divide uint8 by 255)")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images has shape {tuple(images.shape)}: must be (n, 3, height, width) with n >= 1 "
            "(one image needs images[None]; channels come second)"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            "images holds values that are not finite: did the denoiser or the VAE overflow in half precision?"
        )
    low, high = float(images.min()), float(images.max())
    if low < -1e-4 or high > 1 + 1e-4:  # room for the rounding of a half-precision decoder
        likely = "0..255: divide by 255" if high > 2 else "[-1, 1]: use images / 2 + 0.5"
        raise ValueError(f"images runs from {low:.4g} to {high:.4g}: must be within [0, 1] (is it {likely}?)")
    return images


@lru_cache
def _sha256(file: Path, changed: tuple[int, ...]) -> str:
    """Digest of a file; `changed` makes the cache forget a file that was replaced, also when the clock was put back."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
