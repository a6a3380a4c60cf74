"""generate(controls=...): against weights changed by hand, by segment and by noise level; what is recorded and restored."""

from dataclasses import replace

import pytest
import torch
from diffusers import LCMScheduler
from peft import LoraConfig

import dtviz
from dtviz import control
from dtviz.store import Store
from dtviz.study import Study

from .conftest import random_factors, tiny_unet
from .test_study import Pixels

RUN = {"seeds": range(2), "prompt": "a dog"}
TOLERANCE = 1e-4  # latents of size one after twelve evaluations, each equal to about 1e-6


@pytest.fixture
def smile(pair) -> control.Control:
    """Changes of cross-attention as factors, of the rest as whole weights."""
    lora = control.Control("smile", "slider", random_factors(pair.base))
    linear = [m for m in lora.modules if not m.endswith("conv1")]
    deltas = {f"{m}.weight": lora.change(m) for m in linear if ".attn1." in m}
    kept = {key: tensor for key, tensor in lora.tensors.items() if ".attn1." not in key}
    return control.Control("smile", "slider", kept | deltas)


def changed(unet: torch.nn.Module, one: control.Control, scale: float) -> torch.nn.Module:
    """A copy of the network with the change in its weights."""
    copy = type(unet).from_config(unet.config).eval()
    weights = unet.state_dict()
    copy.load_state_dict(weights | {f"{m}.weight": weights[f"{m}.weight"] + scale * one.change(m) for m in one.modules})
    return copy


def by_hand(
    pair: dtviz.Pair, one: control.Control, scale: float, *, base: bool, student: bool, **settings
) -> torch.Tensor:
    """The final latents of a pair whose networks have the change in their weights."""
    plain = pair.base
    pair.pipeline.unet = changed(plain, one, scale) if base else plain
    other = replace(pair, distilled=changed(pair.distilled, one, scale) if student else pair.distilled)
    try:
        return dtviz.generate(other, **RUN, **settings).final
    finally:
        pair.pipeline.unet = plain


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < TOLERANCE)


@pytest.mark.parametrize(
    ("method", "segment"),
    [("base", "both"), ("distilled", "both"), ("hybrid", "both"), ("hybrid", "base"), ("hybrid", "distilled"), ("skip", "distilled")],
)  # fmt: skip
def test_a_run_equals_one_of_changed_weights(pair, smile, method, segment):
    plain = dtviz.generate(pair, **RUN, method=method).final
    trace = dtviz.generate(pair, **RUN, method=method, controls=[smile.at(0.7, segment=segment)])
    expected = by_hand(pair, smile, 0.7, base=segment != "distilled", student=segment != "base", method=method)
    assert not near(plain, expected)
    assert near(trace.final, expected)
    [told] = trace.provenance["controls"]
    roles = trace.steps_run
    assert told["calls"] == {role: n if segment in ("both", role) else 0 for role, n in roles.items()}
    assert torch.equal(dtviz.generate(pair, **RUN, method=method).final, plain)


def test_no_control_and_scale_zero_are_the_plain_model_to_the_bit(pair, smile):
    plain = dtviz.generate(pair, **RUN, method="hybrid")
    for controls in ([], [smile.at(0.0)], [smile.at(0.0), smile.at(0.0, segment="base")]):
        trace = dtviz.generate(pair, **RUN, method="hybrid", controls=controls)
        assert torch.equal(trace.final, plain.final)
        assert trace.provenance == plain.provenance
    # and where its window holds no step, it is on the network and adds nothing
    out = dtviz.generate(pair, **RUN, method="hybrid", controls=[smile.at(2.0, window=(1e-6, 0.0))])
    assert torch.equal(out.final, plain.final)
    assert out.provenance["controls"][0]["calls"] == {"base": 0, "distilled": 0}


@pytest.mark.parametrize("method", ["base", "distilled", "hybrid"])
def test_a_window_is_of_noise_levels(pair, smile, method):
    """Against networks whose weights are changed by hand before the calls at or below timestep 500 (sigma 1.64)."""
    sigma_500 = float(((1 - pair.base_scheduler.alphas_cumprod[500]) / pair.base_scheduler.alphas_cumprod[500]) ** 0.5)
    trace = dtviz.generate(
        pair, **RUN, method=method, handover="matched-sigma", controls=[smile.at(0.7, window=(sigma_500, 0.0))]
    )

    calls = {"base": 0, "distilled": 0}
    handles = []
    for role, network in (("base", pair.base), ("distilled", pair.distilled)):
        plain, strong = (
            {k: v.clone() for k, v in w.state_dict().items()} for w in (network, changed(network, smile, 0.7))
        )

        def choose(module, args, kwargs, role=role, plain=plain, strong=strong):
            late = float(args[1]) <= 500
            module.load_state_dict(strong if late else plain)
            calls[role] += late

        handles.append(network.register_forward_pre_hook(choose, with_kwargs=True))
    expected = dtviz.generate(pair, **RUN, method=method, handover="matched-sigma")
    for handle in handles:
        handle.remove()
    assert near(trace.final, expected.final)
    told = trace.provenance["controls"][0]["calls"]
    calls["base"] -= calls["distilled"]  # the pipeline calls the base, in whose place the student answers
    assert told == {role: calls[role] for role in trace.steps_run}
    assert 0 < sum(told.values()) < sum(trace.steps_run.values())


def test_two_controls_add_up(pair, smile):
    second = control.Control("style", "style", random_factors(pair.base, seed=7))
    trace = dtviz.generate(pair, **RUN, controls=[smile.at(-0.5), second.at(0.5, segment="distilled")])
    pair = replace(pair, distilled=changed(pair.distilled, second, 0.5))
    assert near(trace.final, by_hand(pair, smile, -0.5, base=True, student=True))
    assert [told["name"] for told in trace.provenance["controls"]] == ["smile", "style"]


@pytest.mark.parametrize(
    ("method", "segment"), [("hybrid", "both"), ("hybrid", "base"), ("hybrid", "distilled"), ("base", "both")]
)
def test_one_network_whose_student_is_an_adapter(pipe, smile, method, segment):
    """Its student is on in its own steps, the control in those that it is meant for: as with two networks."""
    student = tiny_unet(1)
    generator = torch.Generator().manual_seed(3)
    for unet in (pipe.unet, student):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "proj_in"]), adapter_name="student")
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    pipe.unet.load_state_dict(student.state_dict())
    pipe.unet.disable_adapters()
    student.fuse_lora()
    student.unload_lora()
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    settings = {"distilled_scheduler": scheduler, "base_steps": 8, "base_guidance": 3.0, "batch_size": 2}
    one = dtviz.Pair(pipe, "student", **settings)
    plain = dtviz.generate(one, **RUN, method=method).final
    found = dtviz.generate(one, **RUN, method=method, controls=[smile.at(0.7, segment=segment)]).final
    assert torch.equal(dtviz.generate(one, **RUN, method=method).final, plain)
    pipe.unet.unload_lora()
    two = dtviz.Pair(pipe, student, **settings)
    expected = by_hand(two, smile, 0.7, base=segment != "distilled", student=segment != "base", method=method)
    assert near(found, expected)
    assert not near(found, plain)


def test_batches_and_guidance_do_not_matter(pair, smile):
    """Five seeds in batches of two, guided base steps: as alone."""
    settings = {
        "method": "hybrid",
        "base_guidance": 3.0,
        "handover": "matched-sigma",
        "controls": [smile.at(0.7, segment="base")],
    }
    together = dtviz.generate(pair, "a dog", seeds=range(5), **settings)
    alone = dtviz.generate(pair, "a dog", seeds=[4], **settings)
    assert near(together.final[4:], alone.final)
    assert together.provenance["controls"] == alone.provenance["controls"]


def test_the_pair_is_restored_when_a_denoiser_fails(pair, smile):
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in (pair.base, pair.distilled)]

    def fail(module, args, kwargs, output):
        if args and len(args[0]) == 2:  # the run's batch, not the proof's
            raise RuntimeError("broken")

    handle = pair.distilled.register_forward_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="broken"):
        dtviz.generate(pair, **RUN, method="hybrid", controls=[smile.at(2.0)])
    handle.remove()
    for network, weights in zip((pair.base, pair.distilled), before, strict=True):
        assert list(network.state_dict()) == list(weights)
        assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in weights.items())
        assert not network._forward_hooks
        assert all(not module._forward_hooks for module in network.modules())


def test_attach_around_ones_own_call(pair, smile):
    """`attach` and `dtviz.hybrid` on one's own pipeline call; the control is on in both segments."""
    pipe = pair.pipeline
    pipe.scheduler = pair.distilled_scheduler
    call = {"prompt": "a dog", "num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "latent"}
    with control.attach(pair, smile, 0.7), dtviz.hybrid(pipe, pair.distilled, k=1):
        found = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    pipe.unet, student = changed(pair.base, smile, 0.7), changed(pair.distilled, smile, 0.7)
    with dtviz.hybrid(pipe, student, k=1):
        expected = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert near(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "base", "segment": "distilled"},
            "segment='distilled' of control 'smile': method 'base' has no such steps",
        ),
        ({"method": "skip", "segment": "base"}, "segment='base' of control 'smile': method 'skip' has no such steps"),
    ],
)
def test_a_segment_that_the_run_lacks_is_refused(pair, smile, settings, message):
    with pytest.raises(ValueError, match=message):
        dtviz.generate(pair, **RUN, method=settings["method"], controls=[smile.at(1.0, segment=settings["segment"])])


def test_what_is_no_applied_control_is_refused(pair, smile):
    with pytest.raises(ValueError, match="controls holds a Control: each must be what Control.at gives"):
        dtviz.generate(pair, **RUN, controls=[smile])
    other = control.Control("xl", "slider", {"nowhere.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="control 'xl' is not for this UNet2DConditionModel"):
        dtviz.generate(pair, **RUN, controls=[other.at()])


def test_a_study_keeps_what_was_made_with_a_control_apart(pair, smile, tmp_path):
    tiny = Study(replace(pair, fingerprint="tiny", base_fingerprint="tiny base"), Pixels(), (0, 1), Store(tmp_path))
    plain = tiny.features("a dog", "distilled")
    strong = tiny.features("a dog", "distilled", controls=[smile.at(1.5)])
    assert abs(strong - plain).max() > 0.01
    kept = len(list(tiny.store.entries()))
    # the same tensors under another name are the same results; scale 0 is the plain model's
    renamed = replace(smile, name="grin")
    assert (tiny.features("a dog", "distilled", controls=[renamed.at(1.5)]) == strong).all()
    assert (tiny.features("a dog", "distilled", controls=[smile.at(0.0)]) == plain).all()
    assert len(list(tiny.store.entries())) == kept
    for other in (smile.at(1.4), smile.at(1.5, window=(5.0, 0.0)), smile.at(1.5, segment="distilled")):
        tiny.features("a dog", "distilled", controls=[other])
    assert len(list(tiny.store.entries())) == kept + 6
    assert list(tiny.runs)[:2] == ["distilled", "distilled, smile x 1.5"]
    [told] = tiny.ran("distilled", controls=[smile.at(1.5)])["controls"]
    assert (told["fingerprint"], told["calls"]) == (smile.fingerprint, {"distilled": 4})
    assert "distilled, smile x 1.5: 4 distilled" in tiny.describe(prompts=1, profile="quick")
