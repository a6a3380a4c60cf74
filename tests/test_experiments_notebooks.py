"""The notebook runner on notebooks of two cells: no models, but the real papermill and the real kernel."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest

from dtviz.experiments import notebooks, paper
from dtviz.files import ROOT

PARAMETERS = 'pair: str = "emoji-dmd"\nprofile: str = "quick"\nn_seeds: int = 0  # 0: the default\nout: str = ""'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for notebooks that need no models. Every pair counts as available."""
    monkeypatch.setattr(notebooks, "check_available", lambda name: None)
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def write(folder: Path, name: str, source: str, *, parameters: str = PARAMETERS, tags=("parameters",)) -> None:
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)}), nbformat.v4.new_code_cell(source)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")


def printed(path: Path) -> str:
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_parameters_reach_the_notebook_and_its_kernel_is_this_interpreter(folder, tmp_path, monkeypatch):
    """Even beside a python3 kernel of the user, and with a small float that YAML would read as a string."""
    other = tmp_path / "user" / "kernels" / "python3"
    other.mkdir(parents=True)
    kernel = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "user"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    source = "import os, sys; print(pair, profile, n_seeds + 1, rate * 2); print(sys.executable); print(os.getcwd())"
    source += "\nraise SystemExit"  # ends a notebook that has nothing to do, without a failure
    write(folder, "fig5_curve", source, parameters=PARAMETERS + "\nrate: float = 1.0")
    values = {"n_seeds": 3, "rate": 1e-05}
    paths = notebooks.run(["fig5"], profile="full", out=tmp_path / "out", folder=folder, parameters=values)
    assert paths == [tmp_path / "out" / "fig5_curve.ipynb"]
    assert printed(paths[0]).splitlines()[:3] == ["emoji-dmd full 4 2e-05", sys.executable, str(ROOT)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fig5_curve.ipynb"]


def test_failure_keeps_the_earlier_copy_and_lets_the_others_run(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "fig4_grid.ipynb").write_text("from an earlier run")
    write(folder, "fig4_grid", "raise RuntimeError('no\\nluck')")
    write(folder, "fig5_curve", "print('second')")
    write(folder, "fig6_dies", "import os; os._exit(1)")
    message = r"(?s)2 of 3 .*fig4_grid, cell In \[3\]: RuntimeError: no luck \(see .*fig4_grid.failed.ipynb\)"
    with pytest.raises(notebooks.NotebookError, match=message) as error:
        notebooks.run(out=out, folder=folder, jobs=2)
    assert "fig6_dies, stopped without an error in a cell: DeadKernelError" in str(error.value)
    assert (out / "fig4_grid.ipynb").read_text() == "from an earlier run"
    assert printed(out / "fig5_curve.ipynb") == "second\n"
    names = ["fig4_grid.failed.ipynb", "fig4_grid.ipynb", "fig5_curve.ipynb", "fig6_dies.failed.ipynb"]
    assert sorted(path.name for path in out.iterdir()) == names
    captured = capsys.readouterr()
    assert re.search(r"fig5_curve  done after \d+ s \([1-3] of 3, about [\d.]+ min left\)", captured.out)
    assert "fig4_grid  FAILED" in captured.err

    write(folder, "fig4_grid", "print('repaired')")
    notebooks.run(["fig4"], out=out, folder=folder)
    assert not (out / "fig4_grid.failed.ipynb").exists()


def test_the_papers_come_first_and_a_page_shows_all_pictures(folder, tmp_path, monkeypatch, capsys):
    """The quick profile has a folder of its own, so that a look does not replace the committed figures."""
    monkeypatch.setattr(paper, "HOME", tmp_path)
    draw = (
        "import json, pathlib\nfolder = pathlib.Path(figures) / ('quick' if profile == 'quick' else '')\n"
        "(folder / f'{mine}.png').touch()\n(folder / f'{mine}.json').write_text(json.dumps({'caption': '<3 seeds>'}))"
    )
    for name in ("alternatives", "table3_diversity", "fig5_curve"):
        write(folder, name, f"mine, figures = {name!r}, {str(tmp_path / 'figures' / 'emoji-dmd')!r}\n{draw}")
    assert list(notebooks.notebooks(folder)) == ["fig5_curve", "table3_diversity", "alternatives"]
    notebooks.run(["alternatives", "fig5"], folder=folder)
    quick = tmp_path / "figures" / "emoji-dmd" / "quick"
    page = (quick / "index.html").read_text()
    links = ('src="fig5_curve.png"', 'href="fig5_curve.ipynb"', 'src="alternatives.png"')
    places = [page.index(link) for link in links]
    assert places == sorted(places) and "&lt;3 seeds&gt;" in page
    assert capsys.readouterr().out.splitlines()[-1].endswith("quick/index.html")
    assert sorted(path.name for path in quick.parent.iterdir()) == ["quick"]


def test_jobs_run_at_once_and_share_the_cores(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(notebooks, "_cores", lambda: 8)
    meet = (
        "import os, pathlib, time\n"
        "(pathlib.Path(out) / f'{mine}.here').touch()\n"
        "deadline = time.monotonic() + 60\n"
        "while len(list(pathlib.Path(out).glob('*.here'))) < 2 and time.monotonic() < deadline: time.sleep(.05)\n"
        "print(len(list(pathlib.Path(out).glob('*.here'))), os.environ['OMP_NUM_THREADS'])"
    )
    for name in ("fig4_grid", "fig5_curve"):
        write(folder, name, f"mine = {name!r}\n{meet}")
    paths = notebooks.run(out=tmp_path / "out", folder=folder)  # an embedded pair: four at once
    assert [printed(path).split() for path in paths] == [["2", "4"]] * 2


def alive(pid: int) -> bool:
    # a zombie has ended: in a container its new parent may never collect it
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return status != "" and not status.startswith("Z")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_kernels_and_leaves_nothing_behind(folder, tmp_path, number, status):
    source = "import os, pathlib, time\n(pathlib.Path(out) / 'pid').write_text(str(os.getpid()))\ntime.sleep(120)"
    write(folder, "fig5_curve", source)
    script = (
        "import pathlib, signal, sys; from dtviz import __main__; from dtviz.experiments import notebooks\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "notebooks.check_available = lambda name: None\n"
        f"notebooks.ROOT = pathlib.Path({str(tmp_path)!r})\n"
        f"sys.exit(__main__.main(['figures', '--out', {str(tmp_path / 'out')!r}]))"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "out" / "pid"
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(pid.read_text())
    runner.send_signal(number)
    assert runner.wait(timeout=30) == status
    runner.communicate()
    while alive(kernel) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(kernel)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pid"]


def test_bad_input_is_refused_and_nothing_is_written(folder, tmp_path, monkeypatch):
    for name in ("fig5_curve", "table3_a", "table3_b"):
        write(folder, name, "print(1)")
    write(folder, "plain_note", "print(1)", tags=())
    for arguments, message in (
        ({"names": ["fig55"]}, "no notebook 'fig55'; there are: fig5_curve, .*plain_note"),
        ({"names": ["table3"]}, "'table3' may be any of table3_a, table3_b"),
        ({"names": ["plain"]}, "plain_note has no parameter 'pair'; it has: no cell tagged `parameters`"),
        ({"parameters": {"n_seed": 3}}, "fig5_curve has no parameter 'n_seed'; it has: pair, profile, n_seeds"),
        ({"parameters": {"n_seeds": "three"}}, r"'n_seeds' of notebook fig5_curve is of type int, got 'three' \(str\)"),
        ({"parameters": {"pair": "sdxl-dmd"}}, "'pair' is given as pair="),
        ({"profile": "fast"}, "profile='fast' is not one of quick, full, paper"),
        ({"jobs": 0}, "jobs=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            notebooks.run(**arguments, out=tmp_path / "out", folder=folder)
    with pytest.raises(FileNotFoundError, match=r"no notebooks folder at .*in a checkout"):
        notebooks.run(out=tmp_path / "out", folder=tmp_path / "none")
    monkeypatch.setattr(notebooks, "check_available", Mock(side_effect=OSError("out of reach")))
    with pytest.raises(OSError, match="out of reach"):
        notebooks.run(["fig5"], pair="sdxl-dmd", out=tmp_path / "out", folder=folder)
    assert not (tmp_path / "out").exists()
