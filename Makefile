# KBrain: everything a fresh machine needs is Python 3.11+ and make.
#   make demo    raw tiles -> a 3D volume in the browser, on the sample, through a Galaxy of your own
#   make test    set up and pass every suite
#   make help    the other targets

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find kbrain_core kbrain_galaxy -name '*.py' -o -name '*.html') $(shell find tools workflows -type f) \
  pyproject.toml setup.py requirements/galaxy.txt requirements/planemo.txt
VIEWER_SOURCES := $(shell find viewer -type f -not -path '*/node_modules/*' -not -path '*/dist/*')
VIEWER := kbrain_core/visualization/kneuroviz/index.html

.PHONY: help setup viewer environments demo demo-cli demo-stop test test-core test-galaxy check generate lock bench clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/	/' | expand -t 14

setup: $(VENV)/.installed ## make .venv with KBrain and all it needs

# Three steps, each redone only when what it was made from changes.
$(VENV)/.libraries: requirements/core.txt requirements/dev.txt
	@echo "Setting up $(VENV): libraries (a minute or two on a new machine)"
	@$(PYTHON) -c 'import sys; sys.exit("KBrain needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on --require-hashes -r requirements/core.txt -r requirements/dev.txt
	@touch $@

viewer: $(VIEWER) ## build the KNeuroViz page (Neuroglancer) into the package
$(VIEWER): $(VENV)/.libraries $(VIEWER_SOURCES)
	@$(BIN)/python viewer/build.py && touch $@

$(VENV)/.installed: $(VENV)/.libraries $(VIEWER) $(SOURCES)
	@echo "Setting up $(VENV): the kbrain command"
	@rm -rf build/lib build/bdist.* && $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --force-reinstall .
	@touch $@

environments: setup ## make the environments of Galaxy and planemo in .envs
	@$(BIN)/python -m kbrain_galaxy.environment galaxy planemo

demo: setup ## the whole pipeline on the sample, by the workflow on a Galaxy of your own, then the view's address
	$(BIN)/kbrain-galaxy start
	$(BIN)/kbrain-galaxy run tiles-to-volume test-data/sample/tiles --output build/demo-galaxy
	@echo "Galaxy runs in the background; end it with 'make demo-stop'"

demo-cli: setup ## the same by the library's commands alone, without Galaxy
	@$(BIN)/python demo/cli_demo.py

demo-stop: ## end the Galaxy and the viewer that the demos left running
	@$(BIN)/python demo/cli_demo.py --stop
	@$(BIN)/kbrain-galaxy stop

test: environments ## every suite, with its time
	@$(BIN)/python tests/run_suites.py

test-core: setup ## the core library's suites alone
	@$(BIN)/python tests/run_suites.py core viewer

test-galaxy: environments ## the tools, the workflows and the embedded Galaxy alone
	@$(BIN)/python tests/run_suites.py wrappers galaxy

check: setup ## lint and types alone
	@$(BIN)/python tests/run_suites.py check

generate: setup ## renew what is made from the stages' signatures (the reference page)
	@$(BIN)/python docs/make_reference.py

lock: $(VENV)/.libraries ## renew the hashed locks in requirements/
	@$(BIN)/python requirements/lock.py

bench: setup ## the benchmarks beside their peers (about an hour; peers get environments of their own in .envs)
	@$(BIN)/python benchmarks/run_all.py

clean: ## remove what was built; data and environments stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
