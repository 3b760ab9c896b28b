# Two commands: `make up` sets everything up and runs Prebinder, `make test` sets everything up and passes the tests.
# Both need git, make and Python 3.11 to 3.13, nothing else.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help up test unit lint bench bench-kubernetes images lock clean
help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

up: ## Set up and run Prebinder on this machine, with a demo
	@$(PYTHON) tools/setup.py
	@exec $(BIN)/prebinder up $(ARGS)

test: ## Set up and run the whole suite: linters, types, layers, unit, engine, hub, browser, end to end
	@$(PYTHON) tools/setup.py --dev
	@$(BIN)/python tools/check.py $(ARGS)

unit: ## The tests that need no engine, hub or browser: about a minute
	@$(PYTHON) tools/setup.py --dev
	@$(BIN)/pytest -q -n 4 -m "not engine and not hub and not browser and not e2e and not kubernetes" $(ARGS)

lint: ## Linters, types and layer contracts
	@$(PYTHON) tools/setup.py --dev
	@$(BIN)/python tools/check.py --only-static

bench: ## Measure, print, and write benchmarks/RESULTS.md
	@$(PYTHON) tools/setup.py --dev
	@$(BIN)/python -m benchmarks $(ARGS)

bench-kubernetes: ## The same on a cluster (KUBECONFIG, or KUBE_UP); writes benchmarks/RESULTS-kubernetes.md
	@$(PYTHON) tools/setup.py --dev
	@$(BIN)/python -m benchmarks.kubernetes

images: ## Build the container images (ARGS="--push registry.example.org/prebinder/")
	@$(PYTHON) tools/setup.py --dev
	@$(BIN)/python images/build.py $(ARGS)

lock: ## Make the lock files anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --all-extras pyproject.toml -o requirements/dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --extra hub --extra build -c requirements/dev.txt pyproject.toml -o requirements/run.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --extra postgresql -c requirements/dev.txt pyproject.toml -o images/prebinder/requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -c requirements/dev.txt images/hub/requirements.in -o images/hub/requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -c requirements/dev.txt images/builder/requirements.in -o images/builder/requirements.txt

clean: ## Remove what setup made (not the state folder .prebinder)
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis artifacts
