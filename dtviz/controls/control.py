"""A control: a small change of a denoiser's weights, such as a slider, a style or another LoRA.

age = dtviz.controls.load("age")  # shipped; or a file, a folder, or a repository of the hub
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save

from ..files import Unavailable, data, hub_reachable, load_weights_only, one_line, read_safetensors, write_atomic

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
SEGMENTS = ("both", "base", "distilled")
HEADER = "dtviz"  # in a file's metadata: everything of a control but its tensors, as JSON
DEFAULT = "pytorch_lora_weights.safetensors"  # diffusers' name for a LoRA
REPO = r"[\w-][\w.-]*/[\w-][\w.-]*"  # owner/name
SHOWN = 3  # names in an error
# In names of LoHa, LoKr, OFT, DoRA, Tucker LoRA and full Custom Diffusion. diffusers' conversions drop some of them.
UNSUPPORTED = r"hada_|lokr_|oft_|dora_scale|lora_magnitude_vector|lora_mid|custom_diffusion"
# Values of peft's settings that change neither scale nor base
PLAIN = {"use_rslora": (False,), "alpha_pattern": ({}, None), "init_lora_weights": (True, False, "gaussian")}


@dataclass(frozen=True, eq=False)
class Control:
    """A change of a denoiser's weights. It fits every network of the same shape, at any scale."""

    name: str
    kind: str  # "slider", "style", "lora" or another word
    # For each changed module `<module>.lora_A.weight` (rank, in, ...) and `<module>.lora_B.weight` (out, rank, ...). Their
    # product is the change at scale 1. A module of kohya's files has underscores for dots.
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    # JSON-compatible origin and training settings, or "left_out", what a file holds beside the denoiser's part
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    part: str = "unet"  # name of the denoiser in its pipeline, or "transformer"

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError(f"control {self.name!r} has no tensors: it would change nothing")
        for key, tensor in self.tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"tensor {key!r} of control {self.name!r} holds nan or infinity")
            module = module_of(key)
            down, up = self.tensors.get(module + DOWN), self.tensors.get(module + UP)
            if down is None or up is None or up.shape != (len(up), len(down), *[1] * (down.ndim - 2)):
                shapes = [None if factor is None else tuple(factor.shape) for factor in (down, up)]
                needed = f"needs {DOWN[1:]} (rank, in) and {UP[1:]} (out, rank), and has {shapes[0]} and {shapes[1]}"
                raise ValueError(f"control {self.name!r}: module {module!r} {needed}")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the changed modules, sorted."""
        return tuple(sorted({module_of(key) for key in self.tensors}))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the tensors' hash."""
        digest = hashlib.sha256()
        for key in sorted(self.tensors):
            tensor = self.tensors[key].detach().cpu().contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def at(self, scale: float = 1.0, *, segment: str = "both", window: tuple[float, float] | None = None) -> Applied:
        """Return this control with a scale, a segment and a window of noise levels, for `attach`."""
        return Applied(self, scale, segment, window)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, for `load`. diffusers' `load_lora_weights` reads it too."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {name: getattr(self, name) for name in ("name", "kind", "part", "fingerprint")}
        record["facts"] = dict(self.facts)
        tensors = {f"{self.part}.{key}": self.tensors[key].detach().cpu().contiguous() for key in sorted(self.tensors)}
        write_atomic(path, save(tensors, metadata={HEADER: json.dumps(record, sort_keys=True)}))
        return path


@dataclass(frozen=True)
class Applied:
    """A control at a scale, in the steps of a segment, and at the noise levels from which these steps start."""

    control: Control
    scale: float = 1.0
    segment: str = "both"  # "base" or "distilled"
    window: tuple[float, float] | None = None  # on between these noise levels, (high, low), both included

    def __post_init__(self) -> None:
        if not isinstance(self.control, Control):
            raise ValueError(f"control is a {type(self.control).__name__}: give what dtviz.controls.load returns")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale!r} must be a finite number; 1 is the strength it was trained at")
        if self.segment not in SEGMENTS:
            raise ValueError(f"segment={self.segment!r} is not one of {', '.join(SEGMENTS)}")
        if self.window is not None and (len(self.window) != 2 or not 0 <= self.window[1] <= self.window[0] < math.inf):
            raise ValueError(f"window={self.window} must be (high, low) finite noise levels, such as (4.2, 0), or None")

    def on(self, role: str, sigma: float) -> bool:
        """Tell whether it is on in a step of this role that starts from this noise level."""
        if self.scale == 0 or self.segment not in ("both", role):
            return False
        slack = 1e-3  # tolerance for rounding between schedulers
        return self.window is None or self.window[1] * (1 - slack) <= sigma <= self.window[0] * (1 + slack)

    def facts(self) -> dict[str, Any]:
        """Return name, fingerprint and settings, JSON-compatible."""
        facts = {"name": self.control.name, "fingerprint": self.control.fingerprint, "segment": self.segment}
        return facts | {"scale": float(self.scale), "window": self.window and [float(level) for level in self.window]}

    def __str__(self) -> str:
        """Return a label such as "smile x 2 (base, sigma 4.2 to 0)"."""
        limits = [self.segment] * (self.segment != "both")
        limits += [f"sigma {self.window[0]:g} to {self.window[1]:g}"] if self.window else []
        return f"{self.control.name} x {self.scale:g}" + (f" ({', '.join(limits)})" if limits else "")


def load(path: str | Path, *, weight_name: str | None = None, name: str = "") -> Control:
    """Load a control: dtviz's own file, or a LoRA of diffusers or kohya that can be applied exactly.

    Args:
        path: name of a shipped control, a file, a folder that holds one, or a repository of the hub, "owner/name".
        weight_name: file of the folder or repository. None: diffusers' name for a LoRA.
        name: name of the control. "": the one in the file, or the file's own.
    """
    file = _find(path, weight_name)
    safe = file.suffix == ".safetensors"
    tensors, header = read_safetensors(file, "pt") if safe else (load_weights_only(file), {})
    try:
        if HEADER in header:
            record = json.loads(header[HEADER])
            own = {key.removeprefix(f"{record['part']}."): tensor for key, tensor in tensors.items()}
            control = Control(name or record["name"], record["kind"], own, dict(record["facts"]), record["part"])
            if record["fingerprint"] != control.fingerprint:
                raise ValueError("it is damaged: its tensors are not those that it was saved with")
            return control
        settings = json.loads(header.get("lora_adapter_metadata", "{}"))  # of a diffusers file
        return _lora(name or Path(path).name.removesuffix(file.suffix), tensors, settings)
    except Exception as error:  # diffusers and peft document no error for names that they do not know
        reason = str(error) if type(error) is ValueError else one_line(error)
        raise ValueError(f"{file}: {textwrap.shorten(reason, 260, placeholder=' ...')}") from error


def shipped() -> list[Control]:
    """Load the controls that dtviz ships, in `data/controls` or the folder `$DTVIZ_CONTROLS`, by file name."""
    return [load(file) for file in sorted(data("controls").rglob("*.safetensors"))]


def module_of(key: str) -> str:
    """Return the module of a tensor's name."""
    module = key.removesuffix(DOWN).removesuffix(UP)
    if module in ("", key):
        raise ValueError(f"tensor {key!r} is named neither <module>{DOWN} nor <module>{UP}")
    return module


def _lora(name: str, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Control:
    """Return LoRA factors as a control. `settings` are peft's, {} if there are none."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    settings = {_bare(key): value for key, value in settings.items()}
    if any(key.startswith("base_model.model.") for key in tensors):
        raise ValueError("it is a peft adapter without its alpha: save it by diffusers' save_lora_adapter")
    for key, allowed in PLAIN.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"its settings have {key}={settings[key]!r}, which is not supported")
    factors, alphas, others = {}, {}, Counter()
    wrong = [key for key in tensors if re.search(UNSUPPORTED, key)]
    renamed = {} if wrong else convert_unet_state_dict_to_peft(_converted(dict(tensors)))
    for key, value in renamed.items():
        bare = _bare(key)
        if part := re.match(r"(text_encoder\w*|vae)\.|(lora_te[123]?)_", bare):
            others[part[1] or part[2]] += 1
        elif bare.endswith(".alpha"):
            alphas[bare.removesuffix(".alpha").removesuffix(DOWN)] = float(value)
        elif bare.endswith((DOWN, UP)):
            factors[bare] = value
        else:
            wrong.append(bare)
    left_out = [f"{part}, {n} tensors" for part, n in sorted(others.items())]
    if wrong := wrong + [f"{module}.alpha" for module in alphas if module + UP not in factors]:
        raise ValueError(f"{len(wrong)} of its {len(tensors)} tensors are no LoRA factors: {', '.join(wrong[:SHOWN])}")
    if not factors:
        raise ValueError(f"none of it is for the denoiser, but {'; '.join(left_out) or 'for nothing at all'}")
    ranks = {module_of(key): tensor.shape[1] for key, tensor in factors.items() if key.endswith(UP)}
    if settings and not alphas:
        alphas = {module: settings.get("lora_alpha", rank) for module, rank in ranks.items()}
    for module, alpha in alphas.items():
        up = factors[module + UP]
        exact = up.float() * (alpha / ranks[module])
        factors[module + UP] = exact.to(up.dtype) if torch.equal(exact.to(up.dtype).float(), exact) else exact
    part = "transformer" if any(key.startswith("transformer.") for key in renamed) else "unet"
    return Control(name, "lora", factors, {"left_out": left_out} if left_out else {}, part)


def _converted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under diffusers' names if their modules have those of Stable Diffusion's original code."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    if not any(re.match(r"(lora_unet_)?(input_blocks|middle_block|output_blocks)_", key) for key in tensors):
        return tensors
    blocks = SimpleNamespace(layers_per_block=2)  # of SD 1, 2 and XL
    state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=blocks)
    factors = [key for key in tensors if key.endswith(("_down.weight", "_up.weight"))]
    if len(state) != len(factors):  # two names became one
        raise ValueError(f"diffusers reads {len(state)} of its {len(factors)} factors")
    return state | (alphas or {})


def _bare(key: str) -> str:
    """Return a name without the prefix of the denoiser, in peft's words."""
    key = re.sub(r"^(unet\.|transformer\.|lora_unet_|lora_transformer_)", "", key).replace(".default.weight", ".weight")
    return key.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")


def _find(path: str | Path, weight_name: str | None) -> Path:
    """Return the file on this machine. It is downloaded from the hub if needed."""
    repo, path, wanted = str(path), Path(path).expanduser(), weight_name or DEFAULT
    for file in (path, path / wanted, data("controls", missing_ok=True) / f"{path}.safetensors"):
        if file.is_file():
            return file
    if path.is_dir() or path.suffix in (".safetensors", ".bin", ".pt") or not re.fullmatch(REPO, repo):
        kinds = f"shipped control, file, folder with {wanted} (or weight_name), or repository (owner/name)"
        raise FileNotFoundError(f"path={repo!r} is no {kinds}")
    from huggingface_hub import hf_hub_download

    with suppress(FileNotFoundError):
        return Path(hf_hub_download(repo, wanted, local_files_only=True))
    reason = "the model hub is out of reach"
    if hub_reachable():
        try:
            return Path(hf_hub_download(repo, wanted))
        except Exception as error:  # of the hub's client and of the library below it, with many lines
            reason = f"the model hub does not give it: {one_line(error)}"
    problem = f"{wanted} of control {repo!r} is neither a file here nor in the hub's cache, and {reason}"
    cure = f"where there is a network, run `hf download {repo} {wanted}` and set HF_HOME to its cache"
    raise Unavailable(f"{problem}; {cure}")
