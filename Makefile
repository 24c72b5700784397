# Each target makes present what it needs; nothing has to be done by hand before.
BIN := .venv/bin
# Most tests wait for a kernel, a server or a process: one more of them than there are processors keeps these busy.
PYTEST_ARGS ?=
PYTEST_JOBS ?= $(shell expr $$(nproc) + 1)

# Where the environment says not to write compiled modules, every process would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast bench lint wheel lock

demo:
	.ci/setup
	$(BIN)/python deploy/demo/demo.py

test:
	.ci/setup test
	$(BIN)/pytest --numprocesses $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS)

# The inner loop: what needs no server, and the native plugins without what is interrupted anywhere or generated.
test-fast:
	.ci/setup test
	$(BIN)/pytest --numprocesses $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS) \
		-k "unit or not (interrupted_anywhere or generated)" tests/unit tests/integration/nodeworker/plugins/native

bench:
	.ci/setup test
	$(BIN)/python -m bench

lint:
	.ci/setup lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The wheel of a release, for every architecture, in dist/.
wheel:
	.ci/setup wheel
	rm -rf dist
	PLUMBLINE_WHEEL_ARCHITECTURES="amd64 arm64" $(BIN)/python -m hatchling build --target wheel

# Rewrites requirements/ from pyproject.toml; needs uv. The largest lock comes first: the others have its versions.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock:
	$(LOCK) pyproject.toml --all-extras --group lint --output-file requirements/lint.lock
	$(LOCK) pyproject.toml --all-extras --group test -c requirements/lint.lock --output-file requirements/test.lock
	$(LOCK) pyproject.toml --extra node --extra reconciler --extra cli -c requirements/lint.lock \
		--output-file requirements/run.lock
	$(LOCK) --group build -c requirements/lint.lock --output-file requirements/build.lock
	$(LOCK) --group compiler --output-file requirements/compiler.lock
