"""Folders of the checkout, and batches that halve when memory runs out."""

from unittest.mock import Mock

import pytest
import torch

import dtviz
from dtviz import files
from dtviz.files import in_batches
from dtviz.models.load import check_available

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def sizes(n: int, size: int, *, fits: int = 100, **options) -> list[int]:
    """Return the sizes of the batches when memory is for `fits` rows."""

    def work(rows: slice) -> int:
        if rows.stop - rows.start > fits:
            raise NO_MEMORY
        return rows.stop - rows.start

    batches = list(in_batches(work, n=n, size=size, **options))
    assert [row for rows, _ in batches for row in range(n)[rows]] == list(range(n))  # each once, in order
    return [size for _, size in batches]


def test_out_of_memory_halves_the_batch_and_warns_once():
    assert sizes(7, 3) == [3, 3, 1] and sizes(2, 8) == [2] and sizes(0, 8) == []
    with pytest.warns(UserWarning, match="batch_size=8 does not fit.*using batch_size=2") as warned:
        assert sizes(11, 8, fits=2) == [2, 2, 2, 2, 2, 1]
    assert len(warned) == 1
    for fits, fixed in ((0, False), (2, True)):  # a row that does not fit, and a batch that must not change
        with pytest.raises(torch.OutOfMemoryError):
            sizes(4, 4, fits=fits, fixed=fixed)


def test_only_want_of_memory_halves():
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    for error, calls in ((other, 1), (NO_MEMORY, 3), (MemoryError(), 3)):  # batches of 4, 2 and 1
        work = Mock(side_effect=error)
        with pytest.raises(type(error)):
            list(in_batches(work, n=4, size=4))
        assert work.call_count == calls


def test_generating_continues_with_smaller_batches_and_the_same_samples(pair):
    usual, scheduler = {"method": "hybrid", "seeds": range(5)}, pair.pipeline.scheduler
    expected = dtviz.generate(pair, "a dog", batch_size=2, **usual)

    def refuse(_, args) -> None:
        if len(args[0]) > 2:
            raise NO_MEMORY

    pair.base.register_forward_pre_hook(refuse)
    with pytest.warns(UserWarning, match="batch_size=4 does not fit.*batch_size=2") as warned:
        trace = dtviz.generate(pair, "a dog", batch_size=4, **usual)
    assert len(warned) == 1
    assert torch.equal(trace.final, expected.final) and torch.equal(trace.x0, expected.x0)
    assert trace.facts() == expected.facts()
    assert pair.pipeline.scheduler is scheduler
    with pytest.raises(torch.OutOfMemoryError):  # an edit may join a batch's samples
        dtviz.generate(pair, "a dog", batch_size=4, edit_x0=lambda x0, call: x0, **usual)


def test_outside_a_checkout_its_data_are_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.delenv("DTVIZ_MODELS", raising=False)
    for call in (lambda: files.data("models"), lambda: dtviz.load("emoji-dmd")):
        with pytest.raises(dtviz.Unavailable, match="data/models is part of a checkout of dtviz: set DTVIZ_MODELS to"):
            call()
    assert not dtviz.pairs().loc["emoji-dmd", "available"]
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path / "mine"))
    assert files.data("models") == tmp_path / "mine"
    with pytest.raises(dtviz.Unavailable, match="pair 'emoji-dmd' lacks files of emoji-base.*DTVIZ_MODELS"):
        check_available("emoji-dmd")
