"""No code of a file is run, nothing is written outside the given folders, no path of this machine is published."""

import ast
import html
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import dtviz
from dtviz import controls, plot
from dtviz.experiments.cache import Cache
from dtviz.experiments.dataset import Row, generate_images
from dtviz.files import HASHES, ROOT, check_hashes
from dtviz.models.load import read_weights

# Functions that run what a file says, or read a format that does. A result may not depend on the clock either.
BANNED = re.compile(
    r"eval|exec|compile|__import__|(cloud)?pickle\.(loads?|Unpickler)|(marshal|dill|joblib)\.loads?|shelve\.open|"
    r"(pd|pandas)\.read_pickle|yaml\.(unsafe_|full_)?load|os\.(system|popen)|shutil\.unpack_archive|.*\.extractall|"
    r"time\.time|(datetime\.)?datetime\.now"
)
ALLOWED = {("data/recipes/common.py", "time.time")}  # how long a stage took


def problems(source: str) -> list[str]:
    """Return the calls that run, or may run, code from outside."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            BANNED.fullmatch(name)
            or (name == "torch.load" and options.get("weights_only") != "True")
            or {"allow_pickle", "custom_pipeline"} & options.keys()
            or any(options.get(option, "False") != "False" for option in ("trust_remote_code", "shell"))
        ):
            names.append(name)
    return names


def test_nothing_runs_code_from_outside():
    sources = {path: path.read_text() for folder in ("dtviz", "data/recipes") for path in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        sources[path] = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    calls = {(path.relative_to(ROOT).as_posix(), name) for path, text in sources.items() for name in problems(text)}
    assert len(sources) > 60 and calls == ALLOWED
    harm = ("torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "subprocess.run('ls', shell=True)")
    assert all(problems(call) for call in (*harm, "eval('1')", "yaml.load(f)", "load(x, trust_remote_code=True)"))


class Harm:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.mark.filterwarnings("ignore:.*read as weights only")
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))):
        save(Harm(), tmp_path / "x.bin")
        with pytest.raises(ValueError, match=r"x\.bin cannot be read as weights only; nothing in it was run"):
            read_weights(tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=r"x\.bin.*cannot be read as weights only; nothing in it was run"):
            controls.load(tmp_path / "x.bin")
        assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize(
    "index",
    [{"_class_name": ["mine", "Mine"]}, {"unet": ["mine", "Mine"]}, {"unet": ["os", "system"]}],
    ids=["pipeline", "component", "module"],
)
def test_code_in_a_models_folder_is_not_run(tmp_path, monkeypatch, index):
    """model_index.json may name a pipeline or a component by a file beside it, or any module that can be imported."""
    for model in ("emoji-base", "emoji-dmd"):
        shutil.copytree(ROOT / "data" / "models" / model, tmp_path / model)
    harm, folder = tmp_path / "harm", tmp_path / "emoji-base"
    for path in (folder / "mine.py", folder / "unet" / "mine.py", folder / "pipeline.py"):
        path.write_text(f"from pathlib import Path\nPath({str(harm)!r}).touch()\nclass Mine: pass\n")
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        dtviz.load("emoji-dmd")
    assert not harm.exists() and len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:2 of 2 prompts.*are cut")
def test_a_job_writes_within_its_folder_alone(pair, tmp_path):
    before = set(os.listdir(ROOT))
    rows = [Row("a-1", "../../etc/passwd; rm -rf ~", 1), Row("b_2", "<script>alert(1)</script>", 2)]
    generate_images(pair, rows, tmp_path / "out", progress=False)
    Cache(tmp_path / "cache").get_or_compute("a", {"name": "../../x"}, lambda: {"x": np.ones(1)})
    assert sorted(os.listdir(tmp_path)) == ["cache", "out"] and set(os.listdir(ROOT)) == before
    assert sorted(os.listdir(tmp_path / "out" / "images")) == ["a-1.png", "b_2.png"]
    for case in ("../x", "/x", "a/b", "", "..", "x" * 201, "a\nb", "ä"):
        with pytest.raises(ValueError, match="must be a word of letters"):
            generate_images(pair, [Row(case, "a dog", 1)], tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


# What is published

# A path of some machine: at the beginning of a text, or after a blank, a quote or a bracket
ABSOLUTE = re.compile(
    r"(?:^|[\s\"'(\[=,])(/(?:home|root|tmp|work|Users|mnt|private|builds?|var|opt|usr)/\S*|[A-Z]:\\\\\S*)"
)


def strings(value):
    """Yield the strings in JSON, without the images of a notebook."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not str(key).startswith(("image/", "application/pdf")):
                yield from strings(item)


def test_provenance_names_no_path_of_this_machine():
    for text in ("/home/me/dtviz", "see /tmp/x", '"/work/x"', "File('/root/a')"):
        assert ABSOLUTE.search(text)
    paths = [path for folder in ("figures", "notebooks") for path in (ROOT / folder).rglob("[!.]*")]
    paths = [path for path in paths if path.suffix in (".json", ".csv", ".ipynb") and ".failed" not in path.suffixes]
    assert len(paths) > 50
    for path in paths:
        content = path.read_text() if path.suffix == ".csv" else json.loads(path.read_text())
        found = [match[1] for text in strings(content) for match in ABSOLUTE.finditer(text)]
        assert not found, f"{path.relative_to(ROOT)}: {found[:3]}"


def test_prompts_are_drawn_as_they_stand(tmp_path):
    """A dollar sign in a prompt starts no formula, whose errors would end a figure."""
    prompts = ["a $5 bill and $10", r"a $\frac$ b", "$x_{$", "100% _snake_ ^ ~ {}", "<b>&amp;</b>"]
    figure, axes = plt.subplots(ncols=2)
    plot.plot_image_grid(np.zeros((5, 1, 3, 8, 8)), row_labels=prompts, ax=axes[0])
    plot.plot_diversity_table(pd.DataFrame({"prompt": prompts, "method": "base", "value": 0.1}), ax=axes[1])
    plot.caption(figure, " ".join(prompts))
    with plt.rc_context({"svg.fonttype": "none"}):  # letters as letters
        figure.savefig(tmp_path / "x.svg")
    plt.close(figure)
    text = html.unescape((tmp_path / "x.svg").read_text())
    for prompt in prompts:
        assert text.count(prompt) >= 2 and all(text.count(word) >= 3 for word in prompt.split())


def test_the_shipped_models_are_what_their_hashes_say():
    """Every file is listed. `sha256sum --check SHA256SUMS` in data/models says the same."""
    root = ROOT / "data" / "models"
    listed = [line.split("  ", 1)[1] for line in (root / HASHES).read_text().splitlines()]
    assert listed == list(check_hashes(root, [folder.name for folder in sorted(root.iterdir()) if folder.is_dir()]))
