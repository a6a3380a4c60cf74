# `make figures` and `make test` are all that a newcomer needs: each sets up .venv by itself, and reuses it for as long
# as the pins in requirements.txt stay the same.
#
#   make figures ARGS="--only fig5,table3 --pair sdxl-dmd"     make test ARGS="tests/test_core_trace.py"

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
STAMP := .venv/.pins-$(shell cksum < requirements.txt | tr ' ' '-')
STAGES := drawings vae clip classifiers base commitment dmd lcm turbo lightning noisy_x0_classifier styles controls effects evaluate cards

.PHONY: setup figures full test browser docs bench gpu models lint clean

setup: $(STAMP)

# A .venv whose interpreter is gone (Python was upgraded, a cache was restored elsewhere) is made anew.
ifneq ($(shell $(PY) -c 'print("works")' 2> /dev/null),works)
.PHONY: $(STAMP)
endif

# The old stamp goes before the install begins, so that a failed one is tried again by the next make; and the old dtviz,
# whose pins would be at odds with the new ones. setuptools is pinned like the rest: without build isolation nothing
# unpinned is fetched.
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

figures: $(STAMP)
	$(PY) -m dtviz figures $(ARGS)

full: $(STAMP)
	$(PY) -m dtviz figures --profile full $(ARGS)

test: $(STAMP) browser
	$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

# What the browser tests need beside .venv. Where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromium > /dev/null && exit 0; command -v apt-get > /dev/null || exit 0; \
	as_root=; test "$$(id -u)" = 0 || as_root="sudo -n"; $$as_root true 2> /dev/null || exit 0; \
	echo "Installing chromium for the browser tests (a minute, once)"; \
	{ $$as_root apt-get -qq update && $$as_root env DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install --yes --no-install-recommends chromium; } > /dev/null || true

# The API reference from the docstrings, into docs/api (not kept in the repository).
docs: $(STAMP)
	$(PY) -W error::UserWarning -m pdoc dtviz --docformat google --output-directory docs/api

bench: $(STAMP)
	$(PY) -m tests.bench

# Costs on a GPU. Needs no network: `python -m tests.bench.gpu` in a checkout does the same with any Python that has the packages.
gpu: $(STAMP)
	$(PY) -m tests.bench.gpu $(ARGS)

models: $(STAMP)
	set -e; for stage in $(STAGES); do $(PY) data/recipes/$$stage.py; done

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

# Leaves .venv, the result store and the figures.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
