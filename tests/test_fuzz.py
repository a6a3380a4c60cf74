"""Files from outside, broken in every way that Hypothesis finds.

A loader returns, or raises a ValueError or FileNotFoundError of one line. It does not hang and writes no file.
"""

import io
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

import dtviz
from dtviz import controls
from dtviz.core.trace import FORMAT
from dtviz.experiments import dataset, tables
from dtviz.files import HASHES, ROOT, check_hashes, content_hash
from dtviz.metrics.embedders import embedder
from dtviz.models.classifiers import load_noisy_x0_classifier

MODELS = ROOT / "data" / "models"
fuzzed = settings(derandomize=True, deadline=20_000)  # milliseconds; the same examples at every run


def mutations(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with bits flipped, cut off, bytes put in, a part doubled or left out; or another file."""
    place, head = st.integers(0, len(whole) - 1), st.integers(0, min(len(whole), 1000) - 1)

    def flip(places: list[tuple[int, int]]) -> bytes:
        data = bytearray(whole)
        for at, bit in places:
            data[at] ^= 1 << bit
        return bytes(data)

    return st.one_of(
        *(st.lists(st.tuples(at, st.integers(0, 7)), min_size=1, max_size=3).map(flip) for at in (place, head)),
        place.map(lambda end: whole[:end]),
        st.builds(lambda end, extra, start: whole[:end] + extra + whole[start:], place, st.binary(max_size=20), place),
        st.binary(max_size=200),
    )


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
trees = st.recursive(scalars, lambda one: st.lists(one) | st.dictionaries(st.text(max_size=10), one), max_leaves=9)
texts = st.one_of(trees.map(json.dumps), st.just("[" * 100_000), st.text(max_size=30), st.just("1" * 5000))
json_files = texts.map(str.encode)
names = st.sampled_from(["x0", "sigmas", "timesteps", "final", "x_t", "call_steps", "seeds", "other"])
kinds = st.sampled_from(["float32", "float16", "int64", "bool"])
tensors = st.dictionaries(names, st.builds(np.zeros, st.lists(st.integers(0, 3), max_size=6), kinds), max_size=6)
cells = st.text(max_size=12) | st.sampled_from(["../../etc/passwd", "/etc/passwd", "a/b", "..", "0" * 300, "a\x00b"])


def forged_trace(arrays: dict, text: str) -> bytes:
    """Return a whole trace with a right hash, of odd tensors and an odd text in its header."""
    return save(arrays, {"format": FORMAT, "facts": text, "sha256": content_hash(text, arrays)})


class File(NamedTuple):
    """One kind of file."""

    name: str
    save: Callable[[Path], Any]  # writes a good one
    load: Callable[[Path], Any]  # returns what is in it, or None for what does not claim to be what was saved
    exact: bool = False  # a hash in it keeps a broken one from loading as anything else
    others: st.SearchStrategy[bytes] = st.just(b"")  # further contents, such as whole files of another program


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def load_trace(path: Path):
    trace = dtviz.Trace.load(path)
    return trace.facts(), {name: part.tolist() for name, part in trace.arrays().items()}


FACTORS = {"a.lora_A.weight": np.ones((2, 400), np.float32), "a.lora_B.weight": np.ones((4, 2), np.float32)}
TORCH_FACTORS = {key: torch.from_numpy(array) for key, array in FACTORS.items()}


def load_control(path: Path):
    control = controls.load(path)
    return control.fingerprint if control.kind == "slider" else None  # None: without its header it is any LoRA


def load_prompts(path: Path) -> None:
    for row in dataset.read_prompts(path):
        assert (path.parent / f"{row.case}.png").parent == path.parent and len(row.case) <= 200
        assert row.prompt.strip() and row.seed >= 0


Image.new("RGB", (8, 8), "teal").save(BUFFER := io.BytesIO(), "png")
IMAGE = BUFFER.getvalue()
HEAD = IMAGE[12:16] + (60_000).to_bytes(4) * 2 + IMAGE[24:29]  # it claims more pixels than fit into memory
HUGE_IMAGE = IMAGE[:12] + HEAD + zlib.crc32(HEAD).to_bytes(4) + IMAGE[33:]


def load_image(path: Path):
    damaged = dataset._problems(path.parents[1], [dataset.Row("x", "", 0)])
    try:
        pixels = dataset.read_image(path).tolist()
    except ValueError:
        assert damaged  # otherwise a job would count it as complete
        raise
    return None if damaged else pixels


OWN_HEADERS = texts.map(lambda text: save(FACTORS, {"dtviz": text}))
LORA_HEADERS = texts.map(lambda text: save(FACTORS, {"lora_adapter_metadata": text}))
X0 = torch.ones(3, 2, 1, 16, 16)
TRACE = dtviz.Trace(X0, torch.ones(3), torch.ones(3), X0[0], seeds=(1, 2), prompt="a dog")
PROMPTS = 'case_number,prompt,evaluation_seed\n1,"a dog, sitting",5\n2,"a\ncat",6\n'
ODD_ROWS = st.lists(st.tuples(cells, cells, cells).map(",".join), max_size=5).map("\n".join)
CONTROL = controls.Control("age", "slider", TORCH_FACTORS, {"prompts": ["woman"]})
FILES = [
    File("x.trace", TRACE.save, load_trace, True, st.builds(forged_trace, tensors, texts)),
    File("control.safetensors", CONTROL.save, load_control, True, OWN_HEADERS),
    File("lora.safetensors", content(save(FACTORS)), load_control, others=LORA_HEADERS),
    File("lora.bin", lambda path: torch.save(TORCH_FACTORS, path), load_control),
    File("x.csv", content(PROMPTS.encode()), load_prompts, others=ODD_ROWS.map(lambda rows: (PROMPTS + rows).encode())),
    File("table.csv", content(b"prompt,value [1]\ndog,0.5\n"), tables.load, others=st.text().map(str.encode)),
    File("images/x.png", content(IMAGE), load_image, True, st.just(HUGE_IMAGE)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("broken", [True, False], ids=["broken", "other"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file.name).name)
def test_a_file_is_refused_or_loads(file, broken, tmp_path):
    path = tmp_path / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)
    expected, contents = file.load(path), mutations(path.read_bytes()) if broken else file.others
    files = sorted(tmp_path.rglob("*"))

    @settings(fuzzed, max_examples=50)
    @given(contents)
    def check(data):
        path.write_bytes(data)
        try:
            result = file.load(path)
            assert not (broken and file.exact) or result in (None, expected)
        except (ValueError, FileNotFoundError) as error:
            assert re.fullmatch(".{1,4000}", str(error))  # one line
        assert sorted(tmp_path.rglob("*")) == files

    check()


def test_any_damage_of_an_embedded_model_is_named_before_it_is_read(tmp_path, monkeypatch):
    """Weights, settings, tokenizer: whatever is changed, cut or missing, the file is named."""
    load_pair, load_clip = (lambda: dtviz.load("emoji-dmd")), (lambda: embedder("emoji-clip"))
    loads = {"emoji-base": load_pair, "emoji-clip": load_clip, "emoji-judges": load_noisy_x0_classifier}
    for model in (*loads, "emoji-dmd"):
        shutil.copytree(MODELS / model, tmp_path / model)
    hashes = check_hashes(tmp_path, ["."])
    (tmp_path / HASHES).write_text("".join(f"{digest}  {name}\n" for name, digest in hashes.items()))
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    names = list(check_hashes(tmp_path, list(loads)))

    @settings(fuzzed, max_examples=25)
    @given(st.sampled_from(names), st.floats(0, 1, exclude_max=True), st.integers(0, 8))
    def check(name, share, bit):
        path, whole = tmp_path / name, (MODELS / name).read_bytes()
        at = int(share * len(whole))
        path.write_bytes(whole[:at] if bit == 8 else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=f"^[^\n]*{name}[^\n]* damaged[^\n]*$"):
            loads[name.split("/")[0]]()
        path.write_bytes(whole)

    check()
    (tmp_path / names[0]).unlink()
    with pytest.raises(ValueError, match=f"{names[0]} in .*: missing or damaged"):
        check_hashes(tmp_path, list(loads))
