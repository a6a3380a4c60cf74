"""The project's own rules: pins in one place, no registry addresses, two commands, layers, size."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(ROOT.glob("dtviz/**/*.py"))


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_requirements_are_exact_sorted_and_unique():
    names = []
    for block in (ROOT / "requirements.txt").read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), lines
        assert lines == sorted(lines)
        names += [line.split("==")[0] for line in lines]
    assert len(names) == len(set(names)) == len(pins())


def test_environment_yml_agrees_with_the_pins():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [pip] = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert pip == [*(f"{name}=={version}" for name, version in pins().items()), "--editable ."]
    assert [entry for entry in entries if isinstance(entry, str) and entry.startswith("python=")] == ["python=3.11"]


def test_installed_versions_are_the_pins():
    # torch may add its build: 2.15.0+cpu
    assert {name: importlib.metadata.version(name).split("+")[0] for name in pins()} == pins()


def test_the_package_takes_its_dependencies_from_the_pins():
    required = {line.split(";")[0].strip() for line in importlib.metadata.requires("dtviz") or []}
    assert required == {f"{name}=={version}" for name, version in pins().items()}


def test_everything_imported_is_pinned():
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pins()}
    distributions = importlib.metadata.packages_distributions()
    sources = [*MODULES, *ROOT.glob("tests/*.py"), *ROOT.glob("data/recipes/*.py")]
    local = {path.stem for path in sources} | {"dtviz", "tests"}
    for path in sources:
        for top in imported(path) - local - sys.stdlib_module_names:
            names = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions.get(top, [])}
            assert names & normal, f"{path} imports {top}, which requirements.txt does not pin"


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, but for relative imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("name", ["requirements.txt", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_registry_addresses(name):
    addresses = r"\w+://|index-url|find-links|trusted-host|git\+|pypi\.|anaconda\.org"
    assert not re.findall(addresses, (ROOT / name).read_text())


def test_readme_commands_are_makefile_targets():
    blocks = re.findall(r"```.*?```|`[^`\n]+`", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    commands = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks)))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"figures", "test"} <= commands <= targets


def test_ci_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "\nmake test\n" in script.read_text()


def test_imports_go_down_the_layers(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_the_size_does_not_grow():
    """The design asks for 7,500 lines of library and 9,500 of tests. Lower these bounds as the code shrinks."""
    modules = [path for path in MODULES if path.name != "__init__.py" or path.read_text()]
    assert len(modules) <= 45
    assert len(list((ROOT / "dtviz").glob("*.py"))) <= 5
    assert lines(MODULES) <= 9000
    assert lines(ROOT.glob("tests/**/*.py")) <= 10300
    assert len((ROOT / "README.md").read_text().split()) <= 900


def lines(paths) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_import_dtviz_has_no_side_effects(tmp_path):
    """It imports no heavy package, prints nothing and writes nothing."""
    code = "import sys, dtviz; print(sorted({'torch', 'diffusers', 'pandas', 'matplotlib'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr, list(tmp_path.iterdir())) == ("[]\n", "", [])
