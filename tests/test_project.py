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
MODULES = sorted(ROOT.glob("dtviz/**/*.py"))
ANYTHING = None


def name_of(path: Path) -> str:
    """What MAY_IMPORT calls a module: "trace", "plot.grid", "plot" for a package's own, "__init__" for dtviz's."""
    parts = path.relative_to(ROOT / "dtviz").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


# DESIGN.md's table: module -> the modules of dtviz that it may import.
MAY_IMPORT: dict[str, set[str] | None] = {
    "places": set(),
    "quiet": set(),
    "prefork": set(),
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
    "models.families": set(),
    "models.spec": set(),
    "models.hub": {"models.spec"},
    "models.specs": {"models.hub", "models.spec"},
    "models.available": {"errors", "models.families", "models.hub", "models.spec", "models.specs", "places"},
    "models.weights": {"models.available", "models.hub", "outside", "models.spec", "models.specs"},
    "memory": {"models.available", "models.families", "models.spec", "models.specs"},
    "models.loading": {
        "models.available",
        "errors",
        "models.families",
        "outside",
        "models.spec",
        "models.specs",
        "models.weights",
        "quiet",
    },
    "pairs": {"models.available", "fit", "models.hub", "models.loading", "memory", "models.spec", "models.specs"},
    "sampling.steps": set(),
    "sampling.plan": {"fit", "pairs", "rules", "schedule", "sampling.steps"},
    "adaptive": set(),
    "thresholds": set(),
    "sampling.relay": {"adaptive", "sampling.plan", "recorder", "rules", "schedule"},
    "sampling.switch": {"networks"},
    "sampling.rivals": set(),
    "hybrid": {"fit", "networks", "own_class", "rules", "sampling.switch"},
    "sampling.arguments": {"adaptive", "controls", "networks", "pairs", "sampling.plan"},
    "generate": {
        "adaptive",
        "sampling.arguments",
        "attach",
        "batches",
        "controls",
        "pairs",
        "sampling.plan",
        "recorder",
        "sampling.relay",
        "sampling.rivals",
        "schedule",
        "sampling.steps",
        "sampling.switch",
        "trace",
    },
    "sequential": {
        "models.loading",
        "networks",
        "pairs",
        "sampling.plan",
        "recorder",
        "sampling.relay",
        "models.spec",
        "sampling.steps",
        "sampling.switch",
        "trace",
    },
    "decode": {"batches", "trace"},
    "timing": {"decode", "generate", "pairs"},
    "drawings": {"outside", "places"},
    "judges": {"errors", "mind", "outside", "pairs"},
    "mind": set(),
    "occlusion": set(),
    "embedders.inception": {"outside"},
    "embedders.backbones": {"embedders.inception", "outside", "quiet"},
    "embedders.specs": {"embedders.backbones", "places"},
    "embed": {"embedders.backbones", "batches", "embedders.specs", "errors", "outside"},
    "curves": set(),
    "estimate": set(),
    "diversity": {"estimate"},
    "compare": {"estimate"},
    "attributes": set(),
    "claims": {"diversity"},
    "quality": {"estimate"},
    "controls": {"store"},
    "control.formats": {"controls", "networks"},
    "control.files": {"models.available", "control.formats", "controls", "errors", "outside", "places"},
    "attached": {"controls"},
    "example": set(),
    "attach": {"attached", "controls", "example", "networks", "pairs"},
    "control.conditions": {"networks", "pairs", "sampling.plan", "sampling.steps"},
    "control.optimise": {"outside", "store"},
    "control.tuned": {"attached", "controls", "networks", "pairs"},
    "control.sliders": {
        "control.conditions",
        "controls",
        "networks",
        "control.optimise",
        "pairs",
        "sampling.plan",
        "control.tuned",
    },
    "control.customise": {
        "control.conditions",
        "controls",
        "decode",
        "generate",
        "control.optimise",
        "pairs",
        "control.tuned",
    },
    "control.effects": {"diversity", "estimate"},
    "control.cases": {"control.files", "controls", "embed", "judges", "models.specs", "study", "outside"},
    "control": {
        "attach",
        "attached",
        "control.files",
        "controls",
        "control.customise",
        "control.effects",
        "control.sliders",
    },
    "store": {"places"},
    "prompts": set(),
    "dataset": {"decode", "generate", "outside", "pairs", "prompts", "store"},
    "score": {"dataset", "embed", "estimate", "outside", "prompts", "quality", "store"},
    "table": {"outside", "store", "places"},
    "golden": set(),
    "plot.look": set(),
    "plot.curves": {"plot.look"},
    "plot.grid": {"plot.look"},
    "plot.tables": {"plot.look"},
    "plot": {"plot.curves", "plot.grid", "plot.look", "plot.tables"},
    "plot.mind": {"plot.look"},
    "plot.control": {"plot.look"},
    "profiles": set(),
    "study": {
        "timing",
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
    "doctor": {"models.available", "embed", "memory", "models.spec", "models.specs"},
    "notebooks": {"places"},
    "explorer.state": set(),
    "explorer.seen": {"curves", "decode", "diversity", "explorer.state", "trace"},
    "explorer.chart": set(),
    "explorer.picture": {"explorer.chart", "plot.look"},
    "explorer.session": {
        "decode",
        "embed",
        "errors",
        "explorer.chart",
        "explorer.seen",
        "explorer.state",
        "generate",
        "pairs",
        "explorer.picture",
        "trace",
    },
    "explorer": {"explorer.widgets"},
    "explorer.panel": {"explorer.chart", "explorer.picture", "explorer.state", "pairs"},
    "explorer.widgets": ANYTHING,
    "models": set(),
    "embedders": set(),
    "sampling": set(),
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
    "control.effects",
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
        tops = {name.split(".")[0] for name in imports_of(path)} - local - sys.stdlib_module_names
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


def imported(tree: ast.Module, package: str = "dtviz") -> set[str]:
    """Dotted names that a module of this package imports, anywhere in it; `from dtviz import trace` is dtviz.trace."""
    names = set()
    modules = {f"dtviz.{name_of(path)}" for path in MODULES}
    for node in ast.walk(_WithoutHints().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*home, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{module}.{alias.name}"
                names.add(name if module == "dtviz" or name in modules else module)
    return names


def imports_of(path: Path) -> set[str]:
    """What a file imports."""
    return imported(ast.parse(path.read_text()), ".".join(path.relative_to(ROOT).parts[:-1]))


def inside(names: set[str]) -> set[str]:
    """Of these names, the modules of dtviz; `import dtviz` itself is "__init__"."""
    return {name.partition(".")[2] or "__init__" for name in names if name.split(".")[0] == "dtviz"}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import dtviz", {"__init__"}),
        ("import dtviz.trace as t", {"trace"}),
        ("from dtviz import trace", {"trace"}),
        ("from dtviz.trace import Trace", {"trace"}),
        ("from .trace import Trace", {"trace"}),
        ("from . import trace", {"trace"}),
        ("from dtviz.plot import grid, style", {"plot", "plot.grid"}),
        ("def f():\n from dtviz.trace import Trace", {"trace"}),
        ("if TYPE_CHECKING:\n from dtviz.trace import Trace\nelse:\n from dtviz import curves", {"curves"}),
        ("import trace, numpy.random", set()),
    ],
)
def test_imports_are_seen_however_they_are_written(source, modules):
    assert inside(imported(ast.parse(source))) == modules


def test_imports_from_within_a_package_are_seen():
    source = (
        "from . import look\nfrom .grid import plot_image_grid\nfrom .. import table\nfrom ..models.spec import Spec"
    )
    assert inside(imported(ast.parse(source), "dtviz.plot")) == {"plot.look", "plot.grid", "table", "models.spec"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    name = name_of(path)
    assert name in MAY_IMPORT, f"{name} is not in DESIGN.md's table"
    names = imports_of(path)
    if MAY_IMPORT[name] is not ANYTHING:
        assert inside(names) <= MAY_IMPORT[name]
    tops = {name.split(".")[0] for name in names}
    if name in NUMERIC:
        assert not tops & {"torch", "diffusers", "transformers"}
    if name not in ("explorer.panel", "explorer.widgets"):
        assert "ipywidgets" not in tops


def test_import_dtviz_has_no_side_effects(tmp_path):
    late = ["ipywidgets", "ipympl", "papermill", "dreamsim", "nbformat", "IPython", "sklearn"]
    script = f"import sys, dtviz; print([name for name in {late!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
    assert not list(tmp_path.iterdir())
