"""Folders of the checkout, and batches that halve when memory runs out. The kernel really refuses the allocation."""

import resource
from contextlib import contextmanager, suppress
from unittest.mock import Mock

import pytest
import torch

import dtviz
from dtviz import files
from dtviz.files import in_batches

ROW = 2**28  # bytes that a row takes in these tests, far more than other threads give back meanwhile


@contextmanager
def memory_for(rows: float):
    """Limit this process to the memory that it has, and `rows` times ROW."""
    with suppress(RuntimeError):
        allocate(2**30)  # torch's first error allocates memory for its message
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(used + rows * ROW), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def allocate(n: int) -> None:
    """Take memory for n rows, and give it back."""
    torch.empty(n * ROW, dtype=torch.uint8)


def sizes(n: int, size: int, **options) -> list[int]:
    def work(rows: slice) -> int:
        allocate(rows.stop - rows.start)
        return rows.stop - rows.start

    batches = list(in_batches(work, n=n, size=size, **options))
    assert [row for rows, _ in batches for row in range(n)[rows]] == list(range(n))  # each once, in order
    return [size for _, size in batches]


def test_out_of_memory_halves_the_batch_and_warns_once():
    assert sizes(7, 3) == [3, 3, 1] and sizes(2, 8) == [2] and sizes(0, 8) == []
    with memory_for(2.5), pytest.warns(UserWarning, match="batch_size=8 does not fit.*using batch_size=2") as warned:
        assert sizes(11, 8) == [2, 2, 2, 2, 2, 1]
    assert len(warned) == 1


def test_one_row_that_does_not_fit_and_a_fixed_batch_are_errors():
    with memory_for(0.5), pytest.raises(RuntimeError, match="allocate memory"):
        sizes(4, 4)
    with memory_for(2.5), pytest.raises(RuntimeError, match="allocate memory"):
        sizes(4, 4, fixed=True)


def test_only_want_of_memory_halves():
    for error, calls in (
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 3),  # batches of 4, 2 and 1
        (MemoryError(), 3),  # numpy's
    ):
        work = Mock(side_effect=error)
        with pytest.raises(type(error)):
            list(in_batches(work, n=4, size=4))
        assert work.call_count == calls


@pytest.fixture
def hungry(pair):
    """A pair whose base allocates ROW of memory for every sample."""
    with pair.base.register_forward_pre_hook(lambda _, args: allocate(len(args[0]))):
        yield pair


def test_generating_continues_with_smaller_batches_and_the_same_samples(hungry):
    usual = {"method": "hybrid", "seeds": range(5)}
    expected = dtviz.generate(hungry, "a dog", batch_size=2, **usual)
    scheduler = hungry.pipeline.scheduler
    with memory_for(2.5), pytest.warns(UserWarning, match="batch_size=4 does not fit.*batch_size=2") as warned:
        trace = dtviz.generate(hungry, "a dog", batch_size=4, **usual)
    assert len(warned) == 1
    assert torch.equal(trace.final, expected.final) and torch.equal(trace.x0, expected.x0)
    assert trace.facts() == expected.facts()
    assert hungry.pipeline.scheduler is scheduler
    with memory_for(2.5), pytest.raises(RuntimeError, match="allocate memory"):  # an edit may join a batch's samples
        dtviz.generate(hungry, "a dog", batch_size=4, edit_x0=lambda x0, call: x0, **usual)


def test_outside_a_checkout_its_data_are_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.delenv("DTVIZ_MODELS", raising=False)
    for call in (lambda: files.data("models"), lambda: dtviz.load("emoji-dmd")):
        with pytest.raises(dtviz.Unavailable, match="data/models is part of a checkout of dtviz: set DTVIZ_MODELS to"):
            call()
    assert not dtviz.pairs().loc["emoji-dmd", "available"]
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path / "mine"))
    assert files.data("models") == tmp_path / "mine"
