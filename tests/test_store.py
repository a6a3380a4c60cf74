"""dtviz.store: made once, whole or absent, and never believed when damaged; with real processes, really killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dtviz import store as store_module
from dtviz.__main__ import main
from dtviz.store import Store, key

SETTINGS = {"pair": "emoji-dmd", "prompt": "dog face", "seeds": [0, 1], "guidance": 3.0, "k": None}
ARRAYS = {"x0": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "n": np.array(7), "mask": np.array([True, False])}
LOAD = f"""
import os, signal, sys, time
import numpy as np
sys.path.insert(0, {str(Path(store_module.__file__).parents[1])!r})
from dtviz import store
kept = store.Store(sys.argv[1])
"""


def process(code, root, **options):
    return subprocess.Popen([sys.executable, "-c", LOAD + code, str(root)], **options)


def never():
    raise AssertionError("made again")


def same(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def leftovers(root):
    return [
        path.name for path in Path(root).rglob("*") if path.is_file() and path.suffix not in {".safetensors", ".lock"}
    ]


def test_made_once_then_read(tmp_path):
    store = Store(tmp_path)
    assert not store.has("images", SETTINGS)
    same(store.fetch("images", SETTINGS, lambda: ARRAYS))
    assert store.has("images", SETTINGS)
    same(Store(tmp_path).fetch("images", dict(reversed(SETTINGS.items())), never))
    path = store.path("images", SETTINGS)
    assert path == tmp_path / "images" / path.stem[:2] / f"{key('images', SETTINGS)}.safetensors"
    with pytest.raises(AssertionError, match="made again"):
        store.fetch("features", SETTINGS, never)
    assert leftovers(tmp_path) == []


def test_the_settings_stand_in_the_file(tmp_path):
    store = Store(tmp_path)
    store.fetch("images", SETTINGS, lambda: ARRAYS)
    data = store.path("images", SETTINGS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["settings"]) == SETTINGS


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.array(1.5),
        np.arange(6).reshape(2, 3).T,
        np.arange(3, dtype=">f4"),
        np.array([np.nan, np.inf], dtype=np.float16),
        np.arange(4, dtype=np.uint8),
        torch.arange(6.0, requires_grad=True).reshape(2, 3),
    ],
    ids=["empty", "scalar", "transposed", "big-endian", "nan", "uint8", "torch"],
)
def test_every_kind_of_array_comes_back_as_it_was(tmp_path, array):
    store = Store(tmp_path)
    made = store.fetch("a", {}, lambda: {"x": array})["x"]
    read = store.fetch("a", {}, never)["x"]
    np.testing.assert_array_equal(made, read, strict=True)
    np.testing.assert_array_equal(read, array.detach().numpy() if isinstance(array, torch.Tensor) else array)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "gave NoneType"),
        ({}, "not empty"),
        ({"x": np.array(["a"])}, "'x' of type"),
        ({"x": np.array([object()])}, "'x' of type object"),
        ({1: np.ones(2)}, "str names"),
        ({"x": torch.ones(2, dtype=torch.bfloat16)}, r"bfloat16.*\.float\(\)"),
    ],
)
def test_refuses_what_cannot_be_kept(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        Store(tmp_path).fetch("a", {}, lambda: made)
    assert list(tmp_path.rglob("*.safetensors")) == leftovers(tmp_path) == []


def test_key_is_known_and_changes_with_everything():
    assert key("images", {"b": [1, 2], "a": "é"}) == key("images", {"a": "é", "b": (1, 2)})
    different = [("a", {}), ("b", {}), ("a", {"x": 1}), ("a", {"x": 1.5}), ("a", {"x": "1"}), ("a", {"x": None})]
    different += [("a", {"x": True}), ("a", {"x": [1]}), ("a", {"x": [[1]]}), ("a", {"y": 1}), ("a", {"x": {"y": 1}})]
    assert len({key(kind, settings) for kind, settings in different}) == len(different)
    # sha256 of 'images\n{"seed":1}': a change of this makes every result in every store be made again
    assert key("images", {"seed": 1}).startswith("f718274f54d7")


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"x": float("nan")}, r"settings\['x'\] = nan"),
        ({"x": [1, float("inf")]}, r"settings\['x'\]\[1\] = inf"),
        ({"x": range(3)}, r"settings\['x'\] = range\(0, 3\)"),
        ({"x": np.int64(3)}, "int64"),
        ({"x": {"y": Path("a")}}, r"settings\['x'\]\['y'\]"),
        ({1: "a"}, "key 1"),
    ],
)
def test_key_refuses_settings(settings, where):
    with pytest.raises(ValueError, match=where):
        key("a", settings)


@pytest.mark.parametrize("kind", ["", "../a", "A", "a/b", ".a"])
def test_key_refuses_kind(kind):
    with pytest.raises(ValueError, match="kind = "):
        key(kind, {})


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DTVIZ_STORE", str(tmp_path / "here"))
    assert Store().root == tmp_path / "here"
    monkeypatch.delenv("DTVIZ_STORE")
    assert Store().root == Path(store_module.__file__).parents[1] / ".dtviz"


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    store = Store(tmp_path)
    store.fetch("a", SETTINGS, lambda: ARRAYS)
    path = store.path("a", SETTINGS)
    whole = path.read_bytes()
    noticed = 0
    for at in range(8 * len(whole)):
        if at % 7:  # every seventh bit reaches each byte's every bit in turn, and keeps this under a second
            continue
        broken = bytearray(whole)
        broken[at // 8] ^= 1 << at % 8
        path.write_bytes(broken)
        found = store_module._read(path, SETTINGS, warn=False)
        noticed += found is None
        if found is not None:  # a flip in padding, or in the readable copy of the settings
            same(found)
    assert noticed > 0.6 * len(whole) * 8 / 7
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert not store.has("a", SETTINGS)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-5], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"", lambda b: b + b"x"]
)
def test_a_damaged_file_is_named_and_made_again(tmp_path, damage):
    store = Store(tmp_path)
    store.fetch("a", SETTINGS, lambda: ARRAYS)
    path = store.path("a", SETTINGS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=path.name):
        same(store.fetch("a", SETTINGS, lambda: ARRAYS))
    same(store.fetch("a", SETTINGS, never))


def test_a_file_of_other_settings_is_not_believed(tmp_path):
    store = Store(tmp_path)
    store.fetch("a", {"seed": 1}, lambda: ARRAYS)
    other = store.path("a", {"seed": 2})
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(store.path("a", {"seed": 1}).read_bytes())
    assert not store.has("a", {"seed": 2})


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, error, where):
    def fail(*_):
        raise error

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(os, where, fail)
        Store(tmp_path).fetch("a", SETTINGS, lambda: ARRAYS)
    assert list(tmp_path.rglob("*.safetensors")) == leftovers(tmp_path) == []
    same(Store(tmp_path).fetch("a", SETTINGS, lambda: ARRAYS))


def test_a_failing_make_leaves_nothing_and_frees_the_key(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Store(tmp_path).fetch("a", {}, lambda: {"x": 1 / 0})
    same(Store(tmp_path).fetch("a", {}, lambda: ARRAYS))


def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path):
    """A real limit on the size of files: the kernel refuses the write half way."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    kept.fetch("a", {}, lambda: {"x": np.ones(100_000)})
except OSError as error:
    print(error.errno)
"""
    out = process(code, tmp_path, stdout=subprocess.PIPE, text=True).communicate(timeout=60)[0]
    assert int(out) == 27  # EFBIG
    assert list(tmp_path.rglob("*.safetensors")) == leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_between_the_writes(tmp_path, moment):
    code = f"""
store.os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
kept.fetch("a", {{}}, lambda: {{"x": np.ones(1000)}})
"""
    assert process(code, tmp_path).wait(60) == -signal.SIGKILL
    store = Store(tmp_path)
    assert not store.has("a", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is damaged: it never came into its place
        store.fetch("a", {}, lambda: {"x": np.ones(1000)})
    assert leftovers(tmp_path) == []


def test_killed_at_random_moments(tmp_path):
    """Whatever stands in its place after a kill is whole; the next process takes up from there."""
    code = """
print("ready", flush=True)
for i in range(10_000):
    kept.fetch("a", {"i": i}, lambda: {"x": np.full(20_000, i)})
"""
    rng, done = random.Random(0), 0
    for _ in range(6):
        child = process(code, tmp_path, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.25))
        child.kill()
        child.communicate(timeout=60)
        paths = list(tmp_path.rglob("*.safetensors"))
        assert len(paths) >= done
        done = len(paths)
    store = Store(tmp_path)
    assert done > 0
    for i in range(done):
        assert (store.fetch("a", {"i": i}, never)["x"] == i).all()


def test_processes_that_want_the_same_make_it_once(tmp_path):
    code = """
def make():
    with open(sys.argv[1] + "/makes", "a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    return {"x": np.arange(5)}
print(kept.fetch("a", {}, make)["x"].sum())
"""
    children = [process(code, tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate(timeout=60)[0].strip() for child in children] == ["10"] * 3
    assert (tmp_path / "makes").read_text() == "made\n"


# What a store holds, and its command line


@pytest.fixture
def kept(tmp_path):
    """Three results, one of them of another kind."""
    store = Store(tmp_path)
    for kind, settings in (("a", {"prompt": "dog", "seeds": [0, 1]}), ("a", {"prompt": "cat"}), ("b", {"x": 1})):
        store.fetch(kind, settings, lambda: ARRAYS)
    return store


def command(store, *arguments):
    return main(["store", *arguments, "--root", str(store.root)])


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_entries_tell_what_is_there(kept):
    found = list(kept.entries())
    assert [entry.kind for entry in found] == ["a", "a", "b"]
    assert {entry.settings.get("prompt") for entry in found} == {"dog", "cat", None}
    assert all(entry.name == key(entry.kind, entry.settings) for entry in found)
    assert [entry.settings for entry in kept.entries("b")] == [{"x": 1}]
    assert all(entry.size == entry.path.stat().st_size and entry.problem() == "" for entry in found)
    assert list(Store(kept.root / "none").entries()) == []


def test_problems_are_found_whatever_is_damaged(kept):
    first, second, third = kept.entries()
    flip(first.path)
    second.path.write_bytes(second.path.read_bytes()[:50])
    third.path.rename(third.path.with_stem("0" * 64))
    problems = sorted(entry.problem() for entry in kept.entries())
    assert problems == [
        "its contents do not match its hash",
        "its head cannot be read",
        "its settings are not those that it is named by",
    ]


def test_store_ls_counts_by_kind_and_lists_one_kind(kept, capsys):
    assert command(kept, "ls") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{kept.root}: 3 results, 0.0 MiB")
    command(kept, "ls", "--kind", "a")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert any(line.endswith("prompt=dog, seeds=[0, 1]") for line in lines)
    command(kept, "ls", "--kind", "b")
    assert capsys.readouterr().out.splitlines()[1].endswith("settings: x")


def test_a_corrupt_file_is_named_by_verify_and_made_again(kept, capsys):
    assert command(kept, "verify") == 0
    assert "3 results" in capsys.readouterr().out
    path = kept.path("a", {"prompt": "cat"})
    flip(path)
    assert command(kept, "verify") == 1
    shown = capsys.readouterr()
    assert shown.out == f"{path}: its contents do not match its hash\n"
    assert "1 damaged" in shown.err
    with pytest.warns(UserWarning, match=path.name):
        same(kept.fetch("a", {"prompt": "cat"}, lambda: ARRAYS))
    assert command(kept, "verify") == 0


def test_store_rm_removes_what_was_named_and_nothing_else(kept, capsys):
    assert command(kept, "rm") == 2
    assert "removes nothing that was not named" in capsys.readouterr().err
    flip(kept.path("a", {"prompt": "cat"}))
    assert command(kept, "rm", "--damaged") == 0
    assert "removed 1 results" in capsys.readouterr().out
    command(kept, "rm", key("a", {"prompt": "dog", "seeds": [0, 1]})[:8])
    assert [entry.kind for entry in kept.entries()] == ["b"]
    command(kept, "rm", "--kind", "b")
    assert list(kept.entries()) == []
    assert command(kept, "ls", "--kind", "../a") == 2
