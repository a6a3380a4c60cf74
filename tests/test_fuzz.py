"""Files from outside, broken in every way that Hypothesis finds: one error of one line, no hang, nothing written.

Whatever a loader is given, it loads or raises a ValueError or FileNotFoundError (`Unavailable` is one) of one line.
"""

import json
import os
import shutil
import signal
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from safetensors.torch import save_file

import dtviz
from dtviz import control, dataset, drawings, judges, score, table
from dtviz.__main__ import main
from dtviz.control.optimise import optimise
from dtviz.embed import embedder
from dtviz.outside import digests, seal
from dtviz.prompts import CASES
from dtviz.prompts import read as read_prompts
from dtviz.store import Store, digest, key

ROOT = Path(__file__).parents[1]
# The same examples at every run; a search for new ones is `derandomize=False` here.
fuzzed = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def mutations(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with bits flipped, cut off, bytes put in, a part doubled or gone; or no such file at all."""
    at = st.integers(0, len(whole) - 1)
    piece = st.tuples(at, at, st.binary(max_size=20))

    def flipped(places: list[int]) -> bytes:
        data = bytearray(whole)
        for place in places:
            data[place // 8] ^= 1 << place % 8
        return bytes(data)

    return st.one_of(
        st.lists(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=8).map(flipped),
        st.lists(st.integers(0, 8 * min(len(whole), 1000) - 1), min_size=1, max_size=2).map(flipped),  # the head
        at.map(lambda end: whole[:end]),
        piece.map(lambda p: whole[: p[0]] + p[2] + whole[p[1] :]),
        st.binary(max_size=200),
    )


def jsons(deep: bool = True) -> st.SearchStrategy[str]:
    """Any JSON, and what looks like it."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
    trees = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=10,
    )
    return st.one_of(trees.map(json.dumps), st.just("[" * 100_000), st.text(max_size=30), st.just("1" * 5000))


@contextmanager
def said(folder: Path):
    """Allow an error of one line that is a ValueError or FileNotFoundError, for 20 seconds; no file may come or go."""

    def late(*_):
        raise AssertionError("it hangs")

    before = sorted(folder.rglob("*"))
    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, FileNotFoundError) as error:
        assert 0 < len(str(error)) < 4000 and len(str(error).splitlines()) == 1, str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    assert sorted(folder.rglob("*")) == before


def trace_file(folder: Path) -> bytes:
    x0 = torch.randn(3, 2, 1, 2, 2)
    trace = dtviz.Trace(x0, torch.ones(3), torch.ones(3), x0[-1], seeds=(1, 2), prompt="a dog", steps_run={"base": 3})
    return trace.save(folder / "t.trace").read_bytes()


def tensors() -> st.SearchStrategy[dict[str, np.ndarray]]:
    shapes = st.lists(st.integers(0, 3), max_size=6).map(tuple)
    names = st.sampled_from(["x0", "sigmas", "timesteps", "final", "x_t", "call_steps", "seeds", "other"])
    kinds = st.sampled_from(["float32", "float16", "int64", "bool"])
    return st.dictionaries(names, st.builds(np.zeros, shapes, kinds), max_size=6)


# Traces


@fuzzed
@given(st.data())
def test_traces_of_broken_bytes(tmp_path, data):
    whole = trace_file(tmp_path)
    broken = data.draw(mutations(whole))
    (tmp_path / "t.trace").write_bytes(broken)
    with said(tmp_path):
        found = dtviz.Trace.load(tmp_path / "t.trace")
        # what loads is what was saved, to the last bit: a flip in the file's padding, say
        (tmp_path / "t.trace").write_bytes(whole)
        expected = dtviz.Trace.load(tmp_path / "t.trace")
        assert found.facts() == expected.facts()
        assert all(torch.equal(a, expected.arrays()[name]) for name, a in found.arrays().items())


@fuzzed
@given(tensors(), jsons())
def test_traces_made_up_of_other_tensors_and_facts(tmp_path, arrays, facts):
    """Whole safetensors files with a right hash, by someone who means harm or another program."""
    held = {"format": "dtviz.trace/1", "facts": facts, "sha256": digest(facts, arrays)}
    (tmp_path / "t.trace").write_bytes(save(arrays, metadata=held))
    with said(tmp_path):
        repr(dtviz.Trace.load(tmp_path / "t.trace"))


# Prompts and tables


CELLS = st.one_of(
    st.text(max_size=12), st.sampled_from(["../../etc/passwd", "/etc/passwd", "a/b", "..", "0" * 300, "a\x00b", "con"])
)


@fuzzed
@given(
    st.one_of(
        st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5).map(
            lambda rows: "\n".join(["case_number,prompt,evaluation_seed", *(",".join(row) for row in rows)]).encode(
                "utf-8", "surrogatepass"
            )
        ),
        mutations(b'case_number,prompt,evaluation_seed\r\n1,"a dog, sitting",5\r\n2,"a\ncat",6\r\n'),
    )
)
def test_prompts_files(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    with said(tmp_path):
        for row in read_prompts(tmp_path / "p.csv"):
            assert CASES.fullmatch(row.case) and row.prompt.strip() and row.seed >= 0
            assert (tmp_path / f"{row.case}.png").parent == tmp_path


@pytest.mark.parametrize("case", ["../x", "/x", "a/b", "", "..", "x" * 201, "a\nb", "ä"])
def test_rows_given_by_hand_lead_to_no_other_folder_either(pair, tmp_path, case):
    with pytest.raises(ValueError, match="names no file"):
        dataset.run(pair, [dataset.Row(case, "a dog", 1)], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@fuzzed
@given(
    mutations(b"prompt,method,value [1 - cosine]\ndog,base,0.5\n")
    | st.text().map(lambda t: t.encode("utf-8", "ignore"))
)
def test_tables(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with said(tmp_path):
        assert "units" in table.load(tmp_path / "t.csv").attrs


# The store


@fuzzed
@given(st.data())
def test_store_files_of_broken_bytes(tmp_path, data):
    arrays = {"x": np.arange(6.0)}
    made = []
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        store = Store(root)
        store.fetch("a", {"seed": 1}, lambda: arrays)
        path = store.path("a", {"seed": 1})
        path.write_bytes(data.draw(mutations(path.read_bytes())))
        with said(tmp_path):
            (entry,) = store.entries()
            whole = not entry.problem()
            main(["store", "ls", "--kind", "a", "--root", root])
            main(["store", "verify", "--root", root])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = store.fetch("a", {"seed": 1}, lambda: made.append(1) or arrays)
        np.testing.assert_array_equal(found["x"], arrays["x"])
        assert len(told) == len(made) <= 1  # made again, and said
        assert not (made and whole)


@fuzzed
@given(tensors(), jsons(), st.sampled_from(["a", "Not a kind", "..a"]), st.booleans())
def test_store_files_made_up(tmp_path, arrays, facts, kind, named):
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        name = key("a", {}) if named else "0" * 64
        path = Path(root) / kind / name[:2] / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(save(arrays, metadata={"settings": facts, "sha256": digest(facts, arrays)}))
        with said(tmp_path):
            (entry,) = Store(root).entries()
            assert entry.problem() or (entry.settings == {} and named)  # the one that is what its name says
            for action in ("ls", "verify"):
                assert main(["store", action, "--kind", "a", "--root", root]) in (0, 1)
                assert main(["store", action, "--root", root]) in (0, 1)


# The job's folder and images


def picture(size: int = 8) -> bytes:
    path = Path(tempfile.mkdtemp()) / "x.png"
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data


PICTURE = picture()


@fuzzed
@given(mutations(PICTURE))
def test_images(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with said(tmp_path):
        score.describe([tmp_path / "x.png"])
        [batch] = score._batches([tmp_path / "x.png"], 1)
        assert batch.shape[1] == 3
    (tmp_path / "x.png").write_bytes(PICTURE)
    expected = next(score._batches([tmp_path / "x.png"], 1))
    (tmp_path / "x.png").write_bytes(content)
    if not dataset._problem(tmp_path / "x.png"):  # believed: then it is the same image
        np.testing.assert_array_equal(next(score._batches([tmp_path / "x.png"], 1)), expected)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    """A few bytes that claim 60,000 x 60,000 pixels."""
    head = (60_000).to_bytes(4) * 2
    (tmp_path / "x.png").write_bytes(_crc(PICTURE[:16] + head + PICTURE[24:]))
    with pytest.raises(ValueError, match=r"x\.png cannot be read.*DecompressionBomb"):
        score.describe([tmp_path / "x.png"])


def _crc(png: bytes) -> bytes:
    import zlib

    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4) + png[33:]


@fuzzed
@given(jsons(), st.binary(max_size=60))
def test_what_a_jobs_folder_tells(tmp_path, text, line):
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        out = Path(name)
        (out / "log").mkdir()
        (out / ".locks").mkdir()
        (out / ".locks" / "job.lock").touch()
        (out / "log" / "a-1.jsonl").write_bytes(line + b"\n" + text.encode("utf-8", "replace") + b'\n{"batch": 1}\n')
        (out / "job.json").write_text(text, errors="replace")
        with said(tmp_path):
            assert dataset.log(out)[-1] == {"batch": 1}  # the whole line survives whatever stands before it
            assert all(isinstance(one, dict) for one in dataset.log(out))
            dataset._claim(out, [], {"format": "dtviz.dataset/1"})


# Models


FILES = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of models in the embedded layout: the shipped ones' settings, and a tiny part of their weights."""
    folder = tmp_path_factory.mktemp("models")
    for model in ("emoji-base", "emoji-dmd", "emoji-judges", "emoji-clip"):
        shutil.copytree(ROOT / "data" / "models" / model, folder / model)
    seal(folder)
    return folder


@settings(fuzzed, max_examples=25)
@given(st.data())
def test_any_damage_of_an_embedded_model_is_named(saved, data):
    """Weights, settings, tokenizer: whatever is changed, cut or gone, the file is named before anything reads it."""
    files = sorted(path for path in saved.rglob("*") if path.suffix in (".json", ".safetensors"))
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "gone"]))
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, at // 8)
    else:
        with path.open("r+b") as file:
            file.seek(at // 8)
            file.write(bytes([whole[at // 8] ^ 1 << at % 8]))
    try:
        with pytest.raises(ValueError, match=str(path.relative_to(saved))) as caught:
            digests(saved, [path.relative_to(saved).parts[0]])
        assert len(str(caught.value).splitlines()) == 1
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("what", ["pair", "clip", "judge"])
def test_the_loaders_look_before_they_read(saved, monkeypatch, what):
    monkeypatch.setenv("DTVIZ_MODELS", str(saved))
    names = {
        "pair": "emoji-base/tokenizer/tokenizer.json",
        "clip": "emoji-clip/config.json",
        "judge": "emoji-judges/plan.safetensors",
    }
    loads = {
        "pair": lambda: dtviz.load("emoji-dmd"),
        "clip": lambda: embedder("emoji-clip"),
        "judge": judges.load_plans,
    }
    path = saved / names[what]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b" ")
    try:
        with pytest.raises(ValueError, match=f"{names[what]} in .*: missing or damaged"):
            loads[what]()
    finally:
        path.write_bytes(whole)


@settings(fuzzed, max_examples=12)
@given(st.data())
def test_models_without_sums_are_read_by_others_and_their_errors_are_one_line(saved, data):
    """Of a pair that someone trained: diffusers raises what it likes, from a KeyError to a search of the hub."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        folder = Path(name)
        for model in ("emoji-base", "emoji-dmd"):
            shutil.copytree(saved / model, folder / model, copy_function=os.link)
        patched.setenv("DTVIZ_MODELS", str(folder))
        patched.setenv("HF_HUB_OFFLINE", "1")
        path = folder / "emoji-base" / data.draw(st.sampled_from(FILES))
        whole = path.read_bytes()
        path.unlink()  # its link, not the file
        path.write_bytes(data.draw(st.one_of(mutations(whole), jsons().map(lambda t: t.encode("utf-8", "replace")))))
        with said(folder):
            dtviz.load("emoji-dmd")


def test_weights_that_do_not_fit_and_loras_that_are_none(saved, tmp_path, monkeypatch):
    for model in ("emoji-base", "emoji-dmd"):
        shutil.copytree(saved / model, tmp_path / model)
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "emoji-dmd" / "lora" / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="lora of emoji-dmd leaves the base as it is"):
        dtviz.load("emoji-dmd-lora")
    weights = tmp_path / "emoji-dmd" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"emoji-dmd.* cannot be read, is it damaged\? \w*Error"):
        dtviz.load("emoji-dmd")


FACTORS = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(4, 2)}


def control_file(folder: Path, name: str) -> bytes:
    """A small control as dtviz saves it, as peft does, and as a pickle."""
    if name == "own.safetensors":
        tensors = {key.removeprefix("unet."): tensor for key, tensor in FACTORS.items()}
        control.Control("age", "slider", tensors, {"prompts": ["woman"]}).save(folder / name)
    elif name.endswith(".safetensors"):
        save_file(FACTORS, folder / name)
    else:
        torch.save(FACTORS, folder / name)
    return (folder / name).read_bytes()


@fuzzed
@given(st.data())
def test_controls_of_broken_bytes(tmp_path, data):
    name = data.draw(st.sampled_from(["own.safetensors", "lora.safetensors", "lora.bin"]))
    whole = control_file(tmp_path, name)
    (tmp_path / name).write_bytes(data.draw(mutations(whole)))
    with said(tmp_path):
        found = control.load(tmp_path / name)
        if name == "own.safetensors" and found.kind == "slider":  # whose tensors have a hash
            assert all((tensor == 1).all() for tensor in found.tensors.values())


@fuzzed
@given(jsons(), st.sampled_from(["dtviz", "lora_adapter_metadata", "beside"]))
def test_controls_that_tell_odd_things(tmp_path, text, where):
    name = "adapter_model.safetensors"
    (tmp_path / "adapter_config.json").write_text(text if where == "beside" else "{}", errors="replace")
    save_file(FACTORS, tmp_path / name, None if where == "beside" else {where: text})
    with said(tmp_path):
        repr(control.load(tmp_path))


def resumed(path: Path) -> list[float]:
    """The losses of a small training that keeps its state here, or goes on with what is."""
    parameter = torch.nn.Parameter(torch.ones(3))

    def loss(iteration, generator):
        return (parameter**2).sum()

    options = {"iterations": 4, "lr": 0.1, "seed": 0, "settings": {"rank": 4}, "every": 2, "progress": False}
    return optimise({"x": parameter}, loss, state=path, **options)


@fuzzed
@given(st.data())
def test_training_states_of_broken_bytes(tmp_path, data):
    expected = resumed(tmp_path / "whole")
    (tmp_path / "state").write_bytes(data.draw(mutations((tmp_path / "whole").read_bytes())))
    with said(tmp_path):
        assert resumed(tmp_path / "state") == expected


@settings(fuzzed, max_examples=20)
@given(mutations((ROOT / "data" / "drawings" / "drawings.csv").read_bytes()[:2000]))
def test_drawings(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("drawings")
    (folder / "drawings.csv").write_bytes(content)
    (folder / "drawings.png").write_bytes(PICTURE)
    with pytest.MonkeyPatch.context() as patched, said(folder):
        patched.setenv("DTVIZ_DRAWINGS", str(folder))
        drawings.load.__wrapped__()
