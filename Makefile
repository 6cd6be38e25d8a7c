# The first target that needs it creates .venv from requirements.lock. Python 3.10 to 3.13;
# another interpreter: make report PYTHON=python3.12

ifeq ($(OS),Windows_NT)
PYTHON ?= python
VENV_PYTHON := .venv/Scripts/python
else
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
endif

PROFILE ?= quick
VARIANT ?= base
SEED ?= 0

RUN := $(VENV_PYTHON) -m hd
INSTALLED := .venv/installed
export PYTHONUTF8 := 1

.PHONY: help report test test-long publish notebooks bench check lint clean

help:
	@echo "make report     train every stage, play the real games, build the HTML book"
	@echo "make test       every test but the long ones, then all notebooks against their stored outputs"
	@echo "make test-long  the tests that take minutes; a clean tree gets results/long-tests.csv"
	@echo "make publish    copy the tables and figures of a profile into results/ and figures/"
	@echo "make notebooks  execute the book's notebooks in place at smoke, after changing one"
	@echo "make bench      side-by-side timings, about a quarter of an hour, idle"
	@echo "make check      validate data, model and mask"
	@echo "make lint       ruff"
	@echo "make clean      remove .venv and caches; trained runs in .artifacts stay"
	@echo "settings        PROFILE=$(PROFILE) VARIANT=$(VARIANT) SEED=$(SEED) PYTHON=$(PYTHON)"

report: $(INSTALLED)
	$(RUN) report --profile $(PROFILE) --variant $(VARIANT) --seed $(SEED)

test: $(INSTALLED)
	$(VENV_PYTHON) -m pytest tests -m "not long"
	$(VENV_PYTHON) -m pytest --nbval --nbval-current-env book

test-long: $(INSTALLED)
	$(VENV_PYTHON) -m pytest tests -m long --publish

publish: $(INSTALLED)
	$(RUN) publish --profile $(PROFILE)

# What git stores is what nbval compares: smoke runs in a folder of their own, without bars.
notebooks: export HD_ARTIFACTS := $(CURDIR)/.artifacts/stored
notebooks: export TQDM_DISABLE := 1
notebooks: export WANDB_MODE := offline
notebooks: $(INSTALLED)
	$(VENV_PYTHON) -m jupyter execute --inplace --NotebookClient.record_timing=False \
		$(sort $(wildcard book/pipeline/*.ipynb)) $(sort $(wildcard book/report/*.ipynb))
	$(VENV_PYTHON) -c "from hd.book.notebooks import thin_stored; thin_stored()"

bench: $(INSTALLED)
	$(RUN) bench

check: $(INSTALLED)
	$(RUN) check

lint: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check .

# The mark of an unfinished installation becomes the stamp only at the end, so an interrupted
# installation is noticed and starts afresh. Its age is that of the start: a lock edited
# meanwhile is newer.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; (3, 10) <= sys.version_info[:2] <= (3, 13) or sys.exit('Python 3.10 to 3.13 is supported, this is ' + sys.version.split()[0] + '; choose another: make PYTHON=python3.11')"
	@$(PYTHON) -c "import os, shutil; os.path.exists('.venv/installing') and shutil.rmtree('.venv'); os.makedirs('.venv', exist_ok=True); open('.venv/installing', 'w').close()"
	@echo "Installing into .venv; the first time this takes some minutes."
	$(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install -r requirements.lock || $(PYTHON) -c "import sys; sys.exit('The versions of requirements.lock could not be installed with Python ' + sys.version.split()[0] + ' (supported: 3.10 to 3.13); the reason stands above.')"
	$(VENV_PYTHON) -m pip install --no-deps --no-build-isolation -e .
	@$(PYTHON) -c "import os; os.replace('.venv/installing', '$(INSTALLED)')"

clean:
	@$(PYTHON) -c "import pathlib, shutil; [shutil.rmtree(path, ignore_errors=True) for name in ('.venv', 'build', 'book/_build', '.pytest_cache', '.ruff_cache', '*.egg-info', '[!.]*/**/__pycache__') for path in list(pathlib.Path().glob(name))]"
