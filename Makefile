# make demo: search, retraining and report on the generated domains
# make compare: the table of methods of COMPARISON; SETTINGS="name=... data.root=..."
# make bench: how fast a step is, against what it has to be held against; LIBMTL=FOLDER for that one
# make test: the tests, in the same virtual environment
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPARISON ?= recipes/compare.yaml
SETTINGS ?=
LIBMTL ?=
READY := $(VENV)/.ready

.PHONY: demo test lint search retrain report compare bench test-cluster test-chaos clean help

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,device]'
	@touch $@

demo: search retrain report ## search, retrain and report on the generated domains

search: $(READY) ## search a path per domain
	$(BIN)/python -m mdl.fit recipes/mpnas_search.yaml

retrain: $(READY) ## retrain the network found
	$(BIN)/python -m mdl.fit recipes/mpnas_retrain.yaml

report: $(READY) ## write the report of the retrained network
	$(BIN)/python -m mdl.report runs/mpnas_retrain

compare: $(READY) ## run the table of methods of COMPARISON
	$(BIN)/python -m mdl.compare $(COMPARISON) $(SETTINGS)

bench: $(READY) ## measure speed, a quarter of an hour
	$(BIN)/python -m benchmarks.speed $(if $(LIBMTL),--libmtl $(LIBMTL)) --table docs/results/speed-table.md

test: $(READY) lint ## set up, lint, and pass the tests
	$(BIN)/python -m pytest -n 2

test-cluster: $(READY) ## pass the tests on a real SLURM, started for them
	@command -v slurmctld >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null; } || true
	$(BIN)/python -m pytest -m cluster tests/cluster

test-chaos: $(READY) ## kill runs many times over, at any moment
	$(BIN)/python -m pytest -m chaos tests/chaos -s

lint: $(READY) ## style, types and floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove the virtual environment; runs and data stay
	rm -rf $(VENV)
