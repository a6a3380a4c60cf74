"""The training recipes: they import, a LoRA is the change of weights, and a killed stage resumes."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dtviz.metrics.factors import named_factors, read_factors

from .tiny import tiny_unet

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
    assert not state and kept == pytest.approx(changed / total, abs=1e-4)


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


def test_a_temperature_undoes_a_scaling_of_calibrated_scores(recipe):
    rng = np.random.default_rng(0)
    posteriors = rng.dirichlet([0.5] * 4, size=20_000)
    truth = (rng.uniform(size=(20_000, 1)) > posteriors.cumsum(axis=1)).sum(axis=1)
    temperature = recipe("noisy_x0_classifier").temperature(3 * np.log(posteriors + 1e-12), truth)
    # Maximum likelihood of one parameter from 20,000 samples; its standard error here is below .01.
    assert temperature == pytest.approx(3, rel=0.03)


def test_scores_of_unseen_folds_do_not_know_the_labels(recipe):
    """Labels without any relation to the features are guessed, however well they could be learnt by heart."""
    module, rng = recipe("noisy_x0_classifier"), np.random.default_rng(0)
    features, label, fold = rng.normal(size=(2, 300, 30)), rng.permutation(np.arange(300) % 3), np.arange(300) % 5

    def accuracy() -> float:
        models = [module.fit(features[:, fold != part], label[fold != part], 1.0) for part in range(5)]
        scores = module.unseen_scores(models, features, fold)
        np.testing.assert_allclose(scores[1, 7], models[fold[7]].decision_function(features[1, [7]])[0], rtol=1e-9)
        return float((scores.argmax(axis=-1) == label).mean())

    assert accuracy() == pytest.approx(1 / 3, abs=0.08)  # three standard errors of 300
    features[..., 0] = 10 * label
    assert accuracy() > 0.99


def test_the_least_shown_lets_through_as_many_false_alarms_as_allowed(recipe):
    rng = np.random.default_rng(0)
    posteriors, final = rng.uniform(0, 0.9, size=(5, 200, 3)), np.tile([1.0, 0.0, 0.0], (200, 1))
    reached = posteriors[..., 1:].max(axis=(0, 2))
    for share, allowed in ((0.1, 20), (0.05, 10), (0.0, 0)):
        shown = recipe("noisy_x0_classifier").least_shown(posteriors, final, 0.1, share)
        assert (reached >= shown).sum() <= allowed < (reached >= shown - 0.02).sum()


def test_a_classifier_that_draws_the_truth_from_its_posteriors_is_calibrated(recipe):
    calibration, rng = recipe("noisy_x0_classifier").calibration, np.random.default_rng(0)
    posteriors = rng.dirichlet([0.3] * 5, size=20_000)
    truth = (rng.uniform(size=(20_000, 1)) > posteriors.cumsum(axis=1)).sum(axis=1)
    result = calibration(posteriors, truth)
    # The standard error of a share of 20,000 is at most .0035; ten bins' mean absolute error of 2,000 each about .01.
    assert result.accuracy == pytest.approx(result.confidence, abs=0.014) and result.error < 0.02
    sure = np.eye(5)[posteriors.argmax(axis=1)]  # the same first choices, all of them certain
    assert calibration(sure, truth).error == pytest.approx(1 - result.accuracy, abs=1e-12)


def test_factors_and_captions_of_painted_pictures_are_read_back(recipe):
    """A disc, on each background, at each size and place. Only hues at the rim of two colours may be mistaken."""
    world, n = recipe("world"), 500
    painter, side = object.__new__(world.World), torch.linspace(-1, 1, 96)
    disc = ((side**2 + side[:, None] ** 2) < 0.9).to(torch.uint8) * 255
    painter.rgba, painter.concept = torch.stack([disc * 0, disc * 0, disc * 0, disc])[None], np.array(["rocket"])
    factors, rows = (
        world.sample_factors(n, generator=torch.Generator().manual_seed(1)),
        torch.zeros(n, dtype=torch.long),
    )
    for name, index in read_factors(painter.paint(rows, factors) / 2 + 0.5).items():
        assert (index == factors[name].numpy()).mean() > (0.95 if name == "colour" else 0.999)
    images, texts, fits = recipe("clip").Captions(painter, rows[:1], n).draw()
    read = read_factors(images / 2 + 0.5)
    for text, fit in zip(texts, fits.T.bool().numpy(), strict=True):
        true = np.all([fit | True, *(read[name] == index for name, index in named_factors(text).items())], axis=0)
        assert (true == fit).mean() > 0.95, text
