"""The documentation: docstrings with examples, an API reference that builds, links, and words."""

import doctest
import importlib
import inspect
import re

import pdoc
import pytest

import dtviz
from dtviz.files import ROOT

PUBLIC = sorted(dtviz._PUBLIC)
EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.glob("dtviz/**/*.py"))
    if ">>> " in path.read_text()
]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name):
    public = getattr(dtviz, name)
    doc = inspect.getdoc(public) or ""
    assert len(doc) > 80
    assert re.search(rf"\bdtviz\.{name}\b|>>> .*\b{name}\b", doc), doc


def test_the_api_reference_builds_without_a_warning(tmp_path):
    pdoc.render.configure(docformat="google", show_source=False)  # colouring the source takes most of the time
    pdoc.pdoc("dtviz", output_directory=tmp_path)  # pytest turns warnings into errors
    for module in ROOT.glob("dtviz/**/[a-z]*.py"):
        assert (tmp_path / module.relative_to(ROOT).with_suffix(".html")).stat().st_size > 1000


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_give_what_they_say(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"(?:\]\(|src=\"|href=\")([^)#:\s\"]+)(?:#[^)\"]*)?[)\"]", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_citation_and_the_changelog_name_this_version():
    assert f"version: {dtviz.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {dtviz.__version__}" in (ROOT / "CHANGELOG.md").read_text()
