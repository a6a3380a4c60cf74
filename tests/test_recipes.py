"""The training recipes: they import, a LoRA is the change of weights, and a killed stage resumes."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from .conftest import tiny_unet

RECIPES = Path(__file__).parents[1] / "data" / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    """Import a recipe's module as its own scripts do, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if str(RECIPES) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_every_recipe_imports(recipe):
    assert all(recipe(path.stem).__doc__ for path in RECIPES.glob("*.py"))


def test_a_lora_of_full_rank_is_the_whole_change_of_every_matrix(recipe):
    base, distilled = tiny_unet(1), tiny_unet(2)
    state, kept = recipe("lora").extract(base, distilled, rank=1000)
    before, changed, total = dict(base.named_parameters()), 0.0, 0.0
    for name, after in distilled.named_parameters():
        change, layer = (after - before[name]).detach(), name.removesuffix(".weight")
        total += float(change.square().sum())
        if change.ndim > 1:
            up, down = (state.pop(f"{layer}.lora_{part}.weight").flatten(1) for part in "BA")
            torch.testing.assert_close((up @ down).view_as(change), change, atol=1e-4, rtol=1e-3)
            changed += float(change.square().sum())
    assert not state
    assert kept == pytest.approx(changed / total, abs=1e-4)


def test_a_stage_goes_on_from_its_checkpoint(recipe, tmp_path, monkeypatch):
    common = recipe("common")
    monkeypatch.setattr(common, "WORK", tmp_path)

    def run(until: int, *, killed: bool = False) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 3)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        checkpoint = common.Checkpoint("stage", every=2, layer=layer, optimizer=optimizer)
        for step in range(checkpoint.resume(), until):
            layer(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            checkpoint.save(step + 1, last=step + 1 == until and not killed)
        return layer.weight.detach()

    undisturbed = run(10)
    (tmp_path / "stage.pt").unlink()
    run(7, killed=True)  # the seventh step is lost
    assert torch.equal(run(10), undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["stage.pt"]
