"""Every notebook, by nbval, at small settings and on the shipped models; and what a notebook has to look like."""

import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

import dtviz
from dtviz import figures

FOLDER = Path(__file__).parents[1] / "notebooks"
INDEX = FOLDER / "index.ipynb"  # leads through the others, and runs nothing
NOTEBOOKS = sorted(set(FOLDER.glob("*.ipynb")) - {INDEX})
SMALL = {"n_seeds": 3, "n_prompts": 2}
ONE = ("control_beyond", "control_sweep")  # their intervals are over seeds, and one prompt will do
CONTROLS = ("age", "smile", "openmoji", *(f"emoji-{student}/age" for student in ("dmd", "lcm", "turbo", "lightning")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    """Title and claim first, typed parameters with help, no function or class, no output kept."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert "paper's claim" in notebook.cells[0].source
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    for line in parameters[0].source.splitlines():
        assert ": " in line.split("=")[0], line
        assert "  # " in line, line
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    assert not any(cell.outputs for cell in code)


def test_the_index_leads_to_every_notebook():
    cells = nbformat.read(INDEX, as_version=4).cells
    assert {cell.cell_type for cell in cells} == {"markdown"}
    linked = re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in cells))
    assert {path.name for path in NOTEBOOKS} <= set(linked)
    assert [link for link in linked if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_unavailable_pair_stops_a_notebook_at_once(path, monkeypatch, tmp_path):
    """In the first cell that does anything, naming what is missing; the same cells that users run, in this process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {"pair": "sdxl-dmd", "profile": "paper", "out": str(tmp_path / "out")}
    scope = {"__name__": path.stem}
    exec(compile(cells[0].source, path.name, "exec"), scope)
    assert set(names) <= set(scope)
    with pytest.raises(dtviz.Unavailable, match=r"'sdxl-dmd' is not on this machine.*missing:.*xl-base.*tianweiy/DMD2"):
        exec(compile(cells[1].source, path.name, "exec"), scope | names)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One store for all notebooks, also of several test processes: what one made the others read."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "store"


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """`python -m` with what notebooks begin with imported already, and the environment in which their kernels are that too."""
    few = tmp_path_factory.mktemp("controls")  # of each kind, of those that are shipped
    for name in CONTROLS:
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        (few / f"{name}.safetensors").symlink_to(FOLDER.parent / "data" / "controls" / f"{name}.safetensors")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DTVIZ_CONTROLS": str(few)}
    with figures.forks(["pytest", *figures.IMPORTS], environment=environment) as found:
        yield found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_under_nbval(path, store, python, tmp_path):
    notebook, out = load_notebook_node(str(path)), tmp_path / "figures"
    names = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    small = SMALL | ({"n_prompts": 1} if path.stem in ONE else {})
    values = {name: value for name, value in small.items() if f"{name}:" in names} | {"out": str(out)}
    nbformat.write(parameterize_notebook(notebook, values), tmp_path / path.name)
    command, environment = python
    options = ["-q", "-p", "no:xdist", "--nbval-lax", "--nbval-cell-timeout=300", "-c", os.devnull]
    done = subprocess.run(
        [*command, "pytest", *options, str(tmp_path / path.name)],
        env=environment | {"DTVIZ_STORE": str(store)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for kind in ("png", "pdf", "json", "csv"):
        assert (out / f"{path.stem}.{kind}").stat().st_size > 100
    if path.stem == "table3_sample_diversity":
        assert (out / f"{path.stem}.csv").read_text().startswith("prompt,method,value [1 - cosine]")
