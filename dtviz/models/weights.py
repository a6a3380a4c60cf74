"""A student's weights, from a repository or a folder: safetensors first, a pickle only as numbers, code of theirs never.

network = student(spec, pipeline, dtype=torch.float16)      # a network, or the name of an adapter loaded on the base
"""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..outside import digests, numbers_of, reading
from .available import found, models
from .hub import LORA
from .spec import Spec
from .specs import repo_of


def student(spec: Spec, pipeline: Any, *, dtype: torch.dtype, revision: str | None = None) -> torch.nn.Module | str:
    """The student's network, or the name of its adapter, loaded on the base and switched off.

    Raises:
        ValueError: a LoRA that leaves the base as it is, or changes the text encoder that base and student share.
    """
    base = getattr(pipeline, "unet", None) or pipeline.transformer
    kind, where = type(base), {"revision": revision, "use_safetensors": True, "dtype": dtype}
    if spec.adapter:
        return _adapter(spec, pipeline, base, revision)
    if spec.embedded:
        network = kind.from_pretrained(models() / spec.student / spec.file, dtype=dtype)
    elif "." not in spec.file:  # a folder, as diffusers saves them
        half = repo_of(spec.student).variant if dtype == torch.float16 else None
        network = kind.from_pretrained(spec.student, subfolder=spec.file or None, variant=half, **where)
    else:
        network, state = kind.from_config(base.config).to(dtype), read(spec.student, spec.file, revision=revision)
        with reading(f"{spec.file} of {spec.student}"):
            network.load_state_dict(state)
    if spec.time != 1:
        network.register_forward_pre_hook(partial(_in_its_own_time, spec.time), with_kwargs=True)
    return network


def _in_its_own_time(scale: float, network: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    return args, kwargs | {"timestep": kwargs["timestep"] * scale}


def _adapter(spec: Spec, pipeline: Any, base: torch.nn.Module, revision: str | None) -> str:
    name = spec.student.replace("/", "_").replace(".", "_")  # peft makes a module of this name
    if spec.embedded:
        base.load_lora_adapter(models() / spec.student / spec.file, weight_name=LORA, adapter_name=name, prefix="unet")
    else:
        state = read(spec.student, spec.file, revision=revision)
        state, alphas = pipeline.lora_state_dict(state, unet_config=base.config)  # kohya's keys too
        foreign = sorted({key.split(".")[0] for key in state} - {"unet"})
        if foreign:
            raise ValueError(f"the LoRA {spec.file} of {spec.student} changes {foreign}, which base and student share")
        # peft passes over alphas that it cannot place, and the LoRA would have another size
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*alpha_pattern keys did not match")
            pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=base, adapter_name=name)
    ups = [value for key, value in base.named_parameters() if f"lora_B.{name}." in key]
    if not any(value.any() for value in ups):
        raise ValueError(f"the LoRA {spec.file} of {spec.student} leaves the base as it is")
    base.disable_adapters()
    return name


def read(repo: str, file: str, *, revision: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a repository's or folder's safetensors file, or else of the pickle beside it.

    A pickle is read with `weights_only`, which runs no code of it, and with a warning.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from safetensors.torch import load_file

    def get(name: str) -> Path:
        local = Path(repo) / name
        return local if local.is_file() or Path(repo).is_dir() else Path(hf_hub_download(repo, name, revision=revision))

    pickled = str(Path(file).with_suffix(".bin"))
    try:
        path = get(file)
        if path.is_file():
            with reading(path):
                return load_file(path)
        path = get(pickled)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        path = get(pickled)
    warnings.warn(f"{repo} has no {file} here: {pickled} is a pickle, read as numbers only", stacklevel=2)
    return numbers_of(path)


def _config(spec: Spec) -> str:
    """A file that is here once the student is loaded."""
    return spec.file if "." in spec.file else f"{spec.file}/config.json".lstrip("/")


def commit(repo: str, file: str, *, revision: str | None = None) -> str | None:
    """The commit that a file in the hub's cache is of; what was asked for if it is not there, or of a folder."""
    path = found(repo, file, revision=revision)
    if path is None or Path(repo).is_dir():
        return revision
    return path.parts[path.parts.index("snapshots") + 1]


def fingerprints(spec: Spec, *, revisions: tuple[str | None, ...]) -> tuple[str, str]:
    """Of a pair and of its base alone: of the embedded models' files, or of the hub files' names and commits, and of how they are run.

    Raises:
        ValueError: an embedded model's file is damaged.
    """
    how = json.dumps([spec.student, spec.file, spec.scheduler, spec.scheduler_settings], sort_keys=True)
    if spec.embedded:
        found = digests(models(), [spec.base, f"{spec.student}/{spec.file}"])
        base = [digest for name, digest in found.items() if name.startswith(f"{spec.base}/")]
        both = list(found.values())
    else:
        files = [(spec.base, "model_index.json"), (spec.student, _config(spec))]
        both = [str(commit(repo, file, revision=r)) for (repo, file), r in zip(files, revisions, strict=True)]
        base = both[:1]
    parts = [spec.base, how, *both], [spec.base, *base]
    pair, alone = (hashlib.sha256("\n".join(part).encode()).hexdigest()[:16] for part in parts)
    return pair, alone
