"""The pairs that have a name: their list, licences, commits and documentation, and the cards of the shipped models."""

import dtviz
from dtviz.files import ROOT, data
from dtviz.models.registry import REPOS, SPECS


def test_every_pair_is_listed_with_its_kind_and_whether_it_is_here(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    pairs = dtviz.pairs()
    assert list(pairs.index) == list(SPECS)
    assert list(pairs.columns) == ["base", "distilled", "licence", "kind", "available"]
    assert (pairs["available"] == (pairs["kind"] == "embedded")).all()
    assert pairs.loc["sdxl-dmd", "licence"] == "OpenRAIL++ (base), CC-BY-NC-4.0 (distilled)"
    assert (pairs["licence"] != "").all()


def test_revisions_are_commits_and_every_repository_is_used():
    assert {repo for spec in SPECS.values() if not spec.embedded for repo in (spec.base, spec.distilled)} == set(REPOS)
    assert all(len(revision) == 40 and int(revision, 16) for _, revision, _ in REPOS.values())


def test_the_documentation_has_every_hub_pair_and_its_settings():
    lines = (ROOT / "docs" / "pairs.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `") and "Scheduler" in line}
    for name, spec in SPECS.items():
        if not spec.embedded:
            settings = {"steps": 4} | spec.settings | spec.scheduler_settings
            words = [f"{key} {value}" for key, value in settings.items() if key not in ("batch_size", "handover")]
            words += [spec.base, spec.distilled, spec.file, spec.scheduler, spec.licence]
            assert [word for word in words if word not in rows[name]] == []


def test_the_shipped_models_are_small_safe_and_have_cards():
    files = [path for path in data("models").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64 * 2**20
    assert max(path.stat().st_size for path in files) <= 16 * 2**20
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
    overview = (data("models") / "README.md").read_text()
    names = {spec.distilled for spec in SPECS.values() if spec.embedded}
    for name in ("emoji-base", "emoji-clip", "emoji-judges", *sorted(names)):
        assert "licen" in (data("models") / name / "README.md").read_text().lower()
        assert name in overview
