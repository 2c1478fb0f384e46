PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
SEED ?= 0
BIN = $(VENV)/bin
# Huge pages for large arrays, and memory kept from step to step: a training step on a CPU otherwise spends a third of its
# time on page faults.
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:glibc.malloc.trim_threshold=8000000000

help:
	@echo "make demo       install, render scenes, train, evaluate, report ($(WORKDIR)/report.html); minutes on two cores"
	@echo "make demo-long  the same for an hour or more, all four tasks; resumable"
	@echo "make test       install and run the tests (minutes); make test-slow adds the long ones"
	@echo "make plan-all   memory, time and days of all recipes on TPUs and GPUs, into docs/scaling.md; hours, resumable"
	@echo "make lint       ruff and the floors of the folders; make format applies its layout"
	@echo "variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKDIR=$(WORKDIR) SEED=$(SEED)"

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/vlm3 demo --workdir=$(WORKDIR) --config.seed=$(SEED)

demo-long: $(VENV)/.demo
	$(BIN)/vlm3 demo --config=demo:long --workdir=$(WORKDIR)-long --scenes=12000 --config.seed=$(SEED)

# The tests' many processes need not compile the package each time.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q

test: $(VENV)/.dev
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

test-gpu: $(VENV)/.dev
	JAX_PLATFORMS=cuda,cpu $(PYTEST) -m gpu

test-tpu: $(VENV)/.dev
	$(PYTEST) -m tpu

plan-all: $(VENV)/.dev
	$(BIN)/python tools/plan_all.py docs/scaling.md

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .

.PHONY: help demo demo-long test test-slow test-gpu test-tpu plan-all lint format
