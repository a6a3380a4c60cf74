import json

import pytest
import torch
from safetensors.torch import save_file

import dtviz


def make(seeds=(3, 4), prompt="a dog") -> dtviz.Trace:
    n = len(seeds)
    return dtviz.Trace(
        x0=torch.randn(5, n, 4, 8, 8),
        sigmas=torch.linspace(10, 1, 5),
        timesteps=torch.linspace(999, 99, 5),
        final=torch.randn(n, 4, 8, 8),
        seeds=tuple(seeds),
        prompt=prompt,
        steps_run={"base": 1, "distilled": 4},
        provenance={"pair": "tiny", "guidance": 0.0},
    )


def same(a: dtviz.Trace, b: dtviz.Trace) -> bool:
    tensors = a.arrays(), b.arrays()
    return (
        tensors[0].keys() == tensors[1].keys()
        and all(map(torch.equal, *(t.values() for t in tensors)))
        and a.facts() == b.facts()
    )


def test_save_and_load(tmp_path):
    trace = make()
    assert same(dtviz.Trace.load(trace.save(tmp_path / "deep" / "dog.trace")), trace)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["dog.trace"]


def test_select_and_join_are_inverse():
    trace = make(seeds=(1, 2, 3))
    parts = [trace.select([0]), trace.select(slice(1, None))]
    assert parts[1].seeds == (2, 3)
    assert same(dtviz.Trace.join(parts), trace)


def test_join_refuses_other_runs():
    with pytest.raises(ValueError, match="share prompt and noise levels"):
        dtviz.Trace.join([make(), make(prompt="a cat")])


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "other"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = make().save(tmp_path / "dog.trace")
    whole = path.read_bytes()
    if damage == "other":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "flip": b"\xff" + whole[1:], "text": b"a dog"}[damage])
    with pytest.raises(ValueError, match=r"trace .*dog\.trace cannot be read, is it damaged"):
        dtviz.Trace.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trace at"):
        dtviz.Trace.load(tmp_path / "none")


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="sigmas has length 4"):
        dtviz.Trace(torch.zeros(5, 1, 1, 1, 1), torch.zeros(4), torch.zeros(5), torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="seeds has 2 entries for 1 samples"):
        dtviz.Trace(torch.zeros(5, 1, 1, 1, 1), torch.zeros(5), torch.zeros(5), torch.zeros(1, 1, 1, 1), seeds=(1, 2))


def test_facts_are_json():
    assert json.loads(json.dumps(make().facts())) == make().facts()
