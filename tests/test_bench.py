"""The benches that run on other machines, dry: every row at tiny sizes on a CPU, and no file written."""

import numpy as np
import pytest

from .bench import gpu, host, measure


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "FOLDER", tmp_path / "bench")
    yield
    assert not list(tmp_path.iterdir())


def test_gpu_bench_names_every_row(capsys):
    rows = gpu.main(["--tiny"])
    assert all(row["device"].startswith("CPU, float32, tiny") and ((row["seconds"] or row["GiB"]) > 0) for row in rows)
    ratios = {row["what"]: row["ratio"] for row in rows if row["compared with"]}
    assert np.isfinite(list(ratios.values())).all() and len(ratios) == 15
    asked = {row["what"]: row["asked"] for row in rows if row["asked"]}
    assert asked == {
        "the same inside dtviz.capture": 1.01,
        "hybrid, k=1, by generate": 1.05, "the same, 4 samples together": 1.05,
        "one's own 4-step call inside dtviz.hybrid": 1.05, "hybrid, one network with a LoRA of rank 64": 1.1,
        "hybrid, offloaded, first call": 2, "hybrid, offloaded, second call": 2,
    }  # fmt: skip
    assert "hybrid, k=1, at matched sigma" in capsys.readouterr().out


def test_host_bench(capsys):
    assert [row["asked"] for row in host.main(["--tiny"])] == [1.02, 1.05, 1.10, 1.10]
