"""Loading pairs. Hub pairs have tiny random weights in each repository's layout, loaded by the code of the real ones.

The oracle of every sampler is the pair's own diffusers pipeline, called by hand as the model cards say.
"""

import copy
import inspect
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dtviz
from dtviz.core.decode import decode_latents
from dtviz.files import data, hub_reachable
from dtviz.models.load import _fingerprints, check_available, load, local_folders, read_weights
from dtviz.models.registry import FLUX, SD15, SDXL, SPECS

from .repos import BASES

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
EMBEDDED = [name for name, spec in SPECS.items() if spec.embedded and (not spec.adapter or "lightning" in name)]
CALLS = {FLUX: {"height": 32, "width": 32}}
DISTILLED = {"sdxl-lcm": {"time_cond_proj_dim": 16}, "flux-schnell": {"guidance_embeds": False}}  # unlike the base
EVEN, LCM = [999, 749, 499, 249], [999, 759, 499, 259]
TIMESTEPS = {
    "sdxl-dmd": EVEN, "sdxl-lcm": LCM, "sdxl-turbo": EVEN, "sdxl-lightning": EVEN, "sdxl-dmd-lora": EVEN,
    "sdxl-lcm-lora": LCM, "sdxl-lightning-lora": EVEN, "sdxl-hyper-lora": EVEN, "sdxl-tcd-lora": LCM, "sd15-lcm-lora": LCM,
    "sd15-hyper-lora": EVEN, "flux-schnell": [1000, 750, 500, 250],
    # 3 s / (1 + 2 s) of even steps between that of 1 and that of 1/1000, as SD 3's own scheduler has it
    "sd35-turbo": [1000 * 3 * s / (1 + 2 * s) for s in np.linspace(1, 3 / 1002, 4)],
}  # fmt: skip
# Names of the two factors in published files, and the factor alpha / rank; kohya's where nothing is said
KOHYA = ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", 0.5)
KEYS = {
    "sdxl-tcd-lora": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", 1.0),
    "sdxl-dmd-lora": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", 1.0),
}


def lora_keys(name: str, module: str) -> list[str]:
    keys = KEYS.get(name, KOHYA)
    return [key.format(module.replace(".", "_") if keys is KOHYA else module) for key in keys[:2]]


def random_lora(name: str, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on the attentions of a network, under the keys of this pair's published file."""
    state = {}
    for path, module in network.named_modules():
        if path.endswith(("to_q", "to_k", "to_v", "to_out.0")) and isinstance(module, torch.nn.Linear):
            down, up = lora_keys(name, path)
            state |= {down: torch.randn(2, module.in_features) * 0.3, up: torch.randn(module.out_features, 2) * 0.3}
            if name not in KEYS:
                state[down.replace("lora_down.weight", "alpha")] = torch.tensor(1.0)
    return state


def save_distilled(name: str, network: torch.nn.Module, folder: Path, variant: str | None = None) -> None:
    """Save a network in the layout of this pair's repository. Of a LoRA it is the base."""
    folder.mkdir(parents=True)
    if SPECS[name].adapter:
        save_file(random_lora(name, network), folder / SPECS[name].file)
    elif "." in SPECS[name].file:
        save_file(network.state_dict(), folder / SPECS[name].file)
    else:
        network.save_pretrained(folder / SPECS[name].file, variant=variant)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The base of a repository, made once: its folder and its network."""

    @cache
    def base(repo: str) -> tuple[Path, torch.nn.Module]:
        folder = tmp_path_factory.mktemp("bases") / "org" / "base"
        torch.manual_seed(0)
        pipe = BASES[repo]()
        pipe.save_pretrained(folder)
        return folder, pipe.components.get("unet") or pipe.transformer

    return base


@pytest.fixture
def lay_out(bases, tmp_path, monkeypatch):
    """Save a hub pair's repositories, and let its name mean them."""

    def make(name: str) -> str:
        spec, distilled = SPECS[name], tmp_path / name / "distilled"
        base, network = bases(spec.base)
        if not spec.adapter:
            torch.manual_seed(1)
            network = type(network).from_config(network.config, **DISTILLED.get(name, {}))
        save_distilled(name, network, distilled)
        settings = {key: value for key, value in spec.settings.items() if key != "size"}
        settings["call"] = settings.get("call", {}) | CALLS.get(spec.base, {})
        monkeypatch.setitem(SPECS, name, replace(spec, base=str(base), distilled=str(distilled), settings=settings))
        return name

    return make


def by_hand(pair: dtviz.Pair) -> torch.Tensor:
    """Latents of the distilled model by one pipeline call with its network and scheduler, as its card says."""
    network = pair.distilled if isinstance(pair.distilled, torch.nn.Module) else pair.base
    scheduler = type(pair.distilled_scheduler).from_config(pair.distilled_scheduler.config)
    components = pair.pipeline.components | {pair.denoiser_name: network, "scheduler": scheduler}
    unchecked = {"requires_safety_checker": False} if "safety_checker" in components else {}
    pipe = type(pair.pipeline)(**components, **unchecked)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": pair.steps, "guidance_scale": pair.guidance, "output_type": "latent"} | pair.call
    if pair.timesteps is not None:
        scheduler.register_to_config(original_inference_steps=1000)
        call = {"timesteps": list(pair.timesteps)} | {k: v for k, v in call.items() if k != "num_inference_steps"}
    if "eta" in inspect.signature(scheduler.step).parameters:
        call["eta"] = 0.3 if type(scheduler).__name__ == "TCDScheduler" else 0.0
    if isinstance(pair.distilled, str):
        pair.base.set_adapters(pair.distilled)
        pair.base.enable_adapters()
    try:
        return pipe("a dog", generator=[torch.Generator().manual_seed(0)], **call).images
    finally:
        if isinstance(pair.distilled, str):
            pair.base.disable_adapters()


@pytest.mark.parametrize("name", TIMESTEPS)
def test_a_hub_pair(name, lay_out):
    """Timesteps and sigmas, capture, every method at k = 1; base and distilled model are what diffusers makes of them."""
    repository = SPECS[name].base
    pair, spec = load(lay_out(name), device="cpu"), SPECS[name]
    assert type(pair.distilled_scheduler).__name__ == spec.scheduler
    assert isinstance(pair.distilled, str) == spec.adapter

    distilled = dtviz.generate(pair, "a dog", method="distilled", seeds=[0])
    np.testing.assert_allclose(distilled.timesteps, TIMESTEPS[name], rtol=1e-5)
    torch.testing.assert_close(distilled.final, by_hand(pair), atol=2e-4, rtol=2e-4)
    reference = type(pair.distilled_scheduler).from_config(pair.distilled_scheduler.config)
    if repository == FLUX:
        sigmas = [t / 1000 for t in TIMESTEPS[name]]
    elif hasattr(reference, "sigmas") and "alphas_cumprod" not in vars(reference):
        reference.set_timesteps(pair.steps)
        sigmas = reference.sigmas[:-1]
    else:  # noise over signal at these timesteps
        signal = reference.alphas_cumprod[torch.tensor(TIMESTEPS[name])]
        sigmas = ((1 - signal) / signal).sqrt()
    np.testing.assert_allclose(distilled.sigmas, sigmas, rtol=2e-3)

    base = dtviz.generate(pair, "a dog", method="base", base_steps=4, seeds=[0])
    call = {"num_inference_steps": 4, "guidance_scale": pair.base_guidance, "output_type": "latent"} | dict(pair.call)
    with dtviz.capture(pair.pipeline) as trace:
        plain = pair.pipeline("a dog", generator=[torch.Generator().manual_seed(0)], **call)
    torch.testing.assert_close(base.final, plain.images.float(), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(base.x0, trace.x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(base.sigmas, trace.sigmas)

    for method in ("hybrid", "skip"):
        trace = dtviz.generate(pair, "a dog", method=method, k=1, seeds=[0], handover="distilled-scheduler")
        assert torch.isfinite(trace.final).all()
        assert trace.steps_run["distilled"] == pair.steps - 1
    matched = dtviz.generate(pair, "a dog", method="hybrid", handover="matched-sigma", base_steps=8, seeds=[0])
    assert torch.isfinite(matched.final).all()
    assert matched.steps_run["distilled"] == pair.steps - 1
    assert matched.sigmas[matched.steps_run["base"]] == pytest.approx(float(distilled.sigmas[1]), rel=1e-3)
    assert (matched.sigmas.diff() < 0).all() or repository not in (SDXL, SD15)


def test_flux_guidance_and_noise_levels(lay_out):
    """Guidance is an input of the base alone, and noise levels shift with the size."""
    pair = load(lay_out("flux-schnell"), device="cpu")
    inputs = []

    def listen(_, args, kwargs) -> None:
        inputs.append(kwargs.get("guidance"))

    options = {"method": "hybrid", "seeds": [0], "handover": "distilled-scheduler"}
    with pair.distilled.register_forward_pre_hook(listen, with_kwargs=True):
        usual, strong = (dtviz.generate(pair, "a dog", base_guidance=g, **options) for g in (None, 7.0))
    assert inputs == [None] * 6
    assert usual.provenance["base_guidance"] == 1.0
    assert not torch.equal(usual.x0[0], strong.x0[0])
    with pytest.raises(ValueError, match="base_guidance=0.0 must be at least 1"):
        dtviz.generate(pair, "a dog", base_guidance=0.0, **options)

    base = dtviz.generate(pair, "a dog", method="base", base_steps=4, seeds=[0])
    matched = dtviz.generate(pair, "a dog", method="hybrid", base_steps=4, seeds=[0])
    assert matched.provenance["handover"] == "matched-sigma"
    above = [float(s) for s in base.sigmas if s > 0.75]  # shifted as by the pipeline, see test_a_hub_pair
    np.testing.assert_allclose(matched.sigmas, [*above, 0.75, 0.5, 0.25], rtol=1e-5)


def test_paper_settings(lay_out):
    """LCM's own grid for DMD2, and guidance 0 for LCM, which is refused without `paper_settings`."""
    lay_out("sdxl-dmd")
    for paper, timesteps in ((False, EVEN), (True, LCM)):
        pair = load("sdxl-dmd", device="cpu", paper_settings=paper)
        assert pair.paper_settings == paper
        trace = dtviz.generate(pair, "a dog", method="distilled", seeds=[0])
        assert trace.timesteps.tolist() == timesteps

    lay_out("sdxl-lcm")
    trained, paper = (load("sdxl-lcm", device="cpu", paper_settings=value) for value in (False, True))
    assert [pair.guidance for pair in (trained, paper)] == [8.0, 0.0]
    trace = dtviz.generate(paper, "a dog", method="distilled", seeds=[0])
    torch.testing.assert_close(trace.final, by_hand(paper), atol=2e-4, rtol=2e-4)
    with pytest.raises(ValueError, match="guidance=0 must be at least 1"):
        dtviz.generate(trained, "a dog", method="distilled", guidance=0, seeds=[0])


@pytest.mark.parametrize("name", ["sdxl-hyper-lora", "sdxl-dmd-lora"])
def test_a_lora_changes_the_base_as_its_file_says(name, lay_out, bases):
    """Each matrix by alpha / rank of up down, computed from the file's keys of each kind."""
    pair, network = load(lay_out(name), device="cpu"), copy.deepcopy(bases(SDXL)[1]).eval()
    state, scale = load_file(Path(SPECS[name].distilled) / SPECS[name].file), KEYS.get(name, KOHYA)[2]
    for key, weight in network.named_parameters():
        down, up = lora_keys(name, key.removesuffix(".weight"))
        if down in state:
            weight.data += scale * state[up] @ state[down]
    distilled = dtviz.generate(pair, "a dog", method="distilled", seeds=[0])
    expected = dtviz.generate(replace(pair, distilled=network), "a dog", method="distilled", seeds=[0])
    torch.testing.assert_close(distilled.final, expected.final, atol=1e-3, rtol=1e-3)


def test_a_lora_that_does_nothing_or_too_much_is_refused(lay_out):
    name = lay_out("sdxl-hyper-lora")
    file = Path(SPECS[name].distilled) / SPECS[name].file
    state = load_file(file)
    query = next(key for key in state if "attn1_to_q.lora_down" in key).split(".")[0]
    text = {
        f"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.{end}": state[f"{query}.{end}"].clone()
        for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    uneven = {key: value * 3 if "up_blocks" in key and "alpha" in key else value for key, value in state.items()}
    for bad, message in (
        ({key: value * ("lora_up" not in key) for key, value in state.items()}, "leaves the base as it is"),
        (uneven, "alpha_pattern keys did not match"),  # peft's warning; the LoRA would be wrong
        (state | text, r"changes \['text_encoder'\], which base and distilled model share"),
    ):
        save_file(bad, file)
        with pytest.raises(ValueError, match=f"pair 'sdxl-hyper-lora'.*{message}"):
            load(name, device="cpu")


def test_a_pickle_is_read_as_weights_only_and_with_a_warning(lay_out, monkeypatch):
    """And casting it, or decoding with an autoencoder in half precision, logs nothing."""
    name, logs = lay_out("sdxl-dmd"), []
    monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", logs.append)
    file = Path(SPECS[name].distilled) / SPECS[name].file
    state = read_weights(file)
    file.unlink()
    torch.save(state, file.with_suffix(".bin"))
    with pytest.warns(UserWarning, match=r"dmd2_sdxl_4step_unet_fp16.bin is a pickle, read as weights only"):
        pair = load(name, device="cpu", dtype=torch.bfloat16)
    assert torch.equal(pair.distilled.state_dict()["conv_in.weight"], state["conv_in.weight"].bfloat16())
    assert {parameter.dtype for parameter in pair.distilled.parameters()} == {torch.bfloat16}
    pair.pipeline.vae.half().register_to_config(force_upcast=True)
    decode_latents(torch.randn(1, 4, 8, 8), pair)
    assert (pair.pipeline.vae.dtype, logs) == (torch.float16, [])


@pytest.mark.parametrize("name", ["sdxl-dmd", "sdxl-hyper-lora"])
def test_offloading_changes_no_bit(name, lay_out):
    """diffusers' hooks; on a CPU, where host and device are one. A layer that is offloaded alone leaves its LoRA to peft."""
    lay_out(name)
    pairs = [load(name, device="cpu", offload=offload) for offload in (True, False)]
    for method in ("hybrid", "base", "distilled"):
        traces = [dtviz.generate(one, "a dog", method=method, base_steps=2, seeds=[0], fuse=False) for one in pairs]
        assert torch.equal(traces[0].final, traces[1].final)
    images = [dtviz.decode(trace, pair, final=True) for trace, pair in zip(traces, pairs, strict=True)]
    assert torch.equal(*images)
    with pytest.raises(ValueError, match="offload='disk' must be True or False"):
        load(name, offload="disk")


# Local files, the hub, and neither


@pytest.fixture(name="cache")
def hub_cache(monkeypatch, tmp_path):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("diffusers.utils.constants.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return tmp_path / "hub"


def snapshots(name: str, cache: Path, bases) -> None:
    """Save a pair of the SDXL family in the cache, at the pinned commits, in half precision."""
    spec = SPECS[name]
    repos = zip((spec.base, spec.distilled), spec.revisions, strict=True)
    base, distilled = (cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit for repo, commit in repos)
    folder, network = bases(SDXL)
    diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float16).save_pretrained(base, variant="fp16")
    save_distilled(name, copy.deepcopy(network).half(), distilled, "fp16")


@pytest.mark.parametrize("name", ["sdxl-lightning", "sdxl-turbo", "sdxl-hyper-lora"])
def test_a_cached_pair_is_loaded_at_the_pinned_commits_without_a_network(name, cache, bases, monkeypatch):
    absent = pytest.raises(dtviz.Unavailable, match=f"missing: {SDXL}")
    with absent:
        load(name)
    snapshots(name, cache, bases)
    check_available(name)
    assert load(name, device="cpu", dtype=torch.float16).base.dtype == torch.float16
    start = time.monotonic()
    with absent:
        load(name, device="cpu", dtype=torch.float32)  # only files of the variant are there
    with monkeypatch.context() as patch, absent:
        patch.setitem(SPECS, name, replace(SPECS[name], revisions=("0" * 40, None)))
        check_available(name)
    for file in cache.glob("models--stabilityai--stable-diffusion-xl*/snapshots/*/text_encoder_2/*.safetensors"):
        file.unlink()
    command = f"`hf download {SDXL} --revision {SPECS[name].revisions[0]}` where there is a network"
    with pytest.raises(dtviz.Unavailable, match=f"model hub is out of reach. Run {command}.*emoji-dmd"):
        check_available(name)
    assert time.monotonic() - start < 5


def test_missing_files_are_downloaded_at_the_pinned_commits(cache, bases, monkeypatch):
    name, calls = "sdxl-turbo", []

    def download(repo, *, revision, local_files_only=False, **options):
        folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
        if local_files_only and not folder.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            calls.append((repo, revision))
        if len(calls) == 1 and not folder.exists():
            snapshots(name, cache, bases)
        return str(folder)

    monkeypatch.setattr("dtviz.files.hub_reachable", lambda: True)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pair, spec = load(name, device="cpu", dtype=torch.float16), SPECS[name]
    assert calls == [(spec.base, spec.revisions[0]), (spec.distilled, spec.revisions[1])]
    assert load(name, device="cpu", dtype=torch.float16).fingerprint == pair.fingerprint
    assert len(calls) == 2  # the second time from local files

    def refuse(repo, **options):
        raise RuntimeError("gated\nrepository")  # the hub's client documents no common error

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", refuse)
    message = "pair 'sdxl-lcm': the model hub does not give .* gated repository.*hf auth login"
    with pytest.raises(dtviz.Unavailable, match=message):
        load("sdxl-lcm", device="cpu", dtype=torch.float16)


def test_a_hub_that_accepts_and_never_answers_is_out_of_reach(monkeypatch):
    """As a proxy does that refuses the hub: the client would try again for minutes."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not hub_reachable(0.2)

        def answer() -> None:
            for _ in range(2):  # the first connection was given up
                with server.accept()[0] as connection, suppress(OSError):
                    connection.sendall(NOT_FOUND)

        thread = threading.Thread(target=answer)
        thread.start()
        assert hub_reachable(5.0)
        thread.join()


# The shipped models


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_shipped_pairs(name, capfd):
    """Loaded by diffusers' own classes, silently; the middle of a red heart is red."""
    pair = load(name, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert type(pair.pipeline).__name__ == "StableDiffusionPipeline"
    network = pair.base if isinstance(pair.distilled, str) else pair.distilled
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    image = dtviz.decode(dtviz.generate(pair, "red heart", seeds=[0]), pair, final=True)[0]
    assert image.shape == (3, 64, 64)
    red, green, blue = image[:, 24:40, 24:40].mean((1, 2))
    assert red > max(green, blue) + 0.2


def test_a_lora_pair_is_one_network():
    """With its adapter switched off, before and after a run of the distilled model, it is the base. diffusers alone loads it."""
    pair = load("emoji-dmd-lora", device="cpu")
    pipe = diffusers.DiffusionPipeline.from_pretrained(data("models") / SPECS["emoji-dmd"].base)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    sizes = [sum(p.numel() for p in module.parameters()) for module in (pair.base, pipe.unet)]
    assert sizes[0] < 1.4 * sizes[1]
    call = {"prompt": "dog face", "seeds": [0], "base_steps": 2}
    before, _, after = (dtviz.generate(pair, method=name, **call).final for name in ("base", "distilled", "base"))
    assert torch.equal(before, after)
    pair.pipeline.unet = pipe.unet.eval()
    whole = dtviz.generate(replace(pair, distilled=pipe.unet), method="base", **call)
    torch.testing.assert_close(before, whole.final)


def test_fingerprints_differ_between_pairs_and_agree_on_the_base():
    """They are those of v0.1: cached results depend on them."""
    names = ("emoji-dmd", "emoji-dmd-lora", "emoji-lcm")
    prints = [_fingerprints(SPECS[name], local_folders(SPECS[name])) for name in names]
    assert [one["fingerprint"] for one in prints] == ["0be10e6aaad9eba4", "73a7e79a422ea7c6", "8aac1a7d023f4189"]
    assert {one["base_fingerprint"] for one in prints} == {"cb554c6986b276d1"}
