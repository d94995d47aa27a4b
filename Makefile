# Thin on purpose: every target is one command that can be typed without make.
# The environment is brought up to date first; where it is, that takes a moment and prints nothing.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
DATA    ?=
INSTALL ?=
BUNDLE  ?=
OUT     ?= gpu.json
STAGE   ?= all
SOURCES := cxr_hvd preprocess bench examples lab tests

.PHONY: help setup demo results test test-slow test-faults test-cluster test-image test-ci test-night bench gpu lint format constraints clean

help:            ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup:           ## install everything, or complete it; options: INSTALL="--offline DIR" (tools/install.sh --help)
	@tools/install.sh $(INSTALL)

demo: setup      ## train experiments on synthetic images, or on your own: DATA=/path/to/images
	@DATA="$(DATA)" jobs/demo.sh

results: setup   ## make docs/results.md again, in about two hours on two cores: DATA=/path/to/images
	@DATA="$(DATA)" jobs/results.sh

test: setup      ## run the tests that take seconds, in two processes; shows the slowest 25
	@python -m pytest -m "not slow" -n 2 --dist loadfile --durations=25 tests

test-slow: setup ## run the tests that take minutes
	@python -m pytest -m slow tests

test-faults: setup ## run the slow laws: runs that break, stop and resume
	@python -m pytest -m slow tests/laws

test-cluster: setup ## run batch scripts on a private Slurm, and jobs between two hosts; as root
	@python -m pytest -m slow tests/lab/test_slurm.py tests/lab/test_two_hosts.py

test-image: setup ## build the container image and train inside; as root
	@python -m pytest -m slow -rs -s tests/lab/test_image.py

test-ci: setup   ## run the slow tests that continuous integration has time for
	@python -m pytest -m "slow and not night" -rs --durations=25 tests/laws tests/cli tests/examples tests/lab tests/unit/doctor tests/unit/of_before

test-night: setup ## run the slow tests that continuous integration leaves out
	@python -m pytest -m night -rs --durations=25 tests

bench: setup     ## measure every part beside its peers; writes the tables in docs/performance.md
	@python -m bench.preprocess --out docs/performance.md
	@python -m bench.averaging --out docs/performance.md
	@python -m bench.slow_line --out docs/performance.md
	@python -m bench.library --out docs/performance.md
	@python -m bench.training --out docs/performance.md
	@python -m bench.start --out docs/performance.md

gpu:             ## check and measure on a GPU, without a network: BUNDLE=DIR OUT=FILE STAGE=build or measure (docs/performance.md)
	@tools/gpu.sh --bundle "$(BUNDLE)" --out "$(OUT)" --stage "$(STAGE)"

lint: setup      ## check style, imports and types; change nothing
	@ruff check $(SOURCES)
	@ruff format --check $(SOURCES)
	@lint-imports
	@mypy

format: setup    ## put the sources into the house's form
	@ruff check --fix $(SOURCES)
	@ruff format $(SOURCES)

constraints: setup ## choose the newest versions that fit; to be tested and committed
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra horovod \
	    --output-file constraints.txt setup.cfg tools/constraints.in

clean:           ## remove what was built, not the environment and not the runs
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
