"""The networks behind the embedders, each with its own preprocessing: images in [0, 1] -> raw features.

Every builder takes files that are there and a device, and imports its package when it is called.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Model(NamedTuple):
    """A frozen network: `encode` (b, 3, h, w) float32 in [0, 1] -> (b, dim); `text` prompts -> (n, dim), if it can."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    dim: int
    text: Callable[[Sequence[str]], torch.Tensor] | None = None


def efficientnet(weights: Path, device: torch.device) -> Model:
    """EfficientNet-Lite0 from its state dict: 160 px, last feature map averaged over its positions."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")  # its `from_pretrained` prints, and else does the same
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # Its padding is fixed for 224 px; 160 is also a multiple of the total stride, 32, so the padding is the same.
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # 1.7x on a CPU

    def encode(images: torch.Tensor) -> torch.Tensor:
        images = (
            _resize(images, 160, "bilinear") * 255 - 127
        ) / 128  # as the TensorFlow original: MEAN_RGB, STDDEV_RGB
        return model.extract_features(images.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    return Model(encode, 1280)


def dreamsim(folder: Path, kind: str, device: torch.device) -> Model:
    """DreamSim of type `kind` by its own package, from the files in `folder` alone."""
    hub_load, hub_dir = torch.hub.load, torch.hub.get_dir()

    def load_local(repo: str, model: str) -> torch.nn.Module:
        return hub_load(str(folder / f"{repo.split(':')[0].replace('/', '_')}_main"), model, source="local")

    with warnings.catch_warnings():
        # The package wraps its network in peft twice, the second time replacing the first: harmless.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
        # Without its adapter the network is not DreamSim; peft only warns.
        warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
        from dreamsim import dreamsim as load

        # torch.hub.load asks GitHub for the branch although the code is here; the package also moves torch's hub folder.
        torch.hub.load = load_local
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # "Using cached ..."
                model, _ = load(device=str(device), cache_dir=str(folder), normalize_embeds=True, dreamsim_type=kind)
        except UserWarning as warning:
            raise ValueError(
                f"{folder}: {warning} (are the weights of type {kind!r} from another release?)"
            ) from warning
        finally:
            torch.hub.load = hub_load
            torch.hub.set_dir(hub_dir)
    # Its own preprocessing resizes PIL images to 224 px, bicubic; PIL always antialiases, and clips the overshoot.
    return Model(lambda images: model.embed(_resize(images, 224, "bicubic")), model.embed_size)


def clip(folder: Path, device: torch.device) -> Model:
    """A transformers CLIP from its folder, both halves."""
    from transformers import CLIPModel, CLIPTokenizer

    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "clip":
        raise ValueError(f"{folder} holds a model of type {kind!r}; only transformers' 'clip' is read here")
    how = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(how[key], device=device)[:, None, None] for key in ("image_mean", "image_std"))
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.eval().requires_grad_(False).to(device)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def encode(images: torch.Tensor) -> torch.Tensor:
        pixels = (_resize(images, size, "bicubic", crop=how.get("do_center_crop", False)) - mean) / std
        return model.visual_projection(model.vision_model(pixels).pooler_output)

    def text(prompts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(prompts), padding=True, return_tensors="pt").to(device)
        for prompt, mask in zip(prompts, tokens.attention_mask, strict=True):
            if mask.sum() > length:  # truncation would score another prompt than the one asked for
                raise ValueError(f"prompts: {prompt!r} has {mask.sum()} tokens; this model reads at most {length}")
        return model.text_projection(model.text_model(**tokens).pooler_output)

    return Model(encode, model.config.projection_dim, text)


def _resize(images: torch.Tensor, size: int, mode: str, *, crop: bool = False) -> torch.Tensor:
    """(b, 3, h, w) -> (b, 3, size, size) in [0, 1]: the whole image squeezed, or its middle (`crop`, as CLIP does)."""
    height, width = images.shape[-2:]
    short = min(height, width)
    new = (size * height // short, size * width // short) if crop else (size, size)
    if new != (height, width):
        images = F.interpolate(images, size=new, mode=mode, antialias=True).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return images[..., top : top + size, left : left + size]
