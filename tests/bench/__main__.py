"""Run the benchmarks that need no GPU and no further package, each in its own process, then write their table: `make bench`."""

import subprocess
import sys

BENCHES = ("host", "costs", "growth", "dreamsim", "dataset", "explorer", "estimates", "table")

if __name__ == "__main__":
    for name in BENCHES:
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=True)
