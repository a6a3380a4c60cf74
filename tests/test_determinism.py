"""Same seeds, same machine: the same bits. Elsewhere, or in other batches, float sums differ in order, within bounds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dtviz

HYBRID = {"method": "hybrid", "handover": "matched-sigma", "k": 2, "base_steps": 6, "base_guidance": 3.0}
# x0 of the first two steps and the final latents of seeds 0 to 2, as the tag v0.1-experiments made them
FROZEN = load_file(Path(__file__).parent / "data" / "samples.safetensors")
RUNS = {
    "base": {"method": "base", "base_steps": 8},
    "distilled": {"method": "distilled"},
    "hybrid, distilled scheduler": {"method": "hybrid", "k": 2, "handover": "distilled-scheduler"},
    "hybrid, matched sigma": HYBRID | {"base_steps": 8},
    "skip": {"method": "skip", "k": 1},
}


@pytest.fixture(scope="module")
def emoji():
    return dtviz.load("emoji-dmd")


@pytest.fixture(scope="module")
def eight(emoji):
    """Eight samples in one batch."""
    return dtviz.generate(emoji, "dog face", seeds=range(8), batch_size=8, **HYBRID)


def same(a: dtviz.Trace, b: dtviz.Trace) -> bool:
    return torch.equal(a.x0, b.x0) and torch.equal(a.final, b.final)


@pytest.mark.parametrize("name", RUNS)
def test_samples_are_those_of_the_first_version(emoji, name):
    """Bit-equal on the machine that made them; 1e-4 allows another processor's order of sums."""
    trace = dtviz.generate(emoji, "dog face", seeds=range(3), batch_size=3, **RUNS[name])
    for part, values in (("final", trace.final), ("x0", trace.x0[:2])):
        torch.testing.assert_close(values, FROZEN[f"{name}: {part}"], atol=1e-4, rtol=0)


def test_the_same_call_gives_the_same_bits(emoji, eight):
    """The caller's random state does not matter, nor an earlier run, nor that more is recorded."""
    torch.manual_seed(123)
    dtviz.generate(emoji, "sunset", method="distilled", seeds=[5])
    assert same(dtviz.generate(emoji, "dog face", seeds=range(8), batch_size=8, x_t=True, **HYBRID), eight)


def test_a_sample_does_not_depend_on_the_others_of_its_batch(emoji, eight):
    prompts, seeds = ["sunset"] * 5 + ["dog face"] * 3, [90, 91, 92, 93, 94, 7, 6, 5]
    other = dtviz.generate(emoji, prompts, seeds=seeds, batch_size=8, **HYBRID)
    assert same(other.select([7, 6, 5]), eight.select([5, 6, 7]))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_another_batch_size_changes_only_the_last_digits(emoji, eight, size):
    """Other sizes take other kernels, which sum in another order: 6e-6 here, see figures/bench/determinism.csv."""
    trace = dtviz.generate(emoji, "dog face", seeds=range(4), batch_size=size, **HYBRID)
    expected = eight.select(list(range(4)))
    assert (trace.final - expected.final).abs().max() < 1e-4
    assert (trace.x0 - expected.x0).abs().max() < 5e-4
    ours, theirs = ((dtviz.decode(each, emoji, final=True) * 255).round() for each in (trace, expected))
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 1e-3


def test_capture_changes_no_bit(emoji):
    pipe = emoji.pipeline

    def images():
        seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return pipe(["dog face"] * 2, num_inference_steps=4, generator=seeds, output_type="pt").images

    plain = images()
    with dtviz.capture(pipe, x_t=True, guidance=True):
        captured = images()
    assert torch.equal(captured, plain) and torch.equal(images(), plain)
