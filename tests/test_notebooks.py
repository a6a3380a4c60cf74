"""The form of every notebook, and its run by nbval at small settings on the shipped models."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

import dtviz
from dtviz import plot

FOLDER = Path(__file__).parents[1] / "notebooks"
INDEX = FOLDER / "index.ipynb"  # leads through the others, and runs nothing
NOTEBOOKS = sorted(set(FOLDER.glob("*.ipynb")) - {INDEX})
SMALL = {"n_seeds": 3, "n_prompts": 2}
# Of the controls the intervals are over seeds, and one prompt will do. Seeds 10 and 11 are in one block
LEAST = {"control_beyond": {"n_prompts": 1}, "control_sweep": {"n_prompts": 1}, "fig3_change_of_mind": {"n_seeds": 2}}
PARTS = 4
# A study makes whole blocks of samples, ten by default, whatever the number of seeds
SMALLER = """
from dtviz.models.registry import SPECS
for spec in SPECS.values():
    if spec.embedded:
        spec.settings.update(batch_size=3, base_steps=8)
"""
CONTROLS = ("age", "smile", "openmoji", *(f"emoji-{name}/age" for name in ("dmd", "lcm", "turbo", "lightning")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    """Title, question, method and claim first; typed parameters with help; no functions and little code; no outputs."""
    notebook = nbformat.read(path, as_version=4)
    first, *rest = notebook.cells
    form = r"# .+\n\n\*\*Question\.\*\* .*\*\*Method\.\*\* .*\*\*The paper's claim\.\*\* .+"
    assert re.fullmatch(form, first.source, re.S)
    parameters = [cell for cell in rest if "parameters" in cell.metadata.get("tags", [])]
    assert parameters == [rest[0]]
    for line in parameters[0].source.splitlines():
        assert re.fullmatch(r"\w+: \w+ = .*  # .+", line), line
    texts = [cell.source for cell in rest if cell.cell_type == "markdown"]
    assert any(text.startswith("## What to conclude") for text in texts)
    assert "**Try:**" in texts[-1]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tree = ast.parse("\n".join(cell.source for cell in code))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, functions)] == []
    assert sum(bool(line.strip()) for cell in code for line in cell.source.splitlines()) <= 90
    assert not any(cell.outputs for cell in code)


def test_the_index_leads_to_every_notebook():
    cells = nbformat.read(INDEX, as_version=4).cells
    assert {cell.cell_type for cell in cells} == {"markdown"}
    linked = re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in cells))
    assert {path.name for path in NOTEBOOKS} <= set(linked)
    assert [link for link in linked if not (FOLDER / link).exists()] == []


def code_cells(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def test_executed_copies_are_of_todays_notebooks_and_show_their_figures():
    """After a change of a notebook, `make full ARGS="--only NAME"` runs its copy anew."""
    copies = sorted(FOLDER.parent.glob("figures/*/*.ipynb"))
    assert {path.stem for path in copies} == {path.stem for path in NOTEBOOKS}
    cells = {path: code_cells(path) for path in copies}
    sources = {path.name: [cell.source for cell in code_cells(path)] for path in NOTEBOOKS}
    assert [str(path) for path in copies if [cell.source for cell in cells[path]] != sources[path.name]] == []
    outputs = {path: [output.get("data", {}) for cell in cells[path] for output in cell.outputs] for path in copies}
    assert [str(path) for path in copies if not any("image/png" in data for data in outputs[path])] == []
    pictures = sorted(FOLDER.parent.glob("figures/emoji-*/*.png"))
    current = [path for path in pictures if path.stem != "explorer"]
    widths = {str(path): int.from_bytes(path.read_bytes()[16:20], "big") for path in current}  # of a PNG's header
    assert [path for path, width in widths.items() if width > 200 * plot.WIDTH + 20] == []  # 200 dpi, and a rim


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_unavailable_pair_stops_a_notebook_at_once(path, monkeypatch, tmp_path):
    """The first cell after the parameters raises an error that names the missing files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cells = code_cells(path)
    names = {"pair": "sdxl-dmd", "profile": "paper", "out": str(tmp_path / "out")}
    scope = {"__name__": path.stem}
    exec(compile(cells[0].source, path.name, "exec"), scope)
    assert set(names) <= set(scope)
    error, message = dtviz.Unavailable, r"'sdxl-dmd' is not on this machine.*missing:.*xl-base.*tianweiy/DMD2"
    if path.stem == "when_decided":  # ends without an error, so that it does not fail the run of a hub pair
        error, message = SystemExit, None
    with pytest.raises(error, match=message):
        exec(compile(cells[1].source, path.name, "exec"), scope | names)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Return one cache folder for all notebooks, shared by the test processes."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "store"


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Return `python -m` and an environment in which the kernel of notebooks is this interpreter, on small pairs."""
    few = tmp_path_factory.mktemp("controls")  # of each kind, of those that are shipped
    for name in CONTROLS:
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        (few / f"{name}.safetensors").symlink_to(FOLDER.parent / "data" / "controls" / f"{name}.safetensors")
    jupyter = tmp_path_factory.mktemp("jupyter")
    write_kernel_spec(jupyter / "kernels" / "python3")
    startup = jupyter / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "smaller.py").write_text(SMALLER)
    environment = {"DTVIZ_CONTROLS": str(few), "JUPYTER_PATH": str(jupyter), "IPYTHONDIR": str(jupyter)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    return [sys.executable, "-m"], os.environ | environment


@pytest.mark.parametrize("part", range(PARTS))
def test_notebooks_run_under_nbval(part, store, python, tmp_path):
    """One after the other in one kernel, which imports the packages once."""
    names, out, joined = [path.stem for path in NOTEBOOKS[part::PARTS]], tmp_path / "figures", None
    for name in names:
        notebook = load_notebook_node(str(FOLDER / f"{name}.ipynb"))
        parameters = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        values = {key: value for key, value in (SMALL | LEAST.get(name, {})).items() if f"{key}:" in parameters}
        notebook = parameterize_notebook(notebook, values | {"out": str(out)})
        joined = joined or nbformat.v4.new_notebook(metadata=notebook.metadata)
        joined.cells += [nbformat.v4.new_code_cell(f"%reset -f\n# {name}"), *notebook.cells]
    nbformat.write(joined, tmp_path / "joined.ipynb")
    command, environment = python
    options = ["-q", "-p", "no:xdist", "--nbval-lax", "--nbval-cell-timeout=300", "-c", os.devnull]
    done = subprocess.run(
        [*command, "pytest", *options, "joined.ipynb"],
        env=environment | {"DTVIZ_STORE": str(store)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in names:
        for kind in ("png", "pdf", "json", "csv"):
            assert (out / f"{name}.{kind}").stat().st_size > 100
    if "table3_sample_diversity" in names:
        assert (out / "table3_sample_diversity.csv").read_text().startswith("prompt,method,value [1 - cosine]")
