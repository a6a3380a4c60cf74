"""The cache: computed once, complete or absent, and computed again when damaged; with processes that are killed."""

import json
import os
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from dtviz.experiments.cache import Cache
from dtviz.files import ROOT

SETTINGS = {"pair": "emoji-dmd", "prompt": "dog face", "seeds": [0, 1], "guidance": 3.0, "k": None}
ARRAYS = {"x0": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "n": np.array(7), "mask": np.array([True, False])}


def never():
    raise AssertionError("computed again")


def same(arrays, expected=ARRAYS):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_computed_once_then_read(tmp_path):
    cache = Cache(tmp_path)
    same(cache.get_or_compute("images", SETTINGS, lambda: ARRAYS))
    same(Cache(tmp_path).get_or_compute("images", dict(reversed(SETTINGS.items())), never))
    path = cache.path("images", SETTINGS)
    assert path == tmp_path / "images" / path.stem[:2] / f"{path.stem}.safetensors" and len(path.stem) == 64
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["settings"]) == SETTINGS
    with pytest.raises(AssertionError, match="computed again"):
        cache.get_or_compute("features", SETTINGS, never)


def test_every_kind_of_array_comes_back_as_it_was(tmp_path):
    arrays = {
        "empty": np.zeros((0, 3)),
        "scalar": np.array(1.5),
        "transposed": np.arange(6).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">f4"),
        "nan": np.array([np.nan, np.inf], dtype=np.float16),
        "uint8": np.arange(4, dtype=np.uint8),
    }
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    first = Cache(tmp_path).get_or_compute("a", {}, lambda: arrays | {"torch": tensor})
    same(Cache(tmp_path).get_or_compute("a", {}, never), first)
    for name, array in (arrays | {"torch": tensor.detach().numpy()}).items():
        np.testing.assert_array_equal(first[name], array)


def test_key_is_known_and_changes_with_everything():
    assert Cache().path("images", {"b": [1, 2], "a": "é"}) == Cache().path("images", {"a": "é", "b": (1, 2)})
    different = [("a", {}), ("b", {}), ("a", {"x": 1}), ("a", {"x": 1.5}), ("a", {"x": "1"}), ("a", {"x": None})]
    different += [("a", {"x": True}), ("a", {"x": [1]}), ("a", {"x": [[1]]}), ("a", {"y": 1}), ("a", {"x": {"y": 1}})]
    assert len({Cache().path(kind, settings) for kind, settings in different}) == len(different)
    # sha256 of 'images\n{"seed":1}': a change of this makes every cached result be computed again
    assert Cache().path("images", {"seed": 1}).stem.startswith("f718274f54d7")


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DTVIZ_STORE", str(tmp_path / "here"))
    assert Cache().root == tmp_path / "here"
    monkeypatch.delenv("DTVIZ_STORE")
    assert Cache().root == ROOT / ".dtviz"


def test_a_damaged_file_is_named_and_computed_again(tmp_path):
    cache = Cache(tmp_path)
    cache.get_or_compute("a", SETTINGS, lambda: ARRAYS)
    path = cache.path("a", SETTINGS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=path.name):
        same(cache.get_or_compute("a", SETTINGS, lambda: ARRAYS))
    same(cache.get_or_compute("a", SETTINGS, never))


def test_a_failed_write_leaves_nothing_and_frees_the_key(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt))
        Cache(tmp_path).get_or_compute("a", SETTINGS, lambda: ARRAYS)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}
    same(Cache(tmp_path).get_or_compute("a", SETTINGS, lambda: ARRAYS))


def test_processes_that_need_the_same_compute_it_once(tmp_path):
    code = """
import sys, time
import numpy as np
from dtviz.experiments.cache import Cache
def compute():
    with open(sys.argv[1] + "/log", "a") as log:
        log.write("computed\\n")
    time.sleep(0.5)
    return {"x": np.arange(5)}
print(Cache(sys.argv[1]).get_or_compute("a", {}, compute)["x"].sum())
"""
    command = [sys.executable, "-c", code, tmp_path]
    children = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate(timeout=60)[0].strip() for child in children] == ["10"] * 3
    assert (tmp_path / "log").read_text() == "computed\n"
