"""No code from outside, no write outside the given folders, nothing of this machine in what is published, HTML escaped."""

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
from dtviz import dataset, plot, table
from dtviz.outside import digests
from dtviz.prompts import Row
from dtviz.store import Store

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = [*sorted((ROOT / "dtviz").rglob("*.py")), *sorted((ROOT / "data" / "recipes").glob("*.py")), *NOTEBOOKS]

# Names that run what a file says, or read a format that does; each with what makes it harmless, if anything does.
BANNED = {
    "eval", "exec", "compile", "__import__",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "dill.load", "dill.loads", "cloudpickle.load", "pd.read_pickle", "pandas.read_pickle",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
    "shutil.unpack_archive", "tarfile.extractall", "zipfile.extractall",
    "time.time", "datetime.now", "datetime.datetime.now",  # a result may not depend on the clock
}  # fmt: skip
ALLOWED = {("data/recipes/common.py", "time.time")}  # how long a stage took


def code(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def problems(tree: ast.AST) -> list[str]:
    """What in a module runs, or may run, code that is not its own."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        said = {arg: ast.unparse(value) for arg, value in given.items() if arg}
        if name in BANNED or name.split(".")[-1] in ("extractall", "eval_js"):
            found.append(name)
        if name == "torch.load" and said.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name.split(".")[-1] == "load" and name.startswith(("np.", "numpy.")) and "allow_pickle" in said:
            found.append("allow_pickle")
        if said.get("trust_remote_code", "False") != "False" or "custom_pipeline" in said:
            found.append("code from a model repository")
        if said.get("shell", "False") != "False":
            found.append("a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_outside(path):
    where = path.relative_to(ROOT).as_posix()
    assert [name for name in problems(ast.parse(code(path))) if (where, name) not in ALLOWED] == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "torch.load(f)", "torch.load(f, weights_only=False)", "pickle.load(f)", "yaml.load(f)",
        "np.load(f, allow_pickle=True)", "Model.from_pretrained(x, trust_remote_code=True)", "tar.extractall(x)",
        "DiffusionPipeline.from_pretrained(x, custom_pipeline='y')", "subprocess.run('ls', shell=True)",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_is_for(source):
    assert problems(ast.parse(source))


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    from dtviz.models.weights import read

    sign = tmp_path / "harm"
    for name, save in (("a.bin", torch.save), ("b.bin", lambda value, path: path.write_bytes(pickle.dumps(value, 2)))):
        save(Harm(sign), tmp_path / name)
        with (
            pytest.warns(UserWarning, match="read as numbers only"),
            pytest.raises(ValueError, match=r"\.bin cannot be read as weights only; nothing in it was run"),
        ):
            read(str(tmp_path), Path(name).with_suffix(".safetensors").name)
    assert not sign.exists()


@pytest.mark.parametrize("how", ["pipeline", "component", "module"])
def test_code_in_a_models_folder_is_not_run(tmp_path, monkeypatch, how):
    """model_index.json may name a pipeline or a component by a file beside it, or any module that can be imported."""
    for model in ("emoji-base", "emoji-dmd"):
        shutil.copytree(ROOT / "data" / "models" / model, tmp_path / model)
    sign, folder = tmp_path / "harm", tmp_path / "emoji-base"
    harm = f"from pathlib import Path\nPath({str(sign)!r}).touch()\nclass Mine: pass\n"
    for place in (folder / "mine.py", folder / "unet" / "mine.py", folder / "pipeline.py"):
        place.write_text(harm)
    index = json.loads((folder / "model_index.json").read_text())
    changed = {
        "pipeline": {"_class_name": ["mine", "Mine"]},
        "component": {"unet": ["mine", "Mine"]},
        "module": {"unet": ["os", "system"]},
    }
    (folder / "model_index.json").write_text(json.dumps(index | changed[how]))
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        dtviz.load("emoji-dmd")
    assert not sign.exists() and len(str(caught.value).splitlines()) == 1


def test_a_job_writes_within_its_folder_alone(pair, tmp_path):
    out = tmp_path / "out"
    before = set(os.listdir(ROOT))
    rows = [Row("a-1", "../../etc/passwd; rm -rf ~", 1), Row("b_2", "<script>alert(1)</script>", 2)]
    dataset.run(pair, rows, out, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and set(os.listdir(ROOT)) == before
    assert {path.name for path in (out / "images").iterdir()} == {"a-1.png", "b_2.png"}
    Store(tmp_path / "store").fetch("a", {"name": "../../x"}, lambda: {"x": np.ones(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


# What is published

# A path of some machine: at the beginning of a text, or after a blank, a quote or a bracket
ABSOLUTE = re.compile(
    r"(?:^|[\s\"'(\[=,])(/(?:home|root|tmp|work|Users|mnt|private|builds?|var|opt|usr)/\S*|[A-Z]:\\\\\S*)"
)


def texts(value):
    """The strings in a notebook or JSON, without pictures."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not str(key).startswith(("image/", "application/pdf")):
                yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


PUBLISHED = [
    path
    for kind in ("json", "csv", "ipynb")
    for path in sorted((ROOT / "figures").rglob(f"*.{kind}")) + sorted((ROOT / "notebooks").rglob(f"*.{kind}"))
    if not path.name.startswith(".") and ".failed." not in path.name
]


def test_provenance_names_no_path_of_this_machine():
    assert len(PUBLISHED) > 50
    for path in PUBLISHED:
        content = path.read_text()
        found = [content] if path.suffix == ".csv" else list(texts(json.loads(content)))
        told = [match[1] for text in found for match in ABSOLUTE.finditer(text)]
        assert not told, f"{path.relative_to(ROOT)}: {told[:3]}"


@pytest.mark.parametrize("text", ["/home/me/dtviz", "see /tmp/x", '"/work/x"', "File('/root/a')"])
def test_paths_of_a_machine_are_seen(text):
    assert ABSOLUTE.search(text)


def test_prompts_that_hold_html_are_escaped():
    harm = "<script>alert('x')</script> & <b>bold</b>"
    rows = pd.DataFrame({"prompt": [harm], "method": ["<i>base</i>"], "value": [0.1], "low": [0.0], "high": [0.2]})
    shown = table.show(rows).to_html()
    assert "<script>" not in shown and "<i>base" not in shown and "<b>bold" not in shown
    assert "&lt;script&gt;" in shown and "font-weight: bold" in shown


@pytest.mark.parametrize(
    "prompt", ["a $5 bill and $10", r"a $\frac$ b", "$x_{$", "100% _snake_ ^ ~ {}", "<b>&amp;</b>"]
)
def test_prompts_are_drawn_as_they_stand(prompt, tmp_path):
    """Dollars are no mathematics to a prompt, whose errors would end a figure."""
    figure, axes = plt.subplots(ncols=2)
    plot.plot_image_grid(np.zeros((1, 1, 8, 8, 3)), row_labels=[prompt], ax=axes[0])
    rows = pd.DataFrame({"prompt": [prompt] * 2, "method": ["base", "hybrid"], "value": [0.1, 0.2]})
    plot.plot_diversity_table(rows, ax=axes[1])
    plot.footer(figure, prompt)
    with plt.rc_context({"svg.fonttype": "none"}):  # letters as letters
        figure.savefig(tmp_path / "x.svg")
    plt.close(figure)
    drawn = html.unescape((tmp_path / "x.svg").read_text())
    assert drawn.count(prompt) >= 2 and all(drawn.count(word) >= 3 for word in prompt.split())
    assert table.latex(rows).count("\\\\") == 2


def test_the_shipped_models_are_what_their_sums_say():
    """All of them have sums; `sha256sum --check SHA256SUMS` in data/models says the same."""
    root = ROOT / "data" / "models"
    listed = [line.split("  ", 1)[1] for line in (root / "SHA256SUMS").read_text().splitlines()]
    assert listed == list(digests(root, [folder.name for folder in sorted(root.iterdir()) if folder.is_dir()]))
