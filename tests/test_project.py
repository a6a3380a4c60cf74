"""The project's own promises: one set of pins, no registry addresses, two commands, imports that go one way."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(ROOT.glob("dtviz/*.py"))
ANYTHING = None

# DESIGN.md's table: module -> the modules of dtviz that it may import.
MAY_IMPORT: dict[str, set[str] | None] = {
    "trace": {"outside", "store"},
    "rules": set(),
    "schedule": {"rules"},
    "guidance": set(),
    "recorder": {"guidance", "rules", "schedule"},
    "own_class": set(),
    "capture": {"own_class", "recorder", "rules", "trace"},
    "errors": set(),
    "outside": set(),
    "batches": set(),
    "networks": set(),
    "fit": {"rules"},
    "families": set(),
    "spec": set(),
    "hub": {"spec"},
    "specs": {"hub", "spec"},
    "available": {"errors", "families", "hub", "spec", "specs"},
    "weights": {"available", "hub", "outside", "spec", "specs"},
    "memory": {"available", "families", "spec", "specs"},
    "loading": {"available", "errors", "families", "outside", "spec", "specs", "weights"},
    "pairs": {"available", "fit", "hub", "loading", "memory", "spec", "specs"},
    "steps": set(),
    "plan": {"fit", "pairs", "rules", "schedule", "steps"},
    "adaptive": set(),
    "thresholds": set(),
    "relay": {"adaptive", "plan", "recorder", "rules", "schedule"},
    "switch": {"networks"},
    "rivals": set(),
    "hybrid": {"fit", "networks", "own_class", "rules", "switch"},
    "arguments": {"adaptive", "controls", "networks", "pairs", "plan"},
    "generate": {
        "adaptive",
        "arguments",
        "attach",
        "batches",
        "controls",
        "networks",
        "pairs",
        "plan",
        "recorder",
        "relay",
        "rivals",
        "schedule",
        "steps",
        "switch",
        "trace",
    },
    "sequential": {"loading", "networks", "pairs", "plan", "recorder", "relay", "spec", "steps", "switch", "trace"},
    "decode": {"batches", "trace", "pairs"},
    "timing": {"decode", "generate", "pairs"},
    "drawings": {"outside"},
    "judges": {"errors", "mind", "outside", "pairs"},
    "mind": set(),
    "occlusion": set(),
    "inception": {"outside"},
    "backbones": {"inception", "outside"},
    "embedder_specs": {"backbones"},
    "embed": {"backbones", "batches", "embedder_specs", "errors", "outside"},
    "curves": set(),
    "estimate": set(),
    "diversity": {"estimate"},
    "compare": {"estimate"},
    "attributes": set(),
    "claims": {"diversity"},
    "quality": {"estimate"},
    "controls": {"store"},
    "control_formats": {"controls", "networks"},
    "control_files": {"available", "control_formats", "controls", "errors", "outside"},
    "attached": {"controls"},
    "example": set(),
    "attach": {"attached", "controls", "example", "networks", "pairs"},
    "conditions": {"networks", "pairs", "plan", "steps"},
    "optimise": {"store"},
    "tuned": {"attached", "controls", "networks", "pairs"},
    "sliders": {"conditions", "controls", "networks", "optimise", "pairs", "plan", "tuned"},
    "customise": {"conditions", "controls", "decode", "generate", "optimise", "pairs", "tuned"},
    "effect": {"diversity", "estimate"},
    "cases": {"control_files", "controls", "embed", "judges", "specs", "study", "outside"},
    "control": {"attach", "attached", "control_files", "controls", "customise", "effect", "sliders"},
    "store": set(),
    "prompts": set(),
    "dataset": {"decode", "generate", "outside", "pairs", "prompts", "store"},
    "score": {"dataset", "embed", "estimate", "outside", "prompts", "quality", "store"},
    "table": {"outside", "store"},
    "golden": set(),
    "plot_style": set(),
    "plot_curves": {"plot_style"},
    "plot_grid": {"plot_style"},
    "plot_tables": {"plot_style"},
    "plot": {"plot_curves", "plot_grid", "plot_style", "plot_tables"},
    "plot_mind": {"plot_style"},
    "plot_control": {"plot_style"},
    "profiles": set(),
    "study": {
        "adaptive",
        "decode",
        "diversity",
        "drawings",
        "embed",
        "generate",
        "pairs",
        "profiles",
        "store",
        "table",
        "trace",
    },
    "doctor": {"available", "embed", "memory", "spec", "specs"},
    "notebooks": set(),
    "explorer_state": set(),
    "explorer_seen": {"curves", "decode", "diversity", "explorer_state", "trace"},
    "explorer_chart": set(),
    "plot_explorer": {"explorer_chart", "plot_style"},
    "explorer_session": {
        "decode",
        "embed",
        "errors",
        "explorer_chart",
        "explorer_seen",
        "explorer_state",
        "generate",
        "pairs",
        "plot_explorer",
        "trace",
    },
    "explorer": ANYTHING,
    "figures": ANYTHING,
    "__main__": ANYTHING,
    "__init__": ANYTHING,
}
NUMERIC = (
    "attributes",
    "claims",
    "compare",
    "curves",
    "diversity",
    "effect",
    "estimate",
    "mind",
    "occlusion",
    "quality",
    "thresholds",
)


# Pins


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_requirements_are_exact_sorted_and_said_once():
    blocks = (ROOT / "requirements.txt").read_text().split("\n\n")
    names = []
    for block in blocks:
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), lines
        assert lines == sorted(lines)
        names += [line.split("==")[0] for line in lines]
    assert len(names) == len(set(names)) == len(pins())


def test_environment_yml_agrees_with_the_pins():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [pip] = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert pip[-1] == "--editable ."
    assert pip[:-1] == [f"{name}=={version}" for name, version in pins().items()]
    [python] = [entry for entry in entries if isinstance(entry, str) and entry.startswith("python=")]
    assert python == "python=3.11"


def test_what_is_installed_is_what_is_pinned():
    # torch may add the build it was made for: 2.15.0+cpu
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in pins()}
    assert installed == pins()


def test_package_takes_its_dependencies_from_the_pins():
    required = {line.split(";")[0].strip() for line in importlib.metadata.requires("dtviz") or []}
    assert required == {f"{name}=={version}" for name, version in pins().items()}


def test_everything_imported_is_pinned():
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pins()}
    homes = importlib.metadata.packages_distributions()
    sources = [*MODULES, *ROOT.glob("tests/*.py"), *ROOT.glob("data/recipes/*.py")]
    local = {path.stem for path in sources} | {"dtviz", "tests"}
    unpinned = {}
    for path in sources:
        tops = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))} - local - sys.stdlib_module_names
        for top in tops:
            names = {re.sub(r"[-_.]+", "-", name).lower() for name in homes.get(top, [])}
            if not names & normal:
                unpinned.setdefault(top, []).append(str(path.relative_to(ROOT)))
    assert not unpinned


@pytest.mark.parametrize("name", ["requirements.txt", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_registry_addresses(name):
    addresses = r"\w+://|index-url|find-links|trusted-host|git\+|pypi\.|anaconda\.org"
    assert not re.findall(addresses, (ROOT / name).read_text())


# Commands


def test_readme_commands_are_makefile_targets():
    said = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code(ROOT / "README.md"))))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"figures", "test"} <= said
    assert said <= targets


def code(path: Path) -> list[str]:
    """What a Markdown file shows as code: fenced blocks and inline spans."""
    text = path.read_text()
    return re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)


def test_ci_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "\nmake test\n" in script.read_text()


# Imports


class _WithoutHints(ast.NodeTransformer):
    """Drops the body of `if TYPE_CHECKING:`, which never runs."""

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = [ast.Pass()]
        return self.generic_visit(node)


def imported(tree: ast.Module) -> set[str]:
    """Dotted names that a module of dtviz imports, anywhere in it; `from dtviz import trace` is dtviz.trace."""
    names = set()
    for node in ast.walk(_WithoutHints().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["dtviz" if node.level else "", node.module]))
            names |= {f"dtviz.{alias.name}" for alias in node.names} if module == "dtviz" else {module}
    return names


def inside(names: set[str]) -> set[str]:
    """Of these names, the modules of dtviz; `import dtviz` itself is "__init__"."""
    return {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "dtviz"}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import dtviz", {"__init__"}),
        ("import dtviz.trace as t", {"trace"}),
        ("from dtviz import trace", {"trace"}),
        ("from dtviz.trace import Trace", {"trace"}),
        ("from .trace import Trace", {"trace"}),
        ("from . import trace", {"trace"}),
        ("def f():\n from dtviz.trace import Trace", {"trace"}),
        ("if TYPE_CHECKING:\n from dtviz.trace import Trace\nelse:\n from dtviz import curves", {"curves"}),
        ("import trace, numpy.random", set()),
    ],
)
def test_imports_are_seen_however_they_are_written(source, modules):
    assert inside(imported(ast.parse(source))) == modules


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_one_way(path):
    assert path.stem in MAY_IMPORT, f"{path.name} is not in DESIGN.md's table"
    names = imported(ast.parse(path.read_text()))
    if MAY_IMPORT[path.stem] is not ANYTHING:
        assert inside(names) <= MAY_IMPORT[path.stem]
    tops = {name.split(".")[0] for name in names}
    if path.stem in NUMERIC:
        assert not tops & {"torch", "diffusers", "transformers"}
    if path.stem != "explorer":
        assert "ipywidgets" not in tops


def test_import_dtviz_has_no_side_effects(tmp_path):
    late = ["ipywidgets", "ipympl", "papermill", "dreamsim", "nbformat", "IPython", "sklearn"]
    script = f"import sys, dtviz; print([name for name in {late!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
    assert not list(tmp_path.iterdir())
