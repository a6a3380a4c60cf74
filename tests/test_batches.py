"""Out of memory, really: the kernel refuses the allocation. And denoisers that give nan or infinity."""

import resource
import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

import dtviz
from dtviz.batches import batches, out_of_memory

ROW = 2**26  # bytes that a row takes in these tests


@contextmanager
def room(rows: float):
    """No more memory for this process than it has, and `rows` times ROW."""
    with suppress(RuntimeError):
        taken(2**30)  # torch's first error takes memory for its own telling
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(used + rows * ROW), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def taken(n: int) -> None:
    """Take memory for n rows, and give it back."""
    torch.empty(n * ROW, dtype=torch.uint8)


def sizes(n: int, size: int, **options) -> list[int]:
    def work(rows: slice) -> int:
        taken(rows.stop - rows.start)
        return rows.stop - rows.start

    found = list(batches(work, n=n, size=size, **options))
    assert [row for rows, _ in found for row in range(n)[rows]] == list(range(n))  # each once, in order
    return [done for _, done in found]


def test_batches_that_fit_are_as_large_as_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sizes(7, 3) == [3, 3, 1]
        assert sizes(2, 8) == [2]
        assert sizes(0, 8) == []


def test_memory_that_is_out_halves_the_batch_and_says_so_once():
    with room(2.5), pytest.warns(UserWarning, match="8 at a time do not fit into memory.*batch_size=2") as said:
        assert sizes(11, 8) == [2, 2, 2, 2, 2, 1]
    assert len(said) == 1


def test_what_does_not_fit_at_all_is_an_error_and_so_is_what_may_not_be_halved():
    with room(0.5), pytest.raises(RuntimeError, match="allocate memory"):
        sizes(4, 4)
    with room(2.5), pytest.raises(RuntimeError, match="allocate memory"):
        sizes(4, 4, fixed=True)


def test_other_failures_are_not_taken_for_want_of_memory():
    calls = []

    def work(rows):
        calls.append(rows)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(batches(work, n=4, size=4))
    assert len(calls) == 1
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"))
    with room(0.5), pytest.raises(MemoryError) as caught:
        np.empty(ROW * 8, dtype=np.uint8)
    assert out_of_memory(caught.value)


@pytest.fixture
def hungry(pair):
    """A pair whose base takes ROW of memory for every sample that it denoises."""
    with pair.base.register_forward_pre_hook(lambda _, args: taken(len(args[0]))):
        yield pair


def test_a_run_goes_on_with_fewer_samples_at_a_time_and_they_are_the_same(hungry):
    usual = {"method": "hybrid", "seeds": range(5)}
    expected = dtviz.generate(hungry, "a dog", batch_size=2, **usual)
    scheduler = hungry.pipeline.scheduler
    with room(2.5), pytest.warns(UserWarning, match="4 at a time do not fit.*batch_size=2") as said:
        found = dtviz.generate(hungry, "a dog", batch_size=4, **usual)
    assert len(said) == 1
    assert torch.equal(found.final, expected.final) and torch.equal(found.x0, expected.x0)  # the very same batches
    assert found.facts() == expected.facts()
    assert hungry.pipeline.scheduler is scheduler


def test_samples_that_depend_on_their_batch_are_not_divided(hungry):
    with room(2.5), pytest.raises(RuntimeError, match="allocate memory"):
        dtviz.generate(hungry, "a dog", method="hybrid", handed="mean", seeds=range(4), batch_size=4)


def test_decoding_and_embedding_go_on_too(pair):
    trace = dtviz.generate(pair, "a dog", seeds=range(4))
    expected = dtviz.decode(trace, pair, final=True, batch_size=2)
    hook = pair.pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: taken(len(args[0])))
    with hook, room(2.5), pytest.warns(UserWarning, match="4 at a time"):
        found = dtviz.decode(trace, pair, final=True, batch_size=4)
    assert torch.equal(found, expected)
    embed = dtviz.embedder("efficientnet-lite0", batch_size=4)
    encode, expected = embed._model.encode, embed(found)

    def hungry_encode(images):
        taken(len(images))
        return encode(images)

    embed._model = embed._model._replace(encode=hungry_encode)
    with room(3.5), pytest.warns(UserWarning, match="4 at a time"):
        features = embed(found)
    # another batch is another order of sums in float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


# Denoisers that give nan or infinity


@pytest.mark.parametrize(
    ("method", "options", "role", "call", "told"),
    [
        ("base", {}, "base", 3, "the base model of custom gave nan or infinity at step 3 of 8"),
        ("distilled", {}, "distilled", 1, "the distilled model .* at step 1 of 4"),
        ("distilled", {}, "distilled", 4, "the distilled model .* at step 4 of 4"),
        ("hybrid", {"k": 2}, "base", 2, "the base model .* at step 2 of 4"),
        ("hybrid", {"k": 2}, "distilled", 1, "the distilled model .* at step 3 of 4"),
        ("hybrid", {"handover": "matched-sigma", "k": 2}, "distilled", 2, "the distilled model .* at step"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_the_error_names_model_step_prompt_and_seed(pair, method, options, role, call, told, value):
    network = pair.base if role == "base" else pair.distilled
    calls = []

    def spoil(_, __, output):
        calls.append(1)
        if len(calls) == call:
            output[0][-1, 0, 0, 0] = value  # of the batch's last sample, one number

    with network.register_forward_hook(spoil), pytest.raises(ValueError, match=told) as caught:
        dtviz.generate(pair, ["a dog", "a cat"], seeds=[7, 8], method=method, base_guidance=0, **options)
    assert "prompt 'a cat', seed 8" in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_that_is_not_finite_is_not_kept(pair, tmp_path):
    from dtviz.store import Store
    from dtviz.study import Study

    study = Study(replace(pair, fingerprint="known"), None, (0, 1), Store(tmp_path))

    def spoil(_, __, output):
        output[0].fill_(torch.nan)

    with pair.distilled.register_forward_hook(spoil), pytest.raises(ValueError, match="distilled model of custom"):
        study.trace("a dog", "distilled")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert study.trace("a dog", "distilled").final.isfinite().all()
