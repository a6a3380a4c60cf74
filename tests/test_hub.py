"""The hub's pairs on tiny random weights in each repository's published layout, through the code that loads the real ones.

The oracle of every sampler is the pair's own diffusers pipeline, called by hand as the model cards say.
"""

import copy
import gc
import inspect
import math
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dtviz
from dtviz import memory
from dtviz.models.families import FAMILIES
from dtviz.models.hub import HUB, REPOS
from dtviz.models.specs import markdown
from dtviz.models.weights import read
from dtviz.pairs import SPECS

from .published import parameters
from .repos import BASES, sana_parts, sana_transformer

CALLS = {"sdxl": {}, "sd15": {}, "sd35": {}, "flux": {"height": 32, "width": 32}}
CALLS |= {
    name: {"use_resolution_binning": False, "height": side, "width": side}
    for name, side in (("pixart", 16), ("sana", 32))
}
CALLS["sana"]["complex_human_instruction"] = None  # two thousand letters, each a token here
STUDENTS = {  # how a student's network differs from its base's
    "sdxl-lcm": {"time_cond_proj_dim": 16},
    "flux-schnell": {"guidance_embeds": False},
    "sana-sprint": {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
}
EVEN, LCM = [999, 749, 499, 249], [999, 759, 499, 259]
TIMESTEPS = {
    "sdxl-dmd": EVEN, "sdxl-lcm": LCM, "sdxl-turbo": EVEN, "sdxl-lightning": EVEN, "sdxl-dmd-lora": EVEN,
    "sdxl-lcm-lora": LCM, "sdxl-lightning-lora": EVEN, "sdxl-hyper-lora": EVEN, "sdxl-tcd-lora": LCM, "sd15-lcm-lora": LCM,
    "sd15-hyper-lora": EVEN, "pixart-lcm": LCM, "flux-schnell": [1000, 750, 500, 250],
    # 3 s / (1 + 2 s) of even steps between that of 1 and that of 1/1000, as SD 3's own scheduler has it
    "sd35-turbo": [1000 * 3 * s / (1 + 2 * s) for s in np.linspace(1, 3 / 1002, 4)],
    "sana-sprint": [1000 * math.sin(t) / (math.sin(t) + math.cos(t)) for t in (math.pi / 2, 1.3)],
}  # fmt: skip


def lora(network: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """A random LoRA of rank 2 on the attentions of a network, under the keys of published files."""
    state = {}
    for name, module in network.named_modules():
        if not name.endswith(("to_q", "to_k", "to_v", "to_out.0")) or not isinstance(module, torch.nn.Linear):
            continue
        down, up = torch.randn(2, module.in_features) * 0.3, torch.randn(module.out_features, 2) * 0.3
        if kind == "kohya":
            key = "lora_unet_" + name.replace(".", "_")
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        elif kind == "diffusers":
            state |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
        else:
            state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    return state


# The kinds of keys that published files have; the others here have kohya's
KEYS = {"sdxl-tcd-lora": "peft", "sdxl-dmd-lora": "diffusers"}


@pytest.fixture(params=HUB)
def local(request, tmp_path, monkeypatch):
    """The name of a pair, with its repositories in folders here."""
    return lay_out(request.param, tmp_path, monkeypatch)


def lay_out(name: str, folder, monkeypatch) -> str:
    spec = HUB[name]
    base, student = folder / "org" / "base", folder / "org" / "student"
    torch.manual_seed(0)
    network = BASES[spec.family](base)
    student.mkdir()
    if spec.adapter:
        save_file(lora(network, KEYS.get(name, "kohya")), student / spec.file)
    else:
        torch.manual_seed(1)
        other = type(network).from_config(network.config, **STUDENTS.get(name, {}))
        if "." in spec.file:
            save_file(other.state_dict(), student / spec.file)
        else:
            other.save_pretrained(student / spec.file)
    settings = {key: value for key, value in spec.settings.items() if key != "size"}
    settings["call"] = settings.get("call", {}) | CALLS[spec.family]
    monkeypatch.setitem(SPECS, name, replace(spec, base=str(base), student=str(student), settings=settings))
    return name


def by_hand(pair: dtviz.Pair, seed: int = 0) -> torch.Tensor:
    """The student as its card says: its network and its scheduler in the pipeline, and one call; the final latents."""
    pipe = copy.copy(pair.pipeline)
    network = pair.distilled if isinstance(pair.distilled, torch.nn.Module) else pair.base
    components = pair.pipeline.components | {pair.denoiser_name: network}
    scheduler = type(pair.distilled_scheduler).from_config(pair.distilled_scheduler.config)
    pipe = type(pair.pipeline)(**components | {"scheduler": scheduler}, **_unchecked(pair))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": pair.steps} | dict(pair.call)
    if pair.timesteps is not None:
        scheduler.register_to_config(original_inference_steps=1000)
        call = {"timesteps": list(pair.timesteps)} | dict(pair.call)
    if "eta" in inspect.signature(scheduler.step).parameters:
        call["eta"] = 0.3 if type(scheduler).__name__ == "TCDScheduler" else 0.0
    call |= {
        "guidance_scale": pair.guidance,
        "generator": [torch.Generator().manual_seed(seed)],
        "output_type": "latent",
    }
    if isinstance(pair.distilled, str):
        pair.base.set_adapters(pair.distilled)
        pair.base.enable_adapters()
    try:
        return pipe("a dog", **call).images
    finally:
        if isinstance(pair.distilled, str):
            pair.base.disable_adapters()


def _unchecked(pair: dtviz.Pair) -> dict:
    return {"requires_safety_checker": False} if "safety_checker" in pair.pipeline.components else {}


def test_a_hub_pair(local):
    """Loading, timesteps and sigmas, every method at k = 1, capture; base and student are what diffusers makes of them."""
    pair, spec = dtviz.load(local, device="cpu"), SPECS[local]
    assert type(pair.distilled_scheduler).__name__ == spec.scheduler
    assert isinstance(pair.distilled, str) == spec.adapter

    student = dtviz.generate(pair, "a dog", method="distilled", seeds=[0])
    np.testing.assert_allclose(student.timesteps, TIMESTEPS[local], rtol=1e-5)
    if local != "sana-sprint":  # below, by its own pipeline
        torch.testing.assert_close(student.final, by_hand(pair), atol=2e-4, rtol=2e-4)
    reference = type(pair.distilled_scheduler).from_config(pair.distilled_scheduler.config)
    if spec.family in ("flux", "sana"):
        sigmas = [t / 1000 for t in TIMESTEPS[local]]
    elif hasattr(reference, "sigmas") and "alphas_cumprod" not in vars(reference):
        reference.set_timesteps(pair.steps)
        sigmas = reference.sigmas[:-1]
    else:  # noise over signal at these timesteps
        signal = reference.alphas_cumprod[torch.tensor(TIMESTEPS[local])]
        sigmas = ((1 - signal) / signal).sqrt()
    np.testing.assert_allclose(student.sigmas, sigmas, rtol=2e-3)

    base = dtviz.generate(pair, "a dog", method="base", base_steps=6, seeds=[0])
    call = {"num_inference_steps": 6, "guidance_scale": pair.base_guidance, "output_type": "latent"} | dict(pair.call)
    with dtviz.capture(pair.pipeline) as trace:
        plain = pair.pipeline("a dog", generator=[torch.Generator().manual_seed(0)], **call)
    torch.testing.assert_close(base.final, plain.images.float(), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(base.x0, trace.x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(base.sigmas, trace.sigmas)

    for method in ("hybrid", "skip"):
        trace = dtviz.generate(pair, "a dog", method=method, k=1, seeds=[0, 1], handover="distilled-scheduler")
        assert torch.isfinite(trace.final).all()
        assert trace.steps_run["distilled"] == pair.steps - 1
    matched = dtviz.generate(pair, "a dog", method="hybrid", handover="matched-sigma", base_steps=12, seeds=[0])
    assert torch.isfinite(matched.final).all()
    assert matched.steps_run["distilled"] == pair.steps - 1
    assert matched.sigmas[matched.steps_run["base"]] == pytest.approx(float(student.sigmas[1]), rel=1e-3)
    assert (matched.sigmas.diff() < 0).all() or spec.family not in ("sdxl", "sd15")


def test_sana_sprint_is_its_own_pipelines_sampler(tmp_path, monkeypatch):
    """TrigFlow's two steps, by diffusers' SanaSprintPipeline on the same weights, noise and guidance."""
    pair = dtviz.load(lay_out("sana-sprint", tmp_path, monkeypatch), device="cpu")
    student = sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads").eval()
    student.load_state_dict(pair.distilled.state_dict())
    parts = {name: getattr(pair.pipeline, name) for name in sana_parts()}
    pipe = diffusers.SanaSprintPipeline(transformer=student, scheduler=diffusers.SCMScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    for guidance in (4.5, 2.0):
        theirs = pipe(
            "a dog",
            generator=[torch.Generator().manual_seed(0)],
            output_type="latent",
            guidance_scale=guidance,
            **pair.call,
        ).images
        ours = dtviz.generate(pair, "a dog", method="distilled", seeds=[0], guidance=guidance)
        torch.testing.assert_close(ours.final, theirs, atol=1e-4, rtol=1e-4)


def test_flux_guidance_is_an_input_of_the_base_alone(tmp_path, monkeypatch):
    """Schnell has no place for it; what the base is given decides its step, and 1, not 0, is none."""
    pair = dtviz.load(lay_out("flux-schnell", tmp_path, monkeypatch), device="cpu")
    seen = []
    pair.distilled.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("guidance")), with_kwargs=True
    )
    how = {"method": "hybrid", "seeds": [0], "handover": "distilled-scheduler"}
    usual, strong = (dtviz.generate(pair, "a dog", base_guidance=g, **how) for g in (None, 7.0))
    assert seen == [None] * 6
    assert usual.provenance["base_guidance"] == 1.0
    assert not torch.equal(usual.x0[0], strong.x0[0])
    with pytest.raises(
        ValueError, match="base_guidance=0.0 must be at least 1, the least this network was trained for"
    ):
        dtviz.generate(pair, "a dog", base_guidance=0.0, **how)


def test_hybrid_around_ones_own_call_of_flux(tmp_path, monkeypatch):
    """One's own four-step call, its scheduler the student's, is `generate` with the published hand-over."""
    pair = dtviz.load(lay_out("flux-schnell", tmp_path, monkeypatch), device="cpu")
    expected = dtviz.generate(pair, "a dog", method="hybrid", seeds=[0], handover="distilled-scheduler")
    pipe = pair.pipeline
    pipe.scheduler = type(pair.distilled_scheduler).from_config(pair.distilled_scheduler.config)
    call = {"num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "latent"} | dict(pair.call)
    with dtviz.hybrid(pipe, pair.distilled, k=1) as run:
        images = pipe("a dog", generator=[torch.Generator().manual_seed(0)], **call).images
    assert run.steps_run == {"base": 1, "distilled": 3}
    torch.testing.assert_close(images, expected.final, atol=1e-4, rtol=1e-4)


def test_flux_is_handed_over_at_the_same_noise_level(tmp_path, monkeypatch):
    """Its base's levels are shifted for the image's size, its student's are not; steps of the same number differ."""
    pair = dtviz.load(lay_out("flux-schnell", tmp_path, monkeypatch), device="cpu")
    base = dtviz.generate(pair, "a dog", method="base", base_steps=4, seeds=[0])
    tokens = (32 // 4) ** 2  # two latent cells of two pixels a side
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    even = torch.tensor([1.0, 0.75, 0.5, 0.25])
    expected = math.exp(mu) / (math.exp(mu) + 1 / even - 1)
    torch.testing.assert_close(base.sigmas, expected)
    matched = dtviz.generate(pair, "a dog", method="hybrid", base_steps=4, seeds=[0])
    assert matched.provenance["handover"] == "matched-sigma"
    above = [float(s) for s in expected if s > 0.75]
    np.testing.assert_allclose(matched.sigmas, [*above, 0.75, 0.5, 0.25], rtol=1e-5)


def test_published_settings_are_the_papers(tmp_path, monkeypatch):
    """LCM's own grid for DMD2, and guidance 0 for LCM, which is w = -1: refused unless it is meant."""
    lay_out("sdxl-dmd", tmp_path / "dmd", monkeypatch)
    trained, published = (dtviz.load("sdxl-dmd", device="cpu", published=said) for said in (False, True))
    told = [
        dtviz.generate(pair, "a dog", method="distilled", seeds=[0]).timesteps.tolist() for pair in (trained, published)
    ]
    assert told == [EVEN, LCM]

    lay_out("sdxl-lcm", tmp_path / "lcm", monkeypatch)
    trained, published = (dtviz.load("sdxl-lcm", device="cpu", published=said) for said in (False, True))
    assert [pair.guidance for pair in (trained, published)] == [8.0, 0.0]
    trace = dtviz.generate(published, "a dog", method="distilled", seeds=[0])
    torch.testing.assert_close(trace.final, by_hand(published), atol=2e-4, rtol=2e-4)
    with pytest.raises(ValueError, match="guidance=0 must be at least 1"):
        dtviz.generate(trained, "a dog", method="distilled", guidance=0, seeds=[0])


def test_a_lora_changes_the_base_as_its_file_says(tmp_path, monkeypatch):
    """Each matrix by alpha / rank of up down, worked out by hand from the file's keys of each kind."""
    for name in ("sdxl-hyper-lora", "sdxl-dmd-lora", "sdxl-tcd-lora"):
        pair = dtviz.load(lay_out(name, tmp_path / name, monkeypatch), device="cpu")
        state, plain = read(SPECS[name].student, SPECS[name].file), None
        kind = KEYS.get(name, "kohya")
        downs, ups, scale = {
            "kohya": (".lora_down.weight", ".lora_up.weight", 0.5),
            "diffusers": (".lora.down.weight", ".lora.up.weight", 1.0),
            "peft": (".lora_A.weight", ".lora_B.weight", 1.0),
        }[kind]
        student = dtviz.generate(pair, "a dog", method="distilled", seeds=[0])
        plain = BASES["sdxl"](tmp_path / "again").eval()
        torch.manual_seed(0)
        plain = BASES["sdxl"](tmp_path / "again").eval()
        for key, weight in plain.named_parameters():
            stem = key.removesuffix(".weight")
            stem = "lora_unet_" + stem.replace(".", "_") if kind == "kohya" else f"unet.{stem}"
            if stem + downs in state:
                weight.data += scale * state[stem + ups] @ state[stem + downs]
        whole = dtviz.Pair(
            pair.pipeline,
            plain,
            distilled_scheduler=pair.distilled_scheduler,
            timesteps=pair.timesteps,
            guidance=pair.guidance,
        )
        pair.base.disable_adapters()
        expected = dtviz.generate(whole, "a dog", method="distilled", seeds=[0])
        torch.testing.assert_close(student.final, expected.final, atol=1e-3, rtol=1e-3)


def test_a_lora_that_does_nothing_or_too_much_is_refused(tmp_path, monkeypatch):
    name = lay_out("sdxl-hyper-lora", tmp_path, monkeypatch)
    file = tmp_path / "org" / "student" / SPECS[name].file
    state = read(SPECS[name].student, SPECS[name].file)
    save_file({key: value * ("lora_up" not in key) for key, value in state.items()}, file)
    with pytest.raises(ValueError, match="pair 'sdxl-hyper-lora'.*leaves the base as it is"):
        dtviz.load(name, device="cpu")
    uneven = {key: value * 3 if "up_blocks" in key and "alpha" in key else value for key, value in state.items()}
    save_file(uneven, file)
    with pytest.raises(ValueError, match="alpha_pattern keys did not match"):  # peft's warning; the LoRA would be wrong
        dtviz.load(name, device="cpu")
    query = next(key for key in state if "attn1_to_q.lora_down" in key).split(".")[0]
    text = {
        f"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.{end}": state[f"{query}.{end}"].clone()
        for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    save_file(state | text, file)
    with pytest.raises(ValueError, match=r"changes \['text_encoder'\], which base and student share"):
        dtviz.load(name, device="cpu")


def test_a_pickle_is_read_as_numbers_only_and_with_a_warning(tmp_path, monkeypatch):
    name = lay_out("sdxl-dmd", tmp_path, monkeypatch)
    file = tmp_path / "org" / "student" / SPECS[name].file
    state = read(SPECS[name].student, SPECS[name].file)
    file.unlink()
    torch.save(state, file.with_suffix(".bin"))
    with pytest.warns(UserWarning, match=r"dmd2_sdxl_4step_unet_fp16.bin is a pickle, read as numbers only"):
        pair = dtviz.load(name, device="cpu")
    assert torch.equal(pair.distilled.state_dict()["conv_in.weight"], state["conv_in.weight"])

    class Code:
        def __reduce__(self):
            return (print, ("this must not run",))

    torch.save({"conv_in.weight": Code()}, file.with_suffix(".bin"))
    with pytest.warns(UserWarning), pytest.raises(Exception, match="[Ww]eights.only"):
        dtviz.load(name, device="cpu")


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.networks])
def test_a_familys_parameters_are_those_of_the_published_configs(family):
    of = FAMILIES[family]
    texts = {"sd15": ["clip-l"], "sdxl": ["clip-l", "clip-g"], "sd35": ["clip-l projected", "clip-g", "t5-xxl"]}
    texts |= {"flux": ["clip-l", "t5-xxl"], "pixart": ["t5-xxl"], "sana": ["gemma-2-2b"]}
    assert (of.denoiser, of.vae) == tuple(parameters(name) for name in of.networks)
    assert of.text == sum(parameters(name) for name in texts[family])


def test_revisions_are_commits_and_every_repository_has_a_licence():
    used = {repo for spec in HUB.values() for repo in (spec.base, spec.student)}
    assert used == set(REPOS)
    for repo in REPOS.values():
        assert repo.revision is None or (len(repo.revision) == 40 and int(repo.revision, 16))
        assert repo.licence


@pytest.mark.parametrize("name", ["sdxl-dmd", "sdxl-lcm", "sana-sprint"])
def test_one_network_after_the_other_gives_the_same_hybrids(name, tmp_path, monkeypatch):
    """Both hand-overs, more prompts and seeds than a batch holds, guidance on the base; and never two denoisers at once."""
    pair = dtviz.load(lay_out(name, tmp_path, monkeypatch), device="cpu")
    alive, kind = [], type(pair.base)
    for how in (
        {"handover": "distilled-scheduler"},
        {"handover": "matched-sigma", "base_steps": 6, "base_guidance": 3.0},
    ):
        together = [
            dtviz.generate(pair, prompt, method="hybrid", seeds=range(3), batch_size=2, **how)
            for prompt in ("a dog", "a cat")
        ]
        apart = dtviz.sequential.hybrid(name, ["a dog", "a cat"], seeds=range(3), batch_size=2, device="cpu", **how)
        for ours, theirs in zip(apart, together, strict=True):
            assert ours.prompt == theirs.prompt
            assert ours.steps_run == theirs.steps_run
            assert ours.provenance["nfe"] == theirs.provenance["nfe"]
            torch.testing.assert_close(ours.sigmas, theirs.sigmas)
            torch.testing.assert_close(ours.x0, theirs.x0, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.final, theirs.final, atol=1e-4, rtol=1e-4)
    del pair

    loaded, others = dtviz.models.weights.student, {id(m) for m in gc.get_objects() if type(m) is kind}

    def counting(*args, **kwargs):
        gc.collect()
        ours = [m for m in gc.get_objects() if type(m) is kind and id(m) not in others]
        alive.extend(m for m in ours if next(m.parameters()).device.type != "meta")
        return loaded(*args, **kwargs)

    monkeypatch.setattr("dtviz.models.weights.student", counting)
    dtviz.sequential.hybrid(name, ["a dog"], seeds=[0], device="cpu")
    assert not alive


def test_what_cannot_be_run_one_after_the_other_is_refused(tmp_path, monkeypatch):
    hybrid, how = dtviz.sequential.hybrid, {"seeds": [0], "device": "cpu"}
    for arguments, told in (
        (("emoji-dmd", "a dog"), r"prompts='a dog' is one string: give a list"),
        (("emoji-dmd", []), "give at least one of each"),
        (("emoji-dmd-lora", ["a dog"]), "is one network with a LoRA"),
    ):
        with pytest.raises(ValueError, match=told):
            hybrid(*arguments, **how)
    with pytest.raises(ValueError, match="k=4 is out of range: a hybrid of 4 student steps takes k from 1 to 3"):
        hybrid("emoji-dmd", ["dog face"], k=4, **how)
    name = lay_out("sdxl-lcm", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="guidance=0 must be at least 1, what this student was trained for"):
        hybrid(name, ["a dog"], guidance=0, **how)


def test_model_offload_changes_nothing(tmp_path, monkeypatch):
    """diffusers' hooks on every part, the student's turn between the base's; on a CPU, where host and device are one."""
    name = lay_out("sdxl-dmd", tmp_path, monkeypatch)
    plain, offloaded = dtviz.load(name, device="cpu"), dtviz.load(name, device="cpu", offload="model")
    assert offloaded.offload
    for method in ("hybrid", "base", "distilled"):
        ours, theirs = (
            dtviz.generate(pair, "a dog", method=method, base_steps=3, seeds=[0]) for pair in (offloaded, plain)
        )
        torch.testing.assert_close(ours.final, theirs.final, atol=1e-4, rtol=1e-4)
        images = [dtviz.decode(trace, pair, final=True) for trace, pair in ((ours, offloaded), (theirs, plain))]
        torch.testing.assert_close(*images, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="offload='disk' is not one of False, True, 'model'"):
        dtviz.load(name, offload="disk")


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # diffusers', of a folder that is here
@pytest.mark.parametrize("name", ["sdxl-lightning", "sdxl-turbo", "sdxl-hyper-lora"])
def test_loading_from_the_hubs_cache_at_the_pinned_commits(name, tmp_path, monkeypatch):
    """Under the repositories' own names, in half precision from files of the variant, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.utils.constants.HF_MODULES_CACHE", str(tmp_path / "modules"))
    spec = SPECS[name]

    def snapshot(repo: str):
        folder = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / REPOS[repo].revision
        folder.mkdir(parents=True)
        return folder

    with pytest.raises(dtviz.Unavailable):
        dtviz.load(name)
    network = BASES["sdxl"](tmp_path / "plain")
    diffusers.DiffusionPipeline.from_pretrained(tmp_path / "plain", dtype=torch.float16).save_pretrained(
        snapshot(spec.base), variant="fp16"
    )
    student = snapshot(spec.student)
    if spec.adapter:
        save_file(lora(network, "kohya"), student / spec.file)
    elif "." in spec.file:
        save_file(network.state_dict(), student / spec.file)
    else:
        network.half().save_pretrained(student / spec.file, variant="fp16")
    pair = dtviz.load(name, device="cpu", dtype=torch.float16)
    assert {p.dtype for p in pair.base.parameters() if p.ndim > 1} <= {torch.float16, torch.float32}
    assert pair.base.dtype == torch.float16
    with pytest.raises(dtviz.Unavailable, match="missing: stabilityai/stable-diffusion-xl-base-1.0"):
        dtviz.load(name, device="cpu", dtype=torch.float16, revision="0" * 40)


def test_no_code_of_a_repository_is_ever_run():
    for path in Path(dtviz.__file__).parent.rglob("*.py"):
        assert "trust_remote_code" not in path.read_text()
        assert "weights_only=False" not in path.read_text()


def test_the_documentation_has_every_pair_and_its_commits():
    page = (Path(__file__).parents[1] / "docs" / "pairs.md").read_text()
    assert markdown() in page
    for name, repo in REPOS.items():
        assert (name in page[page.index("Not pinned") : page.index("names the commits")]) == (repo.revision is None)
    for name in ("sdxl-dmd", "flux-schnell", "sana-sprint"):
        together = next(way for way in memory.ways(name) if way.name == "together")
        assert f"| {together.accelerator / 1e9:.1f} GB |" in page
