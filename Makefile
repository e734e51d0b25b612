# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 or newer), VENV the folder it is built in.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
CORE = imdsproxy/protocol/*,imdsproxy/policy.py,imdsproxy/records.py,imdsproxy/budget/bucket.py,imdsproxy/budget/fair_queue.py,imdsproxy/budget/shared_record.py,imdsproxy/cache/access_token.py,imdsproxy/cache/derive.py,imdsproxy/cache/freshness.py,imdsproxy/cache/rendered_hit.py,imdsproxy/upstream/headers.py,imdsproxy/upstream/health.py,imdsproxy/upstream/retry.py,imdsproxy/server/parse_errors.py,imdsproxy/cli/nftables.py

.PHONY: demo test check format bench scaling lock clean

demo: $(VENV)/run.stamp
	@$(BIN)/imdsproxy demo

test: $(VENV)/dev.stamp
	@rm -f .coverage .coverage.*
	$(BIN)/python -m pytest --cov --cov-report= $(PYTEST_ARGS)
	$(BIN)/coverage report --fail-under=90
	$(BIN)/coverage report --include=$(CORE) --fail-under=100

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --no-warn-unreachable imdsproxy

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes what it finds into benchmarks/results as well; nginx, HAProxy, Varnish and wrk take part where installed.
bench: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks --results benchmarks/results

# Writes its tables into the document, which a test holds to them.
scaling: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks.scaling --into docs/scaling.md

# Needs uv; writes names, versions and hashes only.
lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -o requirements/run.txt requirements/run.in
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -c requirements/run.txt -o requirements/dev.txt requirements/dev.in

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "imdsproxy needs Python 3.11 or newer; none was found (set PYTHON=…)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/run.stamp: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	@echo "building $(VENV) …"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/run.stamp
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
