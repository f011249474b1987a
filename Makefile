# Everything that a person or a machine does with this tree. `make help` lists it.
SHELL := /bin/bash
PORT ?= 8000
DEMO_DIR ?= $(CURDIR)/.demo
OUTAGE_S ?= 600
SECONDS ?= 60
SERVERS ?= 500
USERS ?= 2000
HOURS ?= 1
ROW ?=
REPS ?= 3

.DEFAULT_GOAL := help
.PHONY: help demo test check e2e acceptance flood fuzz churn load soak bench bench-guard bench-flame fmt wheel deny lock clean

help: ## Shows this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Runs a real JupyterHub with two sites on http://127.0.0.1:$(PORT); keeps its files in DEMO_DIR
	@PORT="$(PORT)" DEMO_DIR="$(DEMO_DIR)" scripts/demo

test: ## Sets up and runs everything; ends with a table of stages and their minutes
	@scripts/test

check: ## Lints and fast tests, for while one works
	@scripts/test check

e2e: ## The end-to-end tests alone; T='-k sentence' chooses
	@scripts/e2e $(T)

acceptance: ## The acceptance scenarios with outages of OUTAGE_S seconds: ten minutes unless told otherwise
	@OUTAGE_S="$(OUTAGE_S)" scripts/e2e -k test_scenario --timeout 4000

flood: ## Ten thousand half-open connections until their deadline, which takes minutes
	@cargo test -p glidepath-spawner-svc --test command -- --include-ignored half_open

fuzz: ## Fuzzes all targets, or T=target, for SECONDS=60 each; keeps what crashes and says how to replay it
	@scripts/fuzz "$(SECONDS)" $(T)

churn: ## Everybody dies while users come and go: KILLS=300 times, as SEED= says; ends with who is where
	@scripts/many churn

load: ## Measures SERVERS servers and USERS users; writes the table of docs/reliability.md
	@scripts/many load --servers "$(SERVERS)" --users "$(USERS)" --write

soak: ## Looks for what grows in HOURS hours of light churn; writes the table of docs/reliability.md
	@scripts/many soak --hours "$(HOURS)" --write

bench: ## Measures everything beside its rivals, REPS=3 times; ROW= link, wide, relay, recovery, memory, spawn, waiting, placement or size alone
	@scripts/bench --row "$(ROW)" --reps "$(REPS)" --write

bench-guard: ## Fails when the link has become slower beside relays that only copy, by more than a noisy machine explains
	@scripts/bench --row guard --reps "$(REPS)"

bench-flame: ## Draws where the link's time goes, into bench/results/flame-*.svg
	@scripts/bench --flame

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
