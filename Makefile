# The environment is .venv (and .venv-triton for a local Triton), made once and reused until its list of packages changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := 0.13.9
SLOW_WORKERS ?= 2

.PHONY: setup demo test check bench conformance clean help

help:
	@echo "make setup | demo | test | check | bench | conformance | clean"

setup: .venv/.ready .venv-triton/.ready

.venv/.ready: requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("EdgeKit needs Python 3.11 or newer, found " + sys.version.split()[0] + "; give PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# uv installs the locked list in a fraction of pip's time; where it cannot be had, pip does the same work.
	($(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV) && $(BIN)/uv pip install -q --python $(BIN)/python -r requirements/lock.txt) \
		|| $(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv-triton/.ready: edgekit/cloud/triton/requirements.txt | .venv/.ready
	test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	$(BIN)/uv pip install -q --python .venv-triton/bin/python -r $< 2>/dev/null \
		|| .venv-triton/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

demo: setup
	$(BIN)/edgekit demo

test: setup
	$(BIN)/python -m pytest -n $(SLOW_WORKERS) --dist loadfile

check: .venv/.ready
	$(BIN)/ruff format --check edgekit tests benchmarks examples
	$(BIN)/ruff check edgekit tests benchmarks examples
	$(BIN)/mypy -p edgekit -p benchmarks
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# ONNX's backend tests through every target; about an hour on two cores. The results are kept, the table is made from them.
CONFORMANCE := generic-x86 intel-nuc raspberry-pi-5 iphone-15 jetson-orin rtx-pc
conformance: .venv/.ready
	mkdir -p docs/conformance
	for device in $(CONFORMANCE); do $(BIN)/edgekit conformance --device $$device -o docs/conformance/$$device.json || exit 1; done
	$(BIN)/python docs/generate.py

# Figures of the runtime beside its peers, which install themselves on the first run. Forty minutes; BENCH=full takes two hours.
bench: setup
	$(BIN)/python -m benchmarks all $(if $(filter full,$(BENCH)),--full)

clean:
	rm -rf .venv .venv-triton out dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
