"""A control: a small change of a denoiser's weights, such as a slider, a style or another LoRA.

age = dtviz.controls.load("age")  # shipped; or a file, a folder, or a repository of the hub

Files are safetensors, or pickles that are read as weights only: no code in a file is run.
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
from safetensors import safe_open
from safetensors.torch import save

from ..core.denoisers import denoiser_of
from ..files import Unavailable, data, hub_reachable, load_weights_only, one_line, reading, write_atomic

DOWN, UP, DELTA = ".lora_A.weight", ".lora_B.weight", ".weight"
SEGMENTS = ("both", "base", "distilled")
HEADER = "dtviz"  # in a file's metadata: everything of a control but its tensors, as JSON
PEFT, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_SETTINGS = "lora_adapter_metadata"  # peft's settings in the metadata of a diffusers file
DEFAULT = "pytorch_lora_weights.safetensors"  # diffusers' name for a LoRA
OTHER_PARTS = ("text_encoder_2.", "text_encoder.", "text_encoder_3.", "vae.")
REPO = r"[\w-][\w.-]*/[\w-][\w.-]*"  # owner/name
SHOWN = 3  # names in an error


@dataclass(frozen=True, eq=False)
class Control:
    """A change of a denoiser's weights. It fits every network of the same shape, at any scale.

    Attributes:
        name, kind: for figures and files. The kind is "slider", "style", "lora" or another word.
        tensors: for each changed module either `<module>.lora_A.weight` (rank, in, ...) and `<module>.lora_B.weight` (out,
            rank, ...), whose product is the change at scale 1; or `<module>.weight`, the change itself.
        facts: JSON-compatible origin: "prompts", "towards" (text of the upper end), "trained_on", "licence", training settings;
            or "left_out", parts of a file that do not belong to the denoiser, such as "text_encoder, 72 tensors".
        part: name of the denoiser in its pipeline, "unet" or "transformer".
    """

    name: str
    kind: str
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)
    part: str = "unet"

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError(f"control {self.name!r} has no tensors: it would change nothing")
        for key, tensor in self.tensors.items():
            module, form = split(key)
            if not tensor.isfinite().all():
                raise ValueError(f"tensor {key!r} of control {self.name!r} holds nan or infinity")
            if form == DELTA:
                continue
            down, up = self.tensors.get(module + DOWN), self.tensors.get(module + UP)
            if down is None or up is None or down.shape[0] != up.shape[1] or module + DELTA in self.tensors:
                keys = sorted(key for key in self.tensors if split(key)[0] == module)
                needed = f"{DOWN[1:]} (rank, in) and {UP[1:]} (out, rank)"
                raise ValueError(f"control {self.name!r}: module {module!r} needs {needed}, and has {keys}")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the changed modules, sorted."""
        return tuple(sorted({split(key)[0] for key in self.tensors}))

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

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of the weight that a module is changed by."""
        if module + DELTA in self.tensors:
            return tuple(self.tensors[module + DELTA].shape)
        return (len(self.tensors[module + UP]), *self.tensors[module + DOWN].shape[1:])

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, for `load`. diffusers' `load_lora_weights` reads it too if it holds factors alone."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"name": self.name, "kind": self.kind, "facts": dict(self.facts)}
        record |= {"part": self.part, "fingerprint": self.fingerprint}
        tensors = {
            (key if split(key)[1] == DELTA else f"{self.part}.{key}"): tensor.detach().cpu().contiguous()
            for key, tensor in sorted(self.tensors.items())
        }
        write_atomic(path, save(tensors, metadata={HEADER: json.dumps(record, sort_keys=True)}))
        return path

    def __repr__(self) -> str:
        size = sum(tensor.numel() for tensor in self.tensors.values())
        return f"Control({self.name!r}, {self.kind!r}, {len(self.modules)} modules, {size} numbers, {self.fingerprint})"


@dataclass(frozen=True)
class Applied:
    """A control at a scale, in some steps and at some noise levels of a run.

    Attributes:
        control: the control.
        scale: factor of its change. Negative turns a slider the other way; 0 is the plain model.
        segment: steps in which it is on: "both", "base" or "distilled".
        window: (high, low) noise levels sigma between which it is on, both included; None: all. A step counts by the
            level that it starts from, so one distilled step can skip a window that holds ten steps of the base.
    """

    control: Control
    scale: float = 1.0
    segment: str = "both"
    window: tuple[float, float] | None = None

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
        """Tell whether it is on in a step of this role, "base" or "distilled", that starts from this noise level."""
        if self.scale == 0 or self.segment not in ("both", role):
            return False
        slack = 1e-3  # tolerance for rounding between schedulers
        return self.window is None or self.window[1] * (1 - slack) <= sigma <= self.window[0] * (1 + slack)

    def facts(self) -> dict[str, Any]:
        """Return name, fingerprint and settings, JSON-compatible."""
        window = None if self.window is None else [float(level) for level in self.window]
        settings = {"scale": float(self.scale), "segment": self.segment, "window": window}
        return {"name": self.control.name, "fingerprint": self.control.fingerprint} | settings

    def __str__(self) -> str:
        """Return a label such as "smile x 2 (base, sigma 4.2 to 0)"."""
        limits = [self.segment] * (self.segment != "both")
        if self.window is not None:
            limits.append(f"sigma {self.window[0]:g} to {self.window[1]:g}")
        return f"{self.control.name} x {self.scale:g}" + (f" ({', '.join(limits)})" if limits else "")


def load(path: str | Path, *, weight_name: str | None = None, base: Any = None, name: str = "") -> Control:
    """Load a control: dtviz's own file, a LoRA of diffusers, peft or kohya, or diffusers' Custom Diffusion weights.

    Args:
        path: name of a shipped control, a file, a folder that holds one, or a repository of the hub, "owner/name".
        weight_name: file of the folder or repository. None: diffusers' name for a LoRA.
        base: for Custom Diffusion: the pair, pipeline or denoiser that was tuned.
        name: name of the control. "": the one in the file, or the file's own.

    Raises:
        ValueError: the file is damaged, of an unsupported form, or needs `base`. The message names the file.
        Unavailable: the file is not in the hub's cache, and the hub is out of reach.
    """
    file = _find(path, weight_name)
    tensors, header = _read(file)
    try:
        if HEADER in header:
            return _own(tensors, json.loads(header[HEADER]), name)
        name = name or Path(path).name.removesuffix(file.suffix)
        if keys := [key for key in tensors if "dora_scale" in key]:  # diffusers would leave it out
            raise ValueError(f"it is a DoRA, which is not supported; it holds {keys[0]}")
        if any("custom_diffusion" in key for key in tensors):
            return _custom_diffusion(name, tensors, base)
        settings = header.get(DIFFUSERS_SETTINGS, "{}")
        if file.name == PEFT:
            settings = file.with_name(PEFT_SETTINGS).read_text()
        return _lora(name, tensors, json.loads(settings))
    except Exception as error:  # diffusers and peft document no error for names that they do not know
        reason = str(error) if type(error) is ValueError else one_line(error)
        raise ValueError(f"{file}: {textwrap.shorten(reason, 260, placeholder=' ...')}") from error


def shipped() -> list[Control]:
    """Load the controls that dtviz ships, in `data/controls` or the folder `$DTVIZ_CONTROLS`, by file name."""
    return [load(file) for file in sorted(data("controls").rglob("*.safetensors"))]


def split(key: str) -> tuple[str, str]:
    """Return a tensor's module and form, one of DOWN, UP and DELTA."""
    for form in (DOWN, UP, DELTA):
        if key.endswith(form) and len(key) > len(form):
            return key.removesuffix(form), form
    raise ValueError(f"tensor {key!r} is named neither <module>{DOWN}, <module>{UP} nor <module>{DELTA}")


def _own(tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any], name: str) -> Control:
    part = record.get("part", "unet")
    own = {key.removeprefix(f"{part}."): tensor for key, tensor in tensors.items()}
    control = Control(name or record["name"], record["kind"], own, dict(record["facts"]), part)
    if record.get("fingerprint", control.fingerprint) != control.fingerprint:
        raise ValueError("it is damaged: its tensors are not those that it was saved with")
    return control


def _lora(name: str, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Control:
    """Return LoRA factors as a control, by diffusers' own conversions. `settings` are peft's, {} if there are none."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    blocks = SimpleNamespace(layers_per_block=2)  # of SD 1, 2 and XL; some files number the blocks of the original code
    factors, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=blocks)
    if alphas is None:  # not kohya's
        alphas = {key: tensor for key, tensor in tensors.items() if key.endswith(".alpha")}
        factors = {key: tensor for key, tensor in tensors.items() if key not in alphas}
    others = Counter(key.split(".")[0] for key in factors if key.startswith(OTHER_PARTS))
    left_out = [f"{part}, {n} tensors" for part, n in sorted(others.items())]
    own, alphas = (
        {_bare(key): value for key, value in convert_unet_state_dict_to_peft(named).items() if not key.startswith(OTHER_PARTS)}
        for named in (factors, alphas)
    )  # fmt: skip
    if wrong := [key for key in own if not key.endswith((DOWN, UP))]:
        raise ValueError(f"{len(wrong)} of its {len(tensors)} tensors are no LoRA factors: {', '.join(wrong[:SHOWN])}")
    if not own:
        raise ValueError(f"none of it is for the denoiser, but {'; '.join(left_out) or 'for nothing at all'}")
    ranks = {split(key)[0]: tensor.shape[1] for key, tensor in own.items() if key.endswith(UP)}
    alphas = {key.removesuffix(".alpha").removesuffix(DOWN): float(alpha) for key, alpha in alphas.items()}
    if settings and not alphas:
        bare = {_bare(key): value for key, value in settings.items()}
        alphas = {module: _alpha(bare, module, rank) for module, rank in ranks.items()}
    for module, alpha in alphas.items():
        up = own[module + UP]
        exact = up.float() * (alpha / ranks[module])
        own[module + UP] = exact.to(up.dtype) if torch.equal(exact.to(up.dtype).float(), exact) else exact
    part = "transformer" if any(key.startswith("transformer.") for key in factors) else "unet"
    return Control(name, "lora", own, {"left_out": left_out} if left_out else {}, part)


def _alpha(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return a module's alpha as peft resolves it."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), settings.get("lora_alpha", rank))
    return alpha * rank**0.5 if settings.get("use_rslora") else alpha


def _custom_diffusion(name: str, tensors: Mapping[str, torch.Tensor], base: Any) -> Control:
    """Return tuned attention weights less their base's."""
    if base is None:
        raise ValueError("it holds whole tuned weights: give base=, the pair, pipeline or denoiser that was tuned")
    own = {key.replace(".base_layer.", "."): tensor for key, tensor in denoiser_of(base).state_dict().items()}
    change = {}
    for key, tensor in tensors.items():
        key = _bare(key).replace(".processor.", ".").replace("_custom_diffusion", "")
        if key not in own or own[key].shape != tensor.shape:
            raise ValueError(f"its weight {key} does not fit those of base")
        difference = tensor.float() - own[key].cpu().float()
        if key.endswith(DELTA) or difference.any():  # `Control` refuses the change of a bias
            change[key] = difference
    return Control(name, "custom-diffusion", change)


def _bare(key: str) -> str:
    return re.sub(r"^(base_model\.model\.)?(unet\.|transformer\.)?", "", key).replace(".default.weight", ".weight")


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a file's tensors and metadata."""
    if file.suffix != ".safetensors":
        return load_weights_only(file), {}
    with reading(file), safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def _find(path: str | Path, weight_name: str | None) -> Path:
    """Return the file on this machine. It is downloaded from the hub if needed."""
    repo, path = str(path), Path(path)
    for file in (path, path / (weight_name or DEFAULT), data("controls", missing_ok=True) / f"{path}.safetensors"):
        if file.is_file():
            return file
    if path.is_dir() or path.suffix in (".safetensors", ".bin", ".pt") or not re.fullmatch(REPO, repo):
        kinds = (
            f"shipped control, file, folder with {weight_name or DEFAULT} (or weight_name), or repository (owner/name)"
        )
        raise FileNotFoundError(f"path={repo!r} is no {kinds}")
    if weight_name == PEFT:
        _download(repo, PEFT_SETTINGS)
    return _download(repo, weight_name or DEFAULT)


def _download(repo: str, name: str) -> Path:
    """Return a file of the hub's cache, or download it."""
    from huggingface_hub import hf_hub_download

    with suppress(FileNotFoundError):
        return Path(hf_hub_download(repo, name, local_files_only=True))
    if hub_reachable():
        return Path(hf_hub_download(repo, name))
    problem = f"{name} of control {repo!r} is not in this machine's hub cache and the model hub is out of reach"
    raise Unavailable(
        f"{problem}: run `hf download {repo} {name}` where there is a network, and set HF_HOME to its cache"
    )
