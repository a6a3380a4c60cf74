"""The documentation: every public name explained with an example, an API reference that builds, links that lead somewhere."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dtviz

from .bench import table as bench

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [name for name in dir(dtviz) if name in vars(type(dtviz)) and not name.startswith("_")]
EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.glob("dtviz/**/*.py"))
    if ">>> " in path.read_text()
]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_public_names_are_those_of_the_package():
    assert {"capture", "decode", "explore", "generate", "load", "Pair", "Trace"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name):
    thing = getattr(dtviz, name)
    doc = inspect.getdoc(thing) or ""
    assert len(doc) > 80
    code = [line for line in doc.splitlines() if line.startswith(("    ", ">>> "))]
    assert any(re.search(rf"\b({name}|{thing.__name__})\b[.(: ]", line) for line in code), doc


def test_the_api_reference_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-W", "error::UserWarning", "-m", "pdoc", "dtviz", "--docformat", "google"]
    done = subprocess.run([*command, "-o", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    for module in ROOT.glob("dtviz/**/[a-z]*.py"):
        page = tmp_path / module.relative_to(ROOT).with_suffix(".html")
        assert page.stat().st_size > 1000


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_give_what_they_say(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_citation_and_the_changelog_name_this_version():
    assert f"version: {dtviz.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {dtviz.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_table_of_costs_is_what_was_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    start, end = bench.MARKS
    shown = (ROOT / "README.md").read_text().partition(start)[2].partition(end)[0].splitlines()
    assert shown == bench.ratios()
    assert len(shown) > 10
