# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 or newer), VENV the folder it is built in.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-interpreter test-long fuzz check format bench soak scaling faults release lock clean

demo: $(VENV)/run.stamp
	@$(BIN)/imdsproxy demo

# docs/testing.md says what runs where. WORKERS is the number of processes that share the tests: more than two cores
# have use for, because many tests wait most of their time.
WORKERS ?= 5
# A test that takes longer than this many seconds hangs: it has failed, and what each thread was doing is printed.
# Without a limit, a run would wait until it is ended from outside, and would not name the test.
TEST_SECONDS ?= 300
# A lock within the interpreter lets no signal through. A minute later, what each thread does is printed without its
# help, and the process is ended. The run ends with it, because xdist would start the same test again without end.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations=25 \
	--timeout=$(TEST_SECONDS) --timeout-method=signal --max-worker-restart=0 \
	-o faulthandler_timeout=$$(( $(TEST_SECONDS) + 60 )) -o faulthandler_exit_on_timeout=true
define measured
@rm -f .coverage .coverage.*
$(PYTEST) --cov --cov-report= $(PYTEST_ARGS)
$(BIN)/python -m tests.coverage_report
endef

test: $(VENV)/dev.stamp
	$(measured)

# The part that another interpreter can change. Without Wine and hosts, even more of the time is waiting.
test-interpreter: WORKERS = 6
test-interpreter: $(VENV)/dev.stamp
	$(PYTEST) -m "not system and not windows and not large and not client and not any_python" $(PYTEST_ARGS)

test-long: export TEST_LONG = 1
test-long: WORKERS = 2
test-long: TEST_SECONDS = 3600
test-long: $(VENV)/dev.stamp
	$(measured)

# Searches for inputs that are read wrongly, for so long with each of eight readers.
FUZZ_SECONDS ?= 300
fuzz: $(VENV)/fuzz.stamp
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --no-warn-unreachable imdsproxy

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Prints the report and writes it to benchmarks/results; nginx, HAProxy, Varnish and wrk take part if installed.
bench: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks --results benchmarks/results

# docs/reliability.md says what passes. It stops by itself; Ctrl-C ends it with the verdict so far.
MINUTES ?= 10
SEED ?=
soak: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Writes its tables into the document; a test compares them.
scaling: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks.scaling --into docs/scaling.md

# Lets each fault happen at full length, and writes the table into the document; a test compares the rows. Needs root.
faults: export TEST_LONG = 1
faults: $(VENV)/dev.stamp
	$(BIN)/python -m tests.system.faults --into docs/reliability.md

# docs/release.md says what comes out. IMAGE is registry, fetched (what .ci/debian has fetched) or none; TAG, if it is
# set, must name the version; SOURCE is where the source is published.
IMAGE ?= registry
release: $(VENV)/dev.stamp
	$(BIN)/python -m release --into dist --image=$(IMAGE) --tag="$(TAG)" --source="$(SOURCE)"

# Each lock includes run.txt, and dev.txt includes the others, so that their versions cannot differ. Needs uv; writes
# names, versions and hashes only, and keeps the versions that are locked already.
LOCK = uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
lock:
	$(LOCK) -o requirements/run.txt requirements/run.in
	$(LOCK) -c requirements/run.txt -o requirements/emulator.txt requirements/emulator.in
	$(LOCK) -c requirements/run.txt -o requirements/otel.txt requirements/otel.in
	$(LOCK) -c requirements/run.txt -o requirements/kubernetes.txt requirements/kubernetes.in
	$(LOCK) -c requirements/emulator.txt -o requirements/testing.txt requirements/testing.in
	$(LOCK) -c requirements/emulator.txt -c requirements/otel.txt -c requirements/kubernetes.txt \
		-c requirements/testing.txt -o requirements/dev.txt requirements/dev.in
	$(LOCK) -o requirements/fuzz.txt requirements/fuzz.in

# A lock is complete: nothing beside it is installed (--no-deps), and nothing is built (--only-binary), because a build
# fetches what no lock names. The user's index, proxy and certificates apply. Settings that would install elsewhere or
# other packages do not; the project itself has no hash, so hashes are required by flag, where a lock is read.
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_USER = 0
export PIP_REQUIRE_HASHES = 0
# Every process that the tests start would compile the package again.
unexport PYTHONDONTWRITEBYTECODE
unexport PIP_CONSTRAINT PIP_PREFIX PIP_PYTHON PIP_REQUIREMENT PIP_ROOT PIP_TARGET
PIP = $(BIN)/python -m pip

# Fill the environment from the lock $<. If that changed, an environment of ours is made again from nothing, because
# pip leaves in place what the new lock no longer names.
define install
@echo "building $(VENV) …"
@$(if $(filter $<,$?),[ ! -e $@ ] || rm -rf $(VENV))
@[ -e $(BIN)/python ] || [ -n "$(PYTHON)" ] || { \
	echo "imdsproxy needs Python 3.11 or newer; none was found (set PYTHON=…)"; exit 1; }
@[ -e $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
@$(PIP) install -q --require-hashes --no-deps --only-binary :all: -r $<
@$(PIP) install -q --no-index --no-deps --no-build-isolation -e .
@said=$$($(PIP) check) || { echo "$$said"; \
	echo "$(VENV) and $< differ; 'make clean' removes $(VENV), so that it is built again"; exit 1; }
@touch $(VENV)/run.stamp $@
endef

$(VENV)/run.stamp: requirements/emulator.txt pyproject.toml
	$(install)

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/run.stamp
	$(install)

# Beside what the tests need, because it has no wheel for most machines.
$(VENV)/fuzz.stamp: requirements/fuzz.txt $(VENV)/dev.stamp
	@$(PIP) install -q --require-hashes --no-deps --only-binary :all: -r $<
	@$(PIP) check
	@touch $@

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
