"""The command line: exit statuses, one-line errors, and the README's commands."""

import re
import shlex
import subprocess
import sys

from dtviz.__main__ import _value, main
from dtviz.experiments import notebooks
from dtviz.files import ROOT


def test_bad_input_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "bad.csv").write_text("case_number,prompt,evaluation_seed\n1,a dog,x\n")
    for arguments, words in (
        ("figures --only fig55", "fig55"),
        ("figures --jobs 0", "jobs=0"),
        ("figures --pair emoji-dmdd", "did you mean 'emoji-dmd'"),
        ("figures -p n_sed 3", "n_sed"),
        ("figures --pair sdxl-dmd", "sdxl-dmd"),
        (f"generate --prompts {tmp_path / 'bad.csv'} --out {tmp_path / 'out'}", "line 2: evaluation_seed 'x'"),
        (f"score {tmp_path / 'out'} --embedder efficientnet-lite0", "out holds no images"),
    ):
        assert main(arguments.split()) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("dtviz: ") and err.count("\n") == 1 and words in err
    assert not (tmp_path / "out").exists()


def test_the_documented_commands_are_accepted(monkeypatch):
    """Each `dtviz figures` of the README and docs names existing notebooks and parameters."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    commands = [found for text in texts for found in re.findall(r"python -m dtviz (figures [^`#\n]*)", text)]
    assert commands
    chosen = []
    monkeypatch.setattr(notebooks, "check_available", lambda name: None)
    monkeypatch.setattr(notebooks, "_run_all", lambda names, *_: chosen.append(names))
    for command in commands:
        assert main(shlex.split(command.replace("NAME", "fig5"))) == 0, command
    assert len(chosen) == len(commands)


def test_pairs_are_listed_and_a_reader_may_stop(capsys):
    assert main(["pairs"]) == 0 and "emoji-dmd" in capsys.readouterr().out
    command = f"{shlex.quote(sys.executable)} -m dtviz pairs | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_values_on_the_command_line():
    for text, value in (("3", 3), ("1e-5", 1e-5), ("True", True), ("dog face", "dog face"), ("", "")):
        assert _value(text) == value and type(_value(text)) is type(value)
