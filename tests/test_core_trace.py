import diffusers
import pytest
import torch

import dtviz


def make(seeds=(3, 4), prompt="a dog") -> dtviz.Trace:
    n, sigmas, timesteps = len(seeds), torch.linspace(10, 1, 5), torch.linspace(999, 99, 5)
    facts = {"steps_run": {"base": 1, "distilled": 4}, "provenance": {"pair": "tiny", "guidance": 0.0}}
    x0, final = torch.randn(5, n, 4, 8, 8), torch.randn(n, 4, 8, 8)
    return dtviz.Trace(x0, sigmas, timesteps, final, seeds=tuple(seeds), prompt=prompt, **facts)


def same(a: dtviz.Trace, b: dtviz.Trace) -> bool:
    ours, others = a.arrays(), b.arrays()
    equal = ours.keys() == others.keys() and all(map(torch.equal, ours.values(), others.values()))
    return equal and a.facts() == b.facts()


def test_a_trace_with_all_its_parts_and_one_with_seeds_are_saved_and_selected(pipe, tmp_path):
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with dtviz.capture(pipe, guidance=True, x_t=True) as full:
        pipe(["a dog"] * 2, num_inference_steps=4, guidance_scale=3.0, output_type="latent")
    assert {"x_t", "conditional", "unconditional", "later_x0", "call_steps"} <= full.arrays().keys()
    for trace in (full, make()):
        again = dtviz.Trace.load(trace.save(tmp_path / "deep" / "dog.trace"))
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["dog.trace"]
        assert same(again, trace) and [call.step for call in again.calls] == [call.step for call in trace.calls]
        assert same(dtviz.Trace.join([trace.select([0]), trace.select(slice(1, None))]), trace)
    assert make(seeds=(1, 2, 3)).select(slice(1, None)).seeds == (2, 3)
    words = "Trace(4 steps, 2 samples, latents (4, 8, 8), sigma 14.6 to 0.693, steps_run={'denoiser': 4})"
    assert repr(full) == words
    with pytest.raises(FileNotFoundError, match="no trace at"):
        dtviz.Trace.load(tmp_path / "none")
    with pytest.raises(ValueError, match="share prompt and noise levels"):
        dtviz.Trace.join([trace, make(prompt="a cat")])


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="sigmas has length 4"):
        dtviz.Trace(torch.zeros(5, 1, 1, 1, 1), torch.zeros(4), torch.zeros(5), torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="seeds has length 2, x0 of shape .* needs 1"):
        dtviz.Trace(torch.zeros(5, 1, 1, 1, 1), torch.zeros(5), torch.zeros(5), torch.zeros(1, 1, 1, 1), seeds=(1, 2))
