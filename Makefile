# Two commands: `make demo` shows it, `make test` proves it.  Both install what they need.
SHELL := /bin/sh
VENV ?= .venv
PYTHON ?= python3
INSTALLED := $(VENV)/.installed
# Processes that run tests side by side; each has guests of its own.
WORKERS ?= 2

.PHONY: demo test deep unit check bench wheel clean

# Plugin mode needs a C compiler, once.
COMPILER = command -v cc >/dev/null || sh tests/need.sh gcc libc6-dev || echo "Going on without plugin mode." >&2

# The checkout itself, for demo, checks and benchmarks.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh tests/need.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@

demo: $(INSTALLED)
	@$(COMPILER)
	@$(VENV)/bin/python -m tests.demo

# The built wheel in a venv of its own, and the tests without the checkout beside them: what is
# tested is what a user installs.  Real guests included.
test:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh tests/need.sh python3-venv
	@$(COMPILER)
	rm -rf build
	$(PYTHON) -m venv --clear $(VENV)-test
	$(VENV)-test/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-test/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(VENV)-test/bin/python -m pip install --quiet "$$(echo build/wheel/*.whl)[test]"
	mkdir build/check && cp -R tests setup.cfg build/check/
	cd build/check && PSE_CHECKOUT="$(CURDIR)" "$(CURDIR)/$(VENV)-test/bin/python" -m pytest \
		--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# The combinations that `make test` leaves out.
deep:
	$(MAKE) test PYTEST_ARGS="-m deep"

# Seconds: what needs no guest, on the checkout, but for fuzzers and fixed waits (`slow`), which are
# left to `make test`.  No guests to keep here, so that tests go to whichever process is free.
unit: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m 'not guest and not deep and not slow' \
		--numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(INSTALLED)
	$(VENV)/bin/python -m tests.bench

wheel: $(INSTALLED)
	$(VENV)/bin/python -m build --wheel

clean:
	rm -rf $(VENV) $(VENV)-test build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
