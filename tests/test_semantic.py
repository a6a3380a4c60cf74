"""notebooks/semantic_diversity.ipynb on a hub pair, at tiny size: CLIP reads the listed attributes, nothing asks for drawings."""

from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
import torch

from dtviz.experiments import study, tables
from dtviz.models.registry import SPECS

from .repos import save_clip
from .test_models_load import bases, lay_out  # noqa: F401

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "semantic_diversity.ipynb"


@pytest.fixture
def tiny_pair(lay_out, lite, tmp_path, monkeypatch):  # noqa: F811
    """The pair "sdxl-dmd" with random weights, few base steps and a stand-in for DreamSim; results are kept in tmp_path."""
    SPECS[lay_out("sdxl-dmd")].settings.update(base_steps=4, batch_size=3, size=(16, 16))
    monkeypatch.setattr(study, "embedder", lambda name: lite)
    monkeypatch.setenv("DTVIZ_STORE", str(tmp_path / "store"))
    return "sdxl-dmd"


@pytest.fixture
def tiny_clip(tmp_path) -> str:
    """A random CLIP that reads letters, long enough for the listed phrases."""
    torch.manual_seed(0)
    folder = tmp_path / "clip"
    save_clip(folder, length=77)
    return f"clip:{folder}"


def test_clip_reads_a_hub_pairs_attributes(tiny_pair, tiny_clip, tmp_path, capsys):
    matplotlib.use("Agg")
    out = tmp_path / "figures"
    given = {"pair": tiny_pair, "n_seeds": 3, "n_prompts": 2, "clip": tiny_clip, "out": str(out)}
    names = {"__name__": "notebook"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, NOTEBOOK.name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= given
    read = tables.load(out / "semantic_diversity_attributes.csv")
    listed = tables.load(NOTEBOOK.parents[1] / "data" / "prompts" / "attributes.csv")
    for prompt, rows in read.groupby("prompt"):
        expected = listed[listed["prompt"] == prompt].groupby("attribute")["value"].nunique()
        assert rows.groupby("attribute")["values"].first().to_dict() == expected.to_dict()
    assert (read["told"] >= 1).all()
    assert (read["told"] <= read["values"] * 1.5).all()  # with its correction for few images
    measured = tables.load(out / "semantic_diversity.csv")
    assert set(measured.columns) == {"prompt", "method", "distance", "vendi", "told"}
    means = read.groupby(["prompt", "method"])["told"].mean()
    np.testing.assert_allclose(measured.set_index(["prompt", "method"])["told"].loc[means.index], means)
    assert "cannot be shown with 2 prompts" in capsys.readouterr().out
