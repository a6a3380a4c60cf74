"""The runner, on notebooks of two cells made here: no models, but the real papermill and the real kernel."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from dtviz import figures

PARAMETERS = 'pair: str = "emoji-dmd"\nprofile: str = "quick"\nn_seeds: int = 0  # 0: the default\nout: str = ""'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for notebooks that need no models, with every pair taken for available."""
    monkeypatch.setattr(figures, "check", lambda name: None)
    monkeypatch.setattr(figures, "IMPORTS", ("papermill.cli", "ipykernel.kernelapp"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def write(folder: Path, name: str, source: str, *, parameters: str = PARAMETERS, tags=("parameters",)) -> None:
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)}),
        nbformat.v4.new_code_cell(source),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")


def printed(path: Path) -> str:
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dtviz", *arguments],
        cwd=figures.ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# Running


def test_parameters_reach_the_notebook_and_the_result_lies_in_out(folder, tmp_path):
    write(folder, "fig5_curve", "import os; print(pair, profile, n_seeds + 1, learning_rate * 2, out == os.getcwd())",
          parameters=PARAMETERS + "\nlearning_rate: float = 1.0")  # fmt: skip
    # 1e-05 is the float that YAML reads as a string when it is written the way JSON writes it
    paths = figures.run(
        ["fig5"], profile="full", out=tmp_path / "out", folder=folder, parameters={"n_seeds": 3, "learning_rate": 1e-05}
    )
    assert paths == [tmp_path / "out" / "fig5_curve.ipynb"]
    assert printed(paths[0]).strip() == "emoji-dmd full 4 2e-05 False"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fig5_curve.ipynb"]


def test_kernel_is_this_interpreter_even_beside_a_users_python3_kernel(folder, tmp_path, monkeypatch):
    other = tmp_path / "user" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "user"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write(folder, "fig5_curve", "import os, sys; print(sys.executable); print(os.getcwd())")
    [path] = figures.run(out=tmp_path / "out", folder=folder)
    assert printed(path).split() == [sys.executable, str(figures.ROOT)]


def test_failure_keeps_the_previous_result_and_lets_the_others_run(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "fig4_grid.ipynb").write_text("from an earlier run")
    write(folder, "fig4_grid", "raise RuntimeError('no\\nluck')")
    write(folder, "fig5_curve", "print('second')")
    with pytest.raises(
        figures.NotebookError, match=r"1 of 2 .*\nfig4_grid, cell In \[3\]: RuntimeError: no luck \(see"
    ):
        figures.run(out=out, folder=folder, jobs=2)
    assert (out / "fig4_grid.ipynb").read_text() == "from an earlier run"
    assert printed(out / "fig5_curve.ipynb") == "second\n"
    assert sorted(path.name for path in out.iterdir()) == [
        "fig4_grid.failed.ipynb", "fig4_grid.ipynb", "fig5_curve.ipynb"
    ]  # fmt: skip
    said = capsys.readouterr()
    assert "fig5_curve  done in" in said.out
    assert "fig4_grid  FAILED" in said.err

    write(folder, "fig4_grid", "print('mended')")
    figures.run(["fig4"], out=out, folder=folder)
    assert not (out / "fig4_grid.failed.ipynb").exists()


def test_kernel_that_dies_is_a_failure_with_a_reason(folder, tmp_path):
    write(folder, "fig5_curve", "import os; os._exit(1)")
    with pytest.raises(figures.NotebookError, match="fig5_curve, stopped without an error in a cell: .*[Dd]ied"):
        figures.run(out=tmp_path / "out", folder=folder)


def test_jobs_run_together_and_share_the_cores(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(figures, "_cores", lambda: 8)
    meet = (
        "import os, pathlib, time\n"
        "(pathlib.Path(out) / f'{mine}.here').touch()\n"
        "deadline = time.monotonic() + 60\n"
        "while len(list(pathlib.Path(out).glob('*.here'))) < 2 and time.monotonic() < deadline: time.sleep(.05)\n"
        "print(len(list(pathlib.Path(out).glob('*.here'))), os.environ['OMP_NUM_THREADS'])"
    )
    for name in ("fig4_grid", "fig5_curve"):
        write(folder, name, f"mine = {name!r}\n{meet}")
    paths = figures.run(out=tmp_path / "out", folder=folder, jobs=2)
    assert [printed(path).split() for path in paths] == [["2", "4"]] * 2


def test_the_longest_of_last_time_goes_first(folder, tmp_path, capsys):
    for name in ("fig1_short", "fig4_new", "fig5_long"):
        write(
            folder, name, "import time; time.sleep('long' in mine)", parameters=PARAMETERS + f"\nmine: str = {name!r}"
        )
    out = tmp_path / "out"
    figures.run(["fig1", "fig5"], out=out, folder=folder, jobs=1)
    (out / "fig1_short.ipynb").write_text("cut off")  # a copy that tells nothing is no hindrance
    capsys.readouterr()
    figures.run(out=out, folder=folder, jobs=1)
    done = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " done in " in line]
    assert done == ["fig5_long", "fig1_short", "fig4_new"]


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_jobs_follow_the_cores_and_never_exceed_the_notebooks(monkeypatch, cores, workers):
    monkeypatch.setattr(figures, "_cores", lambda: cores)
    assert figures._workers(None, 9, small=True) == workers
    assert figures._workers(None, 9, small=False) == 1  # two may not fit the accelerator
    assert figures._workers(None, 1, small=True) == 1


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a zombie has ended: in a container its new parent may never collect it
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return not status.strip().startswith("Z") and status.strip() != ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupt_ends_the_notebooks_and_leaves_nothing_behind(folder, tmp_path, number):
    write(folder, "fig5_curve", "import os, pathlib, time\n"
          "(pathlib.Path(out) / 'pid').write_text(str(os.getpid()))\ntime.sleep(120)")  # fmt: skip
    script = (
        "import importlib, signal, sys; from dtviz import __main__, figures\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "importlib.import_module('dtviz.pairs').check = lambda name: None\n"
        f"paths = figures.paths; figures.paths = lambda folder: paths({str(folder)!r})\n"
        f"figures.IMPORTS = {figures.IMPORTS!r}\n"
        f"sys.exit(__main__.main(['figures', '--out', {str(tmp_path / 'out')!r}]))"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], cwd=figures.ROOT, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "out" / "pid"
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(pid.read_text())
    runner.send_signal(number)
    assert runner.wait(timeout=30) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    runner.communicate()
    while alive(kernel) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(kernel)
    left = [path.name for path in (tmp_path / "out").iterdir() if number != signal.SIGKILL or path.name[0] != "."]
    assert left == ["pid"]


# Refusing, before any work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["fig55"]}, r"no notebook 'fig55' \(did you mean 'fig5'\?\); there are: fig5_curve, .*plain_note"),
        ({"names": ["table3"]}, "'table3' may be any of table3_a, table3_b"),
        ({"names": ["plain"]}, "plain_note has no cell tagged 'parameters'"),
        ({"names": "fig5"}, r"pass a list, \['fig5'\]"),
        ({"names": []}, "names is empty"),
        ({"parameters": {"n_seed": 3}}, r"fig5_curve has no parameter 'n_seed' \(did you mean 'n_seeds'\?\); it has"),
        ({"parameters": {"n_seeds": "three"}}, r"'n_seeds' of notebook fig5_curve is of type int, got 'three' \(str\)"),
        ({"parameters": {"n_seeds": True}}, r"of type int, got True"),
        ({"parameters": {"pair": "sdxl-dmd"}}, "'pair' is given as pair="),
        ({"profile": "fast"}, "profile='fast' is not one of quick, full, paper"),
        ({"jobs": 0}, "jobs=0 must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_nothing_written(folder, tmp_path, arguments, message):
    for name in ("fig5_curve", "table3_a", "table3_b"):
        write(folder, name, "print(1)")
    write(folder, "plain_note", "print(1)", tags=())
    with pytest.raises(ValueError, match=message):
        figures.run(**arguments, out=tmp_path / "out", folder=folder)
    assert not (tmp_path / "out").exists()


def test_pair_is_checked_before_any_work(folder, tmp_path, monkeypatch):
    def refuse(name):
        raise OSError(f"{name} is out of reach")

    monkeypatch.setattr(figures, "check", refuse)
    write(folder, "fig5_curve", "print(1)")
    with pytest.raises(OSError, match="sdxl-dmd is out of reach"):
        figures.run(pair="sdxl-dmd", out=tmp_path / "out", folder=folder)
    assert not (tmp_path / "out").exists()


def test_a_notebook_that_lacks_a_common_parameter_is_refused(folder, tmp_path):
    write(folder, "fig5_curve", "print(1)", parameters='pair: str = "emoji-dmd"')
    with pytest.raises(ValueError, match="fig5_curve has no parameter 'profile'"):
        figures.run(out=tmp_path / "out", folder=folder)


def test_notebooks_lists_those_with_parameters(folder):
    write(folder, "table3_diversity", "print(1)")
    write(folder, "fig5_curve", "print(1)")
    write(folder, "plain_note", "print(1)", tags=())
    found = figures.notebooks(folder=folder)
    assert [notebook.name for notebook in found] == ["fig5_curve", "table3_diversity"]
    assert found[0].parameters == {"pair": "str", "profile": "str", "n_seeds": "int", "out": "str"}


def test_no_folder_says_where_the_notebooks_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebooks folder at .*in a checkout"):
        figures.notebooks(folder=tmp_path / "none")


# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ("figures", "--only", "fig55"),
        ("figures", "--jobs", "0"),
        ("figures", "--pair", "emoji-dmdd"),
        ("figures", "-p", "n_sed", "3"),
        ("figures", "--pair", "sdxl-dmd"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, tmp_path):
    done = command_line(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("dtviz: ")
    assert done.stderr.count("\n") == 1
    assert arguments[-2 if arguments[1] == "-p" else -1] in done.stderr


def test_the_readmes_commands_are_accepted(monkeypatch):
    """Each `dtviz figures` line of the README names notebooks and parameters that there are."""
    from dtviz.__main__ import main

    lines = re.findall(
        r"^python -m dtviz (figures .*?)\s*(?:#.*)?$", (figures.ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert lines
    ran = []
    monkeypatch.setattr(figures, "check", lambda name: None)
    monkeypatch.setattr(figures, "_run_all", lambda chosen, **_: ran.append(chosen))
    for line in lines:
        assert main(shlex.split(line)) == 0, line
    assert len(ran) == len(lines)


def test_help_and_pairs():
    assert "--only NAMES" in command_line("figures", "--help").stdout
    assert "emoji-dmd" in command_line("pairs").stdout


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-5", 1e-5), ("True", True), ("dog face", "dog face"), ("", "")]
)
def test_values_on_the_command_line(text, value):
    from dtviz.__main__ import _value

    assert _value(text) == value
    assert type(_value(text)) is type(value)
