# Each target makes present what it needs; nothing has to be done by hand before.
BIN := .venv/bin
PYTEST_ARGS ?=

.PHONY: demo test bench lint lock

demo:
	.ci/setup
	$(BIN)/python deploy/demo/demo.py

test:
	.ci/setup test
	$(BIN)/pytest $(PYTEST_ARGS)

bench:
	.ci/setup
	$(BIN)/python -m bench

lint:
	.ci/setup test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Writes requirements.lock anew from pyproject.toml; needs uv.
lock:
	uv pip compile --quiet pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --output-file requirements.lock
