"""What this machine has and lacks: `python -m dtviz doctor`.

print(report())
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import memory
from .models.available import hub_answers, lacking
from .models.spec import Spec
from .models.specs import SPECS, repo_of, spec_of

PACKAGES = ("dtviz", "torch", "diffusers", "transformers", "peft", "accelerate", "dreamsim", "numpy")


def report(*, pairs: Iterable[str] | None = None) -> str:
    """Versions, devices, the hub's cache, and of each pair whether it is ready, what to download, and how it fits.

    Args:
        pairs: names of `dtviz.pairs()`; None: all of them.

    Raises:
        ValueError: no pair has one of these names.
    """
    parts = [_versions(), _devices(), _cache(), _embedders()]
    parts += ["Pairs", *(line for name in (SPECS if pairs is None else pairs) for line in _pair(name))]
    return "\n".join(parts)


def _versions() -> str:
    told = []
    for name in PACKAGES:
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told.append(f"{name} is not installed")
    return f"Python {platform.python_version()}: {', '.join(told)}"


def _devices() -> str:
    import torch

    accelerator, host = memory.free()
    lines = [f"CPU: {os.cpu_count()} cores, {host / 1e9:.1f} GB of memory free"]
    if accelerator is None:
        lines.append("Accelerator: none, hub pairs run in float32 on the CPU")
    else:
        lines.append(f"Accelerator: {torch.cuda.get_device_name()}, {accelerator / 1e9:.1f} GB free")
    return "\n".join(lines)


def _cache() -> str:
    """What the hub's cache holds of the repositories that dtviz knows, at which commits."""
    from huggingface_hub import constants, scan_cache_dir

    folder = Path(constants.HF_HUB_CACHE)
    offline = os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True")
    lines = [f"Model hub: {'offline by HF_HUB_OFFLINE' if offline else 'answers' if hub_answers() else 'out of reach'}"]
    lines.append(f"Hub cache: {folder}" + ("" if folder.is_dir() else ", which is not there"))
    if folder.is_dir():
        for repo in sorted(scan_cache_dir(folder).repos, key=lambda repo: repo.repo_id):
            commits = ", ".join(sorted(revision.commit_hash for revision in repo.revisions))
            lines.append(f"  {repo.repo_id}: {repo.size_on_disk / 1e9:.2f} GB, at {commits}")
    return "\n".join(lines)


def _embedders() -> str:
    from .embed import embedders

    rows = [f"  {row['name']}: " + ("ready" if row["available"] else f"not here; {row['get']}") for row in embedders()]
    return "\n".join(["Embedders", *rows])


def _pair(name: str) -> list[str]:
    spec, gone = spec_of(name), lacking(name)
    lines = [f"  {name}: {'ready' if not gone else 'not here'}, {memory.size(name)}"]
    part = memory.weights(spec, item=2)
    for repo, files in gone.items():
        size = (
            part["base"] + part["text"] + part["vae"]
            if repo == spec.base
            else spec.parameters * spec.item or part["student"]
        )
        lines.append(f"    lacks {', '.join(files)}")
        lines.append(f"    to get {size / 1e9:.1f} GB: {_get(spec, repo)}")
    try:
        lines.append(f"    fits {memory.choose(name).told(memory.free()[0])}")
    except MemoryError as error:
        lines.append(f"    {error}")
    return lines


def _get(spec: Spec, repo: str) -> str:
    """The command that downloads what `load` needs of a repository, and no more."""
    known = repo_of(repo)
    if spec.embedded:
        return "restore it from the repository, or `make models`"
    if repo == spec.base:
        told = f"{repo!r}, revision={known.revision!r}, variant={known.variant!r}, use_safetensors=True"
        return f'python -c "import diffusers; diffusers.DiffusionPipeline.download({told})"'
    what = spec.file if "." in spec.file else f"--include '{spec.file}/*'" if spec.file else ""
    return " ".join(
        part for part in ("hf download", repo, what, known.revision and f"--revision {known.revision}") if part
    )
