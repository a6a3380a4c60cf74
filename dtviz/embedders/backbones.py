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
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..outside import numbers_of
from ..quiet import silent


class Model(NamedTuple):
    """A frozen network: `encode` (b, 3, h, w) float32 in [0, 1] -> (b, dim); and if it can, `text` prompts -> (n, dim)
    and `classify` encoded images (b, dim) -> class probabilities (b, classes).

    `scale`: what a model with a text half multiplies its cosines by before a softmax.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    dim: int
    text: Callable[[Sequence[str]], torch.Tensor] | None = None
    classify: Callable[[torch.Tensor], torch.Tensor] | None = None
    scale: float | None = None


STYLE_BLOCKS = (0, 2, 4, 7)  # of EfficientNet-Lite0: 16 channels at half the side, 24, 40, 80 at a sixteenth


# Convolutions and the norms after them, in the whole network and in its blocks
_LITE_LAYERS = (
    ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"),
)  # fmt: skip


def efficientnet(weights: Path, device: torch.device) -> Model:
    """EfficientNet-Lite0 from its state dict: 160 px, last feature map averaged over its positions."""
    model = _efficientnet(weights, device)
    return Model(
        lambda images: model.extract_features(_lite_pixels(images)).mean(dim=(2, 3)),
        1280,
        classify=lambda features: model._fc(features).softmax(dim=1),
    )


def efficientnet_style(weights: Path, device: torch.device) -> Model:
    """Mean and standard deviation over positions of EfficientNet-Lite0's early channels: texture and colour, not shape."""
    model = _efficientnet(weights, device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        hidden, seen = model._swish(model._bn0(model._conv_stem(_lite_pixels(images)))), []
        for i, block in enumerate(model._blocks[: STYLE_BLOCKS[-1] + 1]):
            hidden = block(hidden)
            if i in STYLE_BLOCKS:
                seen += [hidden.mean(dim=(2, 3)), hidden.std(dim=(2, 3))]
        return torch.cat(seen, dim=1)

    return Model(encode, 320)


def _efficientnet(weights: Path, device: torch.device) -> torch.nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")  # its `from_pretrained` prints, and else does the same
    model.load_state_dict(numbers_of(weights))
    model.eval().requires_grad_(False)
    for owner in (model, *model._blocks):  # the same network without its batch norms: 1.3x on a CPU
        for conv, norm in _LITE_LAYERS:
            if hasattr(owner, conv):
                setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
                setattr(owner, norm, torch.nn.Identity())
    return model.to(device, memory_format=torch.channels_last)  # 1.7x on a CPU


def _lite_pixels(images: torch.Tensor) -> torch.Tensor:
    """160 px, as the TensorFlow original: MEAN_RGB, STDDEV_RGB.

    The package's padding is fixed for 224 px; 160 is also a multiple of the total stride, 32, so the padding is the same.
    """
    images = (_resize(images, 160, "bilinear") * 255 - 127) / 128
    return images.contiguous(memory_format=torch.channels_last)


def dreamsim(folder: Path, kind: str, device: torch.device) -> Model:
    """DreamSim of type `kind` by its own package, from the files in `folder` alone."""
    hub_load, hub_dir = torch.hub.load, torch.hub.get_dir()
    plain = kind.removesuffix("_patch")
    settings = {"cache_dir": str(folder), "dreamsim_type": plain, "use_patch_model": plain != kind}

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
                model, _ = load(device=str(device), normalize_embeds=True, **settings)
        except UserWarning as warning:
            raise ValueError(
                f"{folder}: {warning} (are the weights of type {kind!r} from another release?)"
            ) from warning
        finally:
            torch.hub.load = hub_load
            torch.hub.set_dir(hub_dir)

    def encode(images: torch.Tensor) -> torch.Tensor:
        # Its own preprocessing resizes PIL images to 224 px, bicubic; PIL always antialiases, and clips the overshoot.
        features = model.embed(_resize(images, 224, "bicubic"))
        if plain != kind:  # (n, 1 + patches, 768): as the package's distance joins them
            features = torch.cat([features[:, 0], features[:, 1:].mean(dim=1)], dim=1)
        return features

    return Model(encode, model.embed_size * (1 if plain == kind else 2))


def inception(weights: Path, antialias: bool, device: torch.device) -> Model:
    """FID's Inception-v3: 299 px, bicubic and antialiased (Parmar et al. 2022), or as pytorch-fid resizes, neither."""
    from .inception import SIZE, load  # torchvision, which it imports, takes a second

    model, classes = load(weights, device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        if antialias:
            images = _resize(images, SIZE, "bicubic")
        else:
            images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        return model((255 * images - 128) / 128)  # as TensorFlow's graph

    return Model(encode, 2048, classify=lambda features: (features @ classes.T).softmax(dim=1))


def dinov2(folder: Path, device: torch.device) -> Model:
    """A transformers DINOv2 from its folder: the class token after the last norm."""
    from transformers import Dinov2Model

    how = _preprocessing(folder, "dinov2")
    mean, std = (torch.tensor(how[key], device=device)[:, None, None] for key in ("image_mean", "image_std"))
    with silent():
        model = Dinov2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.eval().requires_grad_(False).to(device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        pixels = _resize(images, how["size"]["shortest_edge"], "bicubic", crop=how["crop_size"]["height"])
        return model((pixels - mean) / std).pooler_output

    return Model(encode, model.config.hidden_size)


def _preprocessing(folder: Path, kind: str) -> dict:
    """preprocessor_config.json of a transformers model, which has to be of this kind."""
    found = json.loads((folder / "config.json").read_text()).get("model_type")
    if found != kind:
        raise ValueError(f"{folder} holds a model of type {found!r}; only transformers' {kind!r} is read here")
    return json.loads((folder / "preprocessor_config.json").read_text())


def clip(folder: Path, device: torch.device) -> Model:
    """A transformers CLIP from its folder, both halves."""
    from transformers import CLIPModel, CLIPTokenizer

    how = _preprocessing(folder, "clip")
    mean, std = (torch.tensor(how[key], device=device)[:, None, None] for key in ("image_mean", "image_std"))
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    with silent():
        model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.eval().requires_grad_(False).to(device)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def encode(images: torch.Tensor) -> torch.Tensor:
        crop = size if how.get("do_center_crop", False) else None
        pixels = (_resize(images, size, "bicubic", crop=crop) - mean) / std
        return model.visual_projection(model.vision_model(pixels).pooler_output)

    def text(prompts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(prompts), padding=True, return_tensors="pt").to(device)
        for prompt, mask in zip(prompts, tokens.attention_mask, strict=True):
            if mask.sum() > length:  # truncation would score another prompt than the one asked for
                raise ValueError(f"prompts: {prompt!r} has {mask.sum()} tokens; this model reads at most {length}")
        return model.text_projection(model.text_model(**tokens).pooler_output)

    return Model(encode, model.config.projection_dim, text, scale=float(model.logit_scale.exp()))


def _resize(images: torch.Tensor, size: int, mode: str, *, crop: int | None = None) -> torch.Tensor:
    """(b, 3, h, w) -> (b, 3, size, size) in [0, 1], the whole image squeezed; with `crop` the short side is made `size`,
    and the middle `crop` pixels on a side are taken, as CLIP and DINOv2 do."""
    height, width = images.shape[-2:]
    short = min(height, width)
    new = (size, size) if crop is None else (size * height // short, size * width // short)
    if new != (height, width):
        images = F.interpolate(images, size=new, mode=mode, antialias=True).clamp(0, 1)
    side = crop or size
    top, left = (new[0] - side) // 2, (new[1] - side) // 2
    return images[..., top : top + side, left : left + side]
