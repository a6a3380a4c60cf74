# Each target sets up .venv by itself, and reuses it for as long as requirements.txt stays the same.
#
#   make figures ARGS="--only fig5,table3 --pair sdxl-dmd"     make test ARGS="tests/test_core_trace.py"

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
STAMP := .venv/.pins-$(shell cksum < requirements.txt | tr ' ' '-')
STAGES := drawings vae clip classifiers base commitment dmd lcm turbo lightning noisy_x0_classifier styles controls effects evaluate cards

.PHONY: help setup figures full lab test versions browser docs bench gpu models lint clean

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## install the packages of requirements.txt and dtviz into .venv

# A .venv whose interpreter is gone (Python was upgraded, a cache was restored elsewhere) is made anew.
ifneq ($(shell $(PY) -c 'print("works")' 2> /dev/null),works)
.PHONY: $(STAMP)
endif

# The old stamp goes before the install begins, so that a failed one is tried again by the next make. So does the old
# dtviz, whose requirements may contradict the new pins. setuptools is pinned too, and builds dtviz without isolation.
$(STAMP):
	@rm -f .venv/.pins-*
	@$(PY) -m pip --version > /dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dtviz needs Python 3.11 or later, this is " + sys.version.split()[0] + ": set PYTHON=")' \
	  && $(PYTHON) -m venv --clear .venv; }
	@echo "Installing the packages of requirements.txt into .venv (minutes, once)"
	@$(PIP) uninstall --yes dtviz 2> /dev/null
	@$(PIP) install --requirement requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

figures: $(STAMP)  ## the paper's figures and tables at a quick profile, into figures/<pair>/quick/
	$(PY) -m dtviz figures $(ARGS)

full: $(STAMP)  ## the committed figures, with all prompts and seeds
	$(PY) -m dtviz figures --profile full $(ARGS)

lab: $(STAMP)  ## JupyterLab on notebooks/index.ipynb
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/index.ipynb $(ARGS)

test: $(STAMP) browser  ## the test suite, offline, on a CPU
	$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

versions:  ## the core tests with the oldest and with the newest packages that pyproject.toml allows
	$(PYTHON) tests/versions.py $(ARGS)

# What the browser tests need beside .venv. Where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromium > /dev/null && exit 0; command -v apt-get > /dev/null || exit 0; \
	as_root=; test "$$(id -u)" = 0 || as_root="sudo -n"; $$as_root true 2> /dev/null || exit 0; \
	echo "Installing chromium for the browser tests (a minute, once)"; \
	{ $$as_root apt-get -qq update && $$as_root env DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install --yes --no-install-recommends chromium; } > /dev/null || true

docs: $(STAMP)  ## the API reference, into docs/api
	$(PY) -W error::UserWarning -m pdoc dtviz --docformat google --output-directory docs/api

bench: $(STAMP)  ## the measurements of docs/benchmarks.md
	$(PY) -m tests.bench

# Needs no network: `python -m tests.bench.gpu` in a checkout does the same with any Python that has the packages.
gpu: $(STAMP)  ## costs on a GPU, into figures/bench/gpu.csv
	$(PY) -m tests.bench.gpu $(ARGS)

models: $(STAMP)  ## train the embedded models anew
	set -e; for stage in $(STAGES); do $(PY) data/recipes/$$stage.py; done

lint: $(STAMP)  ## ruff and the layers of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

clean:  ## remove caches and builds, but not .venv, results and figures
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +
