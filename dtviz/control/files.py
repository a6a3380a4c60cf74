"""Read controls as people have them: dtviz's own, diffusers' and peft's LoRAs, kohya's, Custom Diffusion's weights.

smile = dtviz.control.load("smile.safetensors")
lego = dtviz.control.load("someone/lego-lora", weight_name="lego.safetensors")      # from the hub
toy = dtviz.control.load("delta.ckpt", base=pipe)       # whole tuned weights: only beside their base are they a change

From safetensors, or from a pickle as weights only: no file can bring code.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..controls import HEADER, Control
from ..errors import Unavailable
from ..models.available import hub_answers
from ..outside import numbers_of, reading
from ..outside import told as one_line
from ..places import data
from .formats import LDM, SHOWN, custom_diffusion, lora

FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_custom_diffusion_weights.safetensors",
    "pytorch_custom_diffusion_weights.bin",
    "delta.ckpt",
)
PEFT_SETTINGS = "adapter_config.json"  # beside adapter_model: rank and alpha
DIFFUSERS_SETTINGS = "lora_adapter_metadata"  # the same in a diffusers file's header
KNOWN = (
    "LoRA factors (<module>.lora_A.weight, lora_unet_<module>.lora_down.weight), Custom Diffusion's weights "
    "(<attention>.processor.to_k_custom_diffusion.weight, model.diffusion_model.<attention>.to_k.weight)"
)


def load(path: str | Path, *, weight_name: str | None = None, base: Any = None, name: str = "") -> Control:
    """A control from a file, a folder, or the model hub.

    Args:
        path: the name of a shipped control; a file; a folder that holds one; or a repository of the hub, "owner/name".
        weight_name: which file of the folder or repository; None takes the first of `FILES` that is there, or else the only
            safetensors file.
        base: for Custom Diffusion's files, which hold whole tuned weights: the pair, pipeline or denoiser that they were
            tuned from. Other files need none.
        name: what to call it; "" takes the name in the file, or the file's own.

    Raises:
        ValueError: a file of no known form: the message lists some of what it holds; or its base is not given.
        FileNotFoundError: there is no such file, or no single one in the folder.
        Unavailable: the repository is not in the hub's cache, and the hub is out of reach.
    """
    file = _find(path, weight_name)
    tensors, header = _read(file)
    try:
        if HEADER in header:
            told = json.loads(header[HEADER])
            part = told.get("part", "unet")
            own = {key.removeprefix(f"{part}."): tensor for key, tensor in tensors.items()}
            one = Control(name or told["name"], told["kind"], own, dict(told["facts"]), tuple(told["left_out"]), part)
            if told.get("fingerprint", one.fingerprint) != one.fingerprint:
                raise ValueError("it is damaged: its tensors are not those that it was saved with")
            return one
        name = name or (Path(path).name if file.name in FILES else file.stem)
        if any("custom_diffusion" in key or key.startswith(LDM) for key in tensors):
            return custom_diffusion(name, tensors, base)
        return lora(name, tensors, _settings(header, file))
    except Exception as error:  # of any kind: diffusers and peft take the names apart, and settings may be anything
        why = error if type(error) is ValueError else one_line(error)
        shown = " ".join(", ".join(sorted(tensors)[:SHOWN]).split())
        raise ValueError(
            f"{file}: {why}. It holds {len(tensors)} tensors, such as {shown}; known are {KNOWN}"
        ) from error


def shipped() -> list[Control]:
    """The controls that dtviz ships, in `data/controls` (`$DTVIZ_CONTROLS` to point elsewhere), by name."""
    return [load(file) for file in sorted(folder().rglob("*.safetensors"))]


def folder() -> Path:
    """Where the shipped controls are."""
    return data("controls")


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A file's tensors and header.

    ValueError: it can be read neither as safetensors nor as weights only.
    """
    if file.suffix == ".safetensors":
        with reading(file), safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    held = numbers_of(file)
    warnings.warn(
        f"{file.name} is a pickle, read as weights only; `save` keeps the control as safetensors", stacklevel=3
    )
    return dict(_flat(held)), {}


def _flat(held: Any, prefix: str = ""):
    """The tensors of nested dicts; of "state_dict" without that name."""
    if isinstance(held, torch.Tensor):
        yield prefix.removesuffix("."), held
    elif isinstance(held, Mapping):
        for key, value in held.items():
            yield from _flat(value, prefix if key == "state_dict" else f"{prefix}{key}.")


def _settings(header: Mapping[str, str], file: Path) -> dict[str, Any]:
    """peft's settings of a LoRA, from the file's header or the JSON beside it; empty where there are none."""
    if DIFFUSERS_SETTINGS in header:
        return json.loads(header[DIFFUSERS_SETTINGS])
    beside = file.with_name(PEFT_SETTINGS)
    return json.loads(beside.read_text()) if file.stem == "adapter_model" and beside.is_file() else {}


def _find(path: str | Path, weight_name: str | None) -> Path:
    """The file that is meant, on this machine; fetched from the hub where need be."""
    path, repo = Path(path), str(path)
    own = folder() / f"{path}.safetensors"
    if path.is_file() or own.is_file():
        return path if path.is_file() else own
    if path.is_dir():
        return path / _choose([p.name for p in path.iterdir()], weight_name, where=str(path))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo) or path.suffix in {Path(name).suffix for name in FILES}:
        raise FileNotFoundError(
            f"path={repo!r} is no shipped control, file, folder, or repository of the form owner/name"
        )
    from huggingface_hub import hf_hub_download, list_repo_files, try_to_load_from_cache

    for name in [weight_name] if weight_name else FILES:
        if isinstance(cached := try_to_load_from_cache(repo, name), str):
            return Path(cached)
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") or not hub_answers():
        raise Unavailable(
            f"control {repo!r} is not in this machine's hub cache and the model hub is out of reach: download it where there is "
            f"a network (`hf download {repo}`) and set HF_HOME to that cache, or give a file"
        )
    names = list_repo_files(repo)
    if PEFT_SETTINGS in names:
        hf_hub_download(repo, PEFT_SETTINGS)
    return Path(hf_hub_download(repo, _choose(names, weight_name, where=repo)))


def _choose(names: list[str], weight_name: str | None, *, where: str) -> str:
    """Which file of these. FileNotFoundError: the one asked for is not there, or none stands out."""
    if weight_name in names:
        return weight_name
    found = [name for name in FILES if name in names] or [name for name in names if name.endswith(".safetensors")]
    if weight_name is not None or not found or (len(found) > 1 and found[0] not in FILES):
        asked = f"has no {weight_name!r}" if weight_name else "has no single file of weights: say which by weight_name"
        raise FileNotFoundError(f"{where} {asked}; it holds {', '.join(sorted(names)) or 'nothing'}")
    return found[0]
