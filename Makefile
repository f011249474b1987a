# Everything that a person or a machine does with this tree. `make help` lists it.
SHELL := /bin/bash
PORT ?= 8000
DEMO_DIR ?= $(CURDIR)/.demo

.DEFAULT_GOAL := help
.PHONY: help demo test check e2e fmt wheel deny lock clean

help: ## Shows this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Runs a real JupyterHub with two sites on http://127.0.0.1:$(PORT); keeps its files in DEMO_DIR
	@PORT="$(PORT)" DEMO_DIR="$(DEMO_DIR)" scripts/demo

test: ## Sets up and runs everything; ends with a table of stages and their minutes
	@scripts/test

check: ## Lints and fast tests, for while one works
	@scripts/test check

e2e: ## The end-to-end tests alone; T='-k sentence' chooses
	@scripts/e2e $(T)

fmt: ## Formats Rust and Python
	@scripts/setup check && . ./.paths && cargo fmt && "$$GLIDEPATH_TOOLS/bin/ruff" format . && "$$GLIDEPATH_TOOLS/bin/ruff" check --fix-only --quiet .

wheel: ## Builds the release wheel of jupyterhub-glidepath, with service and agent in it, into dist/
	@scripts/wheel release dist

deny: ## Licences, sources and known faults of all Rust dependencies (installs cargo-deny into the cache once)
	@scripts/deny

lock: ## Resolves the Python and npm packages of demo and tests anew
	@scripts/lock

clean: ## Removes what builds, demo and tests left in the tree
	rm -rf target dist .demo .venv-* .paths test-results
