"""Load a pair by its name: local files first, then the model hub, else one clear error."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub

from .. import files
from ..files import Unavailable, one_line, reading
from .registry import LORA, Spec, spec_of

# torch and diffusers are imported in the functions, so that a pair is checked before they are loaded
if TYPE_CHECKING:
    import torch

    from ..core.pair import Pair

ANY = ("", "")  # variants of base and distilled model: a part of every file name


def load(
    name: str, *, device: str | None = None, dtype: torch.dtype | None = None, offload: bool = False,
    paper_settings: bool = False,
) -> Pair:  # fmt: skip
    """Load the pair of this name.

    Args:
        name: one of `dtviz.pairs()`.
        device: torch device; None takes CUDA if there is one.
        dtype: None takes float32 on a CPU, and on CUDA the type that the models were released for.
        offload: keep the two denoisers in host memory, and their layers on the device only while they run.
        paper_settings: take the settings of the paper's code where they differ from those of the training.

    Raises Unavailable if the weights are not on this machine and the hub cannot be reached.

    pair = dtviz.load("sdxl-dmd", device="cuda", dtype=torch.float16)
    """
    if offload not in (False, True):
        raise ValueError(f"offload={offload!r} must be True or False")
    spec = spec_of(name)
    import diffusers
    import torch

    from ..core.denoisers import denoiser_of
    from ..core.pair import Pair

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (getattr(torch, spec.dtype) if device.startswith("cuda") else torch.float32)
    variants = spec.variants if dtype == torch.float16 else (None, None)
    folders = check_available(name, variants)
    folders = _download(spec, variants) if None in folders else folders
    fingerprints = _fingerprints(spec, folders)  # checks hashes before anything reads the files
    options = {"dtype": dtype, "use_safetensors": True}
    with files.no_progress_bars(), reading(f"pair {name!r}, {spec.base}"):
        own = options | spec.pipeline_options | {"variant": variants[0]}
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[0], **own)
    pipeline.to(device).set_progress_bar_config(disable=True)
    base = denoiser_of(pipeline)
    with files.no_progress_bars(), reading(f"pair {name!r}, {spec.distilled}"):
        if spec.adapter:
            distilled = _add_adapter(spec, folders[1] / spec.file, pipeline, base)
        else:
            distilled = _load_network(spec, folders[1], base, variant=variants[1], **options)
            distilled.to("cpu" if offload else device).eval().requires_grad_(False)
    stream = device.startswith("cuda")  # moves the next layer from page-locked memory while this one runs
    moves = {"offload_type": "leaf_level", "use_stream": stream, "record_stream": stream}
    for network in ([base] if spec.adapter else [base, distilled]) if offload else []:
        network.enable_group_offload(torch.device(device), **moves)

    kind = getattr(diffusers, spec.scheduler)
    parameters = inspect.signature(kind).parameters  # from_config would warn about the base's other settings
    shared = {key: value for key, value in pipeline.scheduler.config.items() if key in parameters}
    scheduler = kind.from_config(shared | spec.scheduler_settings)
    settings = spec.settings | (spec.paper_settings if paper_settings else {}) | fingerprints
    return Pair(pipeline, distilled, None, scheduler, name, paper_settings=paper_settings, **settings)


def check_available(name: str, variants: tuple = ANY) -> tuple:
    """Return the `local_folders` of this pair. Raise Unavailable if files are missing and the hub is out of reach."""
    spec = spec_of(name)
    folders = local_folders(spec, variants)
    rows = zip((spec.base, spec.distilled), spec.revisions, folders, strict=True)
    missing = {repo: revision or "main" for repo, revision, folder in rows if folder is None}
    if missing and spec.embedded:
        hint = "restore them, or set DTVIZ_MODELS to the folder data/models of a checkout of dtviz"
        raise Unavailable(f"pair {name!r} lacks files of {', '.join(missing)} in {files.data('models')}: {hint}")
    if paths := ", ".join(repo for repo in missing if repo.count("/") != 1 or repo[0] in "./~"):
        raise Unavailable(f"pair {name!r}: {paths} is no complete model folder, and no repository (owner/name)")
    if missing and not files.hub_reachable():
        problem = f"is not on this machine (missing: {', '.join(missing)}) and the model hub is out of reach"
        commands = " and ".join(f"`hf download {repo} --revision {commit}`" for repo, commit in missing.items())
        cure = f"Run {commands} where there is a network and set HF_HOME to that cache"
        raise Unavailable(f"pair {name!r} {problem}. {cure}, or use an embedded pair: emoji-dmd")
    return folders


def local_folders(spec: Spec, variants: tuple = ANY) -> tuple:
    """Return the local folders of base and distilled model, None for one that is not complete. Use no network."""
    base, distilled = map(_local_folder, (spec.base, spec.distilled), spec.revisions)
    base = base if base and all(_has_weights(path, variants[0]) for path in _networks(base)) else None
    return base, distilled if distilled and _has_weights(distilled / spec.file, variants[1]) else None


def _local_folder(repo: str, revision: str | None) -> Path | None:
    """Return a folder, or that of a repository in the hub's cache, or None."""
    folder = Path(repo) if "/" in repo else files.data("models", missing_ok=True) / repo
    return folder if folder.is_dir() or "/" not in repo else files.local_snapshot(repo, revision)


def _networks(pipeline: Path) -> list[Path]:
    """Return the folders of a saved pipeline's networks, or its own if it has no index."""
    index, networks = pipeline / "model_index.json", ("unet", "transformer", "vae", "text_encoder")
    if not index.is_file():
        return [pipeline]
    with reading(index):
        parts = json.loads(index.read_text())
        return [pipeline / part for part, kind in parts.items() if part.startswith(networks) and kind[0]]


def _has_weights(path: Path, variant: str | None) -> bool:
    """Return whether a single file is there, or weights of this variant in a folder."""
    if not path.is_dir():
        return path.is_file() or path.with_suffix(".bin").is_file()
    names = [file.name for file in path.glob("*.safetensors")]
    return any(variant in name if variant is not None else ".fp16" not in name for name in names)


def _download(spec: Spec, variants: tuple) -> tuple:
    """Download both models of a pair from the hub, and return their folders."""
    import diffusers

    options = {"revision": spec.revisions[0], "variant": variants[0], "use_safetensors": True} | spec.pipeline_options
    stem, dot, _ = spec.file.rpartition(".")
    names = f"{stem}.*" if dot else f"{spec.file}/*".lstrip("/")  # a file, or the pickle beside it; or a folder
    try:
        base = diffusers.DiffusionPipeline.download(spec.base, **options)
        distilled = huggingface_hub.snapshot_download(spec.distilled, revision=spec.revisions[1], allow_patterns=names)
    except Exception as error:  # of the hub's client and of the library below it
        cure = "if a licence must be accepted, do so on its page and run `hf auth login`"
        failure = f"the model hub does not give {spec.base} or {spec.distilled}: {one_line(error)}"
        raise Unavailable(f"pair {spec.name!r}: {failure}; {cure}") from error
    return Path(base), Path(distilled)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, or else of the pickle beside it, read as weights only."""
    if path.is_file():
        return files.read_safetensors(path, "pt")[0]
    warnings.warn(f"there is no {path.name}: {path.stem}.bin is a pickle, read as weights only", stacklevel=2)
    return files.load_weights_only(path.with_suffix(".bin"))


def _load_network(spec: Spec, folder: Path, base: torch.nn.Module, **options: Any) -> torch.nn.Module:
    """Return the distilled network, on the CPU."""
    from accelerate import init_empty_weights

    if "." not in spec.file:
        return type(base).from_pretrained(folder, subfolder=spec.file or None, **options)
    state = {key: tensor.to(options["dtype"]) for key, tensor in read_weights(folder / spec.file).items()}
    with init_empty_weights():
        network = type(base).from_config(base.config)
    network.load_state_dict(state, assign=True)
    return network


def _add_adapter(spec: Spec, path: Path, pipeline: Any, base: torch.nn.Module) -> str:
    """Load a LoRA on the base denoiser, switch it off, and return its adapter name."""
    name = spec.distilled.replace("/", "_").replace(".", "_")  # peft makes a module of this name
    weights = read_weights(path / LORA if path.is_dir() else path)
    state, alphas = pipeline.lora_state_dict(weights, unet_config=base.config)  # translates kohya's keys
    if others := sorted({key.split(".")[0] for key in state} - {"unet"}):
        raise ValueError(f"the LoRA {spec.file} changes {others}, which base and distilled model share")
    # peft only warns about alphas without a module, and would scale the LoRA wrongly
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*alpha_pattern keys did not match")
        pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=base, adapter_name=name)
    if not any(value.any() for key, value in base.named_parameters() if f"lora_B.{name}." in key):
        raise ValueError(f"the LoRA {spec.file} leaves the base as it is: all its factors lora_B are 0")
    base.disable_adapters()
    return name


def _fingerprints(spec: Spec, folders: tuple) -> dict[str, str]:
    """Return the fingerprints of a pair and of its base, from the files' hashes or the commits of the repositories."""
    if spec.embedded:
        hashes = files.check_hashes(files.data("models"), [spec.base, f"{spec.distilled}/{spec.file}"])
        base = [digest for name, digest in hashes.items() if name.startswith(f"{spec.base}/")]
        both = list(hashes.values())
    else:  # a snapshot's folder has the name of its commit
        both = [folder.name if folder.parent.name == "snapshots" else "None" for folder in folders]
        base = both[:1]
    settings = json.dumps([spec.distilled, spec.file, spec.scheduler, spec.scheduler_settings], sort_keys=True)
    parts = {"fingerprint": [spec.base, settings, *both], "base_fingerprint": [spec.base, *base]}
    return {name: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] for name, lines in parts.items()}
