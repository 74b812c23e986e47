# Every target is one line of gfe-study. The environment is made once, and again when pyproject.toml or constraints.txt changes.
#   make sweep SPACE=amd [DATASET=mnist] [TRIALS=20] [SEEDS=3] [STUDY=name] [CPUS=1] [GPUS=0.5]
#                        [ADDRESS=auto] [STORAGE=folder or URL] [QUOTA=GB] [REUSE=no] [SET="key=value key=value"]

PYTHON ?= python3
VENV := .venv
GFE := $(VENV)/bin/gfe-study
READY := $(VENV)/.installed
INSTALLING := $(VENV)/.installing
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check
UV := $(VENV)/bin/uv --quiet
PACKAGES := --constraint constraints.txt --editable '.[analysis,dev]'
# The installers leave compiling to the first start. Images of Python often set this variable, and then every start and
# every worker compiles everything again.
unexport PYTHONDONTWRITEBYTECODE
LABEL = $(or $(STUDY),$(SPACE))

set_flags = $(if $(DATASET),--dataset $(DATASET)) $(foreach pair,$(SET),--set $(pair))
plan_flags = $(set_flags) $(if $(STUDY),--study $(STUDY)) $(if $(TRIALS),--trials $(TRIALS)) \
	$(if $(SEEDS),--seeds $(SEEDS)) $(if $(STORAGE),--storage $(STORAGE)) $(resource_flags) \
	$(if $(filter no,$(REUSE)),--no-reuse)
resource_flags = $(if $(CPUS),--cpus-per-trial $(CPUS)) $(if $(GPUS),--gpus-per-trial $(GPUS))
run_flags = $(if $(ADDRESS),--address $(ADDRESS)) $(if $(QUOTA),--quota-gb $(QUOTA))
storage_flag = $(if $(STORAGE),--storage $(STORAGE))

.PHONY: help install constraints space sweep resume plan spaces status report ui doctor docs bench test test-slow lint clean
.DEFAULT_GOAL := help

help:
	@echo "make sweep SPACE=amd     run, extend or continue a study; make spaces lists them"
	@echo "make plan SPACE=amd      what it would run, and how long that takes"
	@echo "make resume SPACE=amd    continue an interrupted study"
	@echo "make status              trials by state"
	@echo "make report SPACE=amd    a study's verdict, figures and tables"
	@echo "make ui [SPACE=amd]      the MLflow UI, on another port with PORT=5001"
	@echo "make doctor              check versions, devices, data and the store"
	@echo "make bench               benchmarks; PART=encoding DATASET=digits for one"
	@echo "make docs                the documentation as a site: site/index.html"
	@echo "make constraints         renew constraints.txt with the newest versions"
	@echo "make test                the tests; make test-slow the long ones; make lint"
	@echo "make install             only the environment; make clean removes it"
	@echo "sweep also takes DATASET TRIALS SEEDS STUDY CPUS GPUS ADDRESS STORAGE QUOTA"
	@echo "REUSE and SET: see docs/studies.md"

install: $(READY)

# An interrupted installation leaves .installing behind, and the next one starts afresh.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); allowed: Python 3.11 or newer, as PYTHON=…" >&2; exit 2; }
	@echo "installing into $(VENV): once, about a minute; torch is a large download …" >&2
	@test ! -e $(INSTALLING) || rm -rf $(VENV)
	@mkdir -p $(VENV) && touch $(INSTALLING)
	@$(PYTHON) -m venv $(VENV)
	@rm -rf gfe_study.egg-info  # left by versions before 0.2, and read as the installed version
	@{ $(PIP) uv 2>/dev/null && $(UV) pip install --python $(VENV)/bin/python $(PACKAGES); } || \
		{ echo "uv is not available or failed: installing with pip, which takes about two minutes …" >&2; \
		$(PIP) $(PACKAGES); }
	@mv $(INSTALLING) $@

constraints: $(READY)
	@$(PIP) uv
	@{ grep '^#' constraints.txt; $(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate; } > $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

space:
	@test -n "$(SPACE)" || { echo "error: SPACE is not given; try make spaces, then make sweep SPACE=amd" >&2; exit 2; }

sweep: $(READY) space
	@$(GFE) sweep $(SPACE) $(plan_flags) $(run_flags)

plan: $(READY) space
	@$(GFE) plan $(SPACE) $(plan_flags)

resume: $(READY) space
	@$(GFE) resume $(LABEL) $(resource_flags) $(run_flags) $(storage_flag)

spaces: $(READY)
	@$(GFE) spaces

status: $(READY)
	@$(GFE) status $(LABEL) $(storage_flag)

report: $(READY) space
	@$(GFE) report $(LABEL) $(storage_flag)

doctor: $(READY)
	@$(GFE) doctor $(storage_flag)

ui: $(READY)
	@$(GFE) ui $(LABEL) $(if $(PORT),--port $(PORT))

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet && echo site/index.html

bench: $(READY)
	@$(VENV)/bin/python -m benchmarks $(PART) --data $(or $(DATASET),mnist)

test: $(READY)
	@$(VENV)/bin/pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	@$(VENV)/bin/pytest -m slow -rs --durations 15 -n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy gfe_study benchmarks
	@MYPYPATH=tests $(VENV)/bin/mypy tests  # which import one another

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
