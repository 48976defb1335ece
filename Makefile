# Écluse: `make help` lists the targets. A machine with Python 3.11, Java 17 and Maven has all that they need.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
LOCKED := --quiet --no-emit-index-url --no-annotate --no-header --generate-hashes --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos study lint bench contract lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Put everything into .venv (quick when nothing changed)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Écluse needs Python 3.11 or newer, and there is no $(PYTHON) on the PATH." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Écluse needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## See transactions flow through Kafka and come out as predictions and alerts (ARGS="--events 50000")
	$(BIN)/ecluse demo $(ARGS)

test: setup ## Run the tests on a broker of their own (ARGS="tests/unit -x")
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: setup ## Break workers, broker and network under load, and count every event (ROUNDS=n SEED=s THIRD=1, 2, 3 or auto)
	$(BIN)/pytest tests/chaos --chaos $(if $(THIRD),third --third $(THIRD),all) --rounds $(or $(ROUNDS),1) --seed "$(SEED)" $(ARGS)

study: setup ## Run the long studies: a model of 1 GB while events flow, a set of 2 million events (minutes, up to 12 GB of memory)
	$(BIN)/pytest tests/study --study -s $(ARGS)

bench: setup ## Measure a worker beside a hand-written loop and plain Faust
	$(BIN)/python -m benchmarks $(ARGS)

contract: setup ## Write the schemas and the AsyncAPI document anew
	$(BIN)/python -m ecluse.contract.documents docs/contract

lock: setup ## Resolve the dependencies anew, within the ranges of pyproject.toml (ARGS="--upgrade")
	$(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip compile $(LOCKED) --group build --group test --group lint $(ARGS) pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCKED) --constraint requirements.lock pyproject.toml -o deploy/requirements.lock

clean: ## Remove what the other targets made, except the broker's jars in ~/.cache/ecluse
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
