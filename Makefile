# Each target makes present what it needs; nothing has to be done by hand before.
BIN := .venv/bin
# Most tests wait for a kernel, a server or a process: one more of them than there are processors keeps these busy.
PYTEST_ARGS ?=
PYTEST_JOBS ?= $(shell expr $$(nproc) + 1)

# Where the environment says not to write compiled modules, every process would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast bench lint lock

demo:
	.ci/setup
	$(BIN)/python deploy/demo/demo.py

test:
	.ci/setup test
	$(BIN)/pytest --numprocesses $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS)

# The inner loop: what needs no server, and the native plugins without what is tried at every cut or generated.
test-fast:
	.ci/setup test
	$(BIN)/pytest --numprocesses $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS) \
		-k "unit or not (cut_anywhere or generated)" tests/unit tests/integration/nodeworker/plugins/native

bench:
	.ci/setup
	$(BIN)/python -m bench

lint:
	.ci/setup test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Regenerates requirements.lock from pyproject.toml; needs uv.
lock:
	uv pip compile --quiet pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --output-file requirements.lock
