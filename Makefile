# Two commands set up everything on a fresh machine: make demo, make test. What each command needs
# is installed when it is first typed (envs/setup.sh); PYTHON= and TORCH= choose, see there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Options are given to make: a TARGET or PROFILE in the environment may be meant for others
OPTIONS := AGENT ALL ARCHIVES COLUMN CORES CRATE FILES IMAGES JSON METRIC MODELS NO_CHECK NO_RAW OTHER OUTPUT OVERLAY PROFILE RESULTS ROW SUITE TABLE TARGET TFLOPS TOLERANCE
$(foreach name,$(OPTIONS),$(if $(filter environment,$(origin $(name))),$(shell echo "$(name) in the environment is not used; give it to make: make $(MAKECMDGOALS) $(name)=..." >&2)$(eval undefine $(name))))
CORES ?= all
BIN := $(CURDIR)/.venv/bin
# No display, no user configuration: matplotlib and Jupyter write below .uad
export MPLBACKEND := Agg
export MPLCONFIGDIR := $(CURDIR)/.uad/matplotlib
export IPYTHONDIR := $(CURDIR)/.uad/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/.uad/jupyter
export XDG_CACHE_HOME := $(CURDIR)/.uad/cache
export PATH := $(BIN):$(PATH)
# the library of this folder, wherever .venv was made, and the packages of .venv only
export PYTHONPATH := $(CURDIR)/workflow_scripts
export PYTHONNOUSERSITE := 1
unexport PYTHONHOME SNAKEMAKE_PROFILE

# The kernel frees this lock when the run ends, however it ends; Snakemake's own lock would
# stay behind after kill -9.
FLOCK := $(shell command -v flock)
LOCK = $(if $(FLOCK),$(FLOCK) --nonblock --conflict-exit-code 75 .uad/run.lock)
# make paper PROFILE=slurm: on a cluster, from a copy of the code (docs/cluster.md)
PROFILE ?= default
SNAKEMAKE = $(if $(filter default,$(PROFILE)),python -m snakemake --cores $(CORES),python -m uad launch $(PROFILE))
RUN = mkdir -p .uad; $(LOCK) $(if $(FLOCK),env UAD_LOCKED=1) $(SNAKEMAKE) $(if $(FLOCK),--nolock)
BUSY = || { code=$$?; [ $$code -ne 75 ] || echo "Another run is at work in this directory."; exit $$code; }

# What pip installs: the whole lock but PyTorch, whose build for CPUs is not on PyPI
REQUIREMENTS = { echo "\# Written by 'make lock'; CONTRIBUTING.md says how pip installs it."; \
  uv export --quiet --frozen --no-emit-project --no-annotate --no-header --prune torch; }

.PHONY: help env-test env-lint demo test datasets import plan paper report audit trace maps compare crate verify-crate env test-all test-fast test-e2e test-slow test-browser test-slurm test-real test-gpu lint format schema picture lock clean-env bench bench-gpu

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##|^## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/; s/^## (.*)/\n\1/' | expand -t 14

## Try it

demo: env ## the whole workflow on a phantom, about 5 minutes on 2 cores; prints Tables I to IV
	@$(RUN) --configfile config.demo.yaml -- paper report $(BUSY)
	@python -m uad results results-demo/config.resolved.yaml

test: test-fast test-e2e ## the fast suite, then one run through every stage

## Your data

datasets: env ## which data sets are there, and the next step for each
	@python -m uad datasets config.yaml $(OVERLAY)

import: env ## bring a folder of archives into the raw trees: make import ARCHIVES=/folder
	@[ -n "$(ARCHIVES)" ] || { echo "Name the folder with your archives: make import ARCHIVES=/folder"; exit 2; }
	@python -m uad import config.yaml $(OVERLAY) "$(ARCHIVES)"
	@echo "Looking at every scan ..."
	@code=0; ( $(RUN) --keep-going $(if $(OVERLAY),--configfile $(OVERLAY)) -- validate $(BUSY) ) || code=$$?; \
	  echo; python -m uad datasets config.yaml $(OVERLAY); exit $$code

plan: env ## jobs, hours and disk of a target, before it is run: make plan TARGET=paper
	@python -m uad plan $(addprefix --overlay ,$(OVERLAY)) --profile profiles/$(PROFILE) $(if $(TFLOPS),--tflops $(TFLOPS)) $(if $(JSON),--json $(JSON)) $(or $(TARGET),paper)

paper: env ## all tables and figures on the data sets of config.yaml; on a cluster PROFILE=slurm
	@$(RUN) $(if $(OVERLAY),--configfile $(OVERLAY)) -- $(or $(TARGET),paper) $(BUSY)

report: env ## results/report.html for the data sets of config.yaml
	@$(RUN) $(if $(OVERLAY),--configfile $(OVERLAY)) -- report $(BUSY)

## Check and share

audit: env ## whether every file is what its record says, and all agree: make audit [RESULTS=results]
	@[ -n "$(RESULTS)" ] || [ ! -e .uad/run.lock ] || $(LOCK) true 2>/dev/null || [ $$? -ne 75 ] || echo "A run is at work here: what it has not finished will be named."
	@python -m uad audit $(if $(NO_RAW),--no-raw) $(if $(OUTPUT),--output "$(OUTPUT)") "$(or $(RESULTS),results)"

trace: env ## where a cell is from, down to raw files: make trace TABLE=table3 ROW=pddpm-iqa
	@[ -n "$(TABLE)" ] && [ -n "$(ROW)" ] || { echo "Name a cell: make trace TABLE=table3 ROW=pddpm-iqa [COLUMN=intra_FLAIR/brats21] [METRIC=dice]"; exit 2; }
	@python -m uad trace --table "$(TABLE)" --row "$(ROW)" $(if $(COLUMN),--column "$(COLUMN)") $(if $(METRIC),--metric "$(METRIC)") $(if $(RESULTS),--results "$(RESULTS)") $(if $(ALL),--all) $(if $(NO_CHECK),--no-check) $(if $(OUTPUT),--output "$(OUTPUT)")

maps: env ## volumes as NIfTI in two spaces, and a page: make maps [ARGS="--method pddpm-iqa --subject X"]
	@python -m uad export $(if $(RESULTS),--results "$(RESULTS)") $(ARGS)

compare: env ## two runs, file by file, and where they part: make compare OTHER=/their/results
	@[ -n "$(OTHER)" ] || { echo "Name the other run: make compare OTHER=<results folder, crate folder or zip> [RESULTS=results]"; exit 2; }
	@python -m uad compare $(if $(OUTPUT),--output "$(OUTPUT)") $(addprefix --tolerance ,$(TOLERANCE)) "$(or $(RESULTS),results)" "$(OTHER)"

crate: env ## results, records, config and code as one file to share: make crate [IMAGES=1] [MODELS=1]
	@export UAD_CRATE_IMAGES="$(IMAGES)" UAD_CRATE_MODELS="$(MODELS)" UAD_CRATE_AGENT="$(AGENT)"; \
	  $(RUN) --forcerun pack_crate $(addprefix --configfile ,$(or $(OVERLAY),$(wildcard $(or $(RESULTS),results)/config.resolved.yaml))) $(if $(RESULTS),--config results=$(RESULTS)) -- crate $(BUSY)

verify-crate: env ## a crate from nothing but itself, down to the cells: make verify-crate CRATE=crate.zip
	@[ -n "$(CRATE)" ] || { echo "Name the crate: make verify-crate CRATE=/path/to/crate.zip"; exit 2; }
	@python -m uad verify "$(CRATE)"

## Develop

env: ## build .venv from uv.lock [PYTHON=/path/to/python3.12] [TORCH=cpu|cuda]
	@envs/setup.sh $(if $(filter-out default,$(PROFILE)),slurm)

env-test: env
	@envs/setup.sh test browser slurm

env-lint: env
	@envs/setup.sh lint

test-fast: env-test
	@python -m pytest -n 2 --dist worksteal -m "not (e2e or slow or browser or slurm or real or gpu)"

test-e2e: env-test
	@python -m pytest -m e2e tests/test_whole_run.py

test-all: export UAD_EXAMPLES := 100 # of each property, in place of 15
test-all: test test-slow test-browser test-slurm test-real test-gpu ## all tests; what cannot run here is skipped and says why

test-slow: env-test ## variants of the end-to-end run: killed, changed, tampered with
	@python -m pytest -m "slow and not (browser or slurm or real or gpu)" $(FILES)

test-browser: env-test ## the gallery of scans in Chromium, where that is installed
	@python -m pytest -m browser -rs

test-gpu: env-test ## what only a GPU can show, some minutes
	@python -m pytest -m gpu -rs

test-slurm: env-test ## the workflow on a real SLURM of one node, which it installs (Debian, as root)
	@if [ "$$(id -u)" != 0 ]; then echo "SKIPPED: the SLURM tests start its daemons, which needs root"; \
	  else tests/slurm/cluster.sh install && python -m pytest -m "$(or $(SUITE),slurm)" tests/test_slurm.py; fi

test-real: env-test ## checks on real scans (UAD_REAL_DATA), about half an hour
	@python -m pytest -m real -s -rs

lint: env-lint ## style, snakemake --lint, whether uv.lock fits pyproject.toml
	@ruff check --no-cache .
	@ruff format --no-cache --check .
	@snakefmt --check --compact-diff Snakefile rules
	@snakemake --lint --configfile config.demo.yaml
	@lint-imports --no-cache
	@uv lock --quiet --check --offline || { echo "uv.lock is not that of pyproject.toml: make lock"; exit 1; }
	@diff <($(REQUIREMENTS)) envs/requirements.txt || { echo "envs/requirements.txt is not that of uv.lock: make lock"; exit 1; }

format: env-lint ## rewrite in the project's style
	@ruff check --fix .
	@ruff format .
	@snakefmt Snakefile rules

schema: env ## regenerate the config's JSON schema and docs/configuration.md
	@python -m uad.config

picture: demo ## docs/workflow.svg, which the README shows: the stages of the demo
	@cp results-demo/figures/workflow.svg docs/workflow.svg

lock: env-lint ## uv.lock, envs/requirements.txt and envs/*.yaml from pyproject.toml
	@uv lock --default-index https://pypi.org/simple
	@$(REQUIREMENTS) > envs/requirements.txt
	@python tests/tools/conda_envs.py --write

clean-env: ## remove .venv and the downloaded packages
	rm -rf .venv .uad/cache

bench: env ## speed on the CPU against the reference path, up to 10 minutes on 2 cores
	@python benchmarks/measure_speed.py

bench-gpu: env ## all figures of a GPU
	@python benchmarks/measure_speed.py --device cuda
