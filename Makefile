# `make demo` trains a small CLIP and reports how good it is; `make test` runs the tests. Both make their environment.

PYTHON ?= python3
VENV   := .venv
PEER   := .venv-peer
BIN    := $(VENV)/bin

# One thread a process, and one process more than two cores have: many tests wait for other processes. A process that
# crashes ends the run: one that took its place could wait for ever for the tests of a file that the crashed one had.
XDIST       := -n 3 --max-worker-restart 0
PYTEST      := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(XDIST)
PYTEST_PEER := OMP_NUM_THREADS=1 $(PEER)/bin/python -m pytest $(XDIST)

# PyTorch's CPU build where the index has it; what is locked and nothing else; what the other build needs; ourselves.
define install
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/cpu.lock 2>/dev/null || true
	$(BIN)/pip install --quiet --no-deps --require-hashes $(patsubst %,-r requirements/%.lock,$(1))
	$(BIN)/pip check >/dev/null || $(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/cuda.lock
	$(BIN)/pip check
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@
endef

.PHONY: demo docs test test-all check unit faults parity env peer lock clean

demo: $(VENV)/.demo             ## train on drawn scenes, evaluate, write a report
	$(BIN)/lakeclip demo

docs: $(VENV)/.docs             ## the documentation as pages, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html; its search needs a server: $(BIN)/python -m http.server -d site"

test: env                       ## what every change has to pass: some minutes on two cores
	$(PYTEST)

test-all: test peer             ## that, what is slow (CONTRIBUTING.md lists it), and what needs the second environment
	$(PYTEST) -m slow
	$(PYTEST_PEER) -m "" tests/parity tests/contract/test_train_clip_finetune.py

check: env                      ## what CI runs before the tests: style, types, import rules, docstrings, vulnerabilities, licences
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/contract/test_docstrings.py
	$(BIN)/python requirements/audit.py
	$(BIN)/python requirements/licences.py

unit: env                       ## the quick tests alone
	$(PYTEST) tests/unit

faults: env                     ## write docs/reference/faults.md anew, from what its tests see
	FAULTS=write OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/integration/test_faults_*.py

parity: peer                    ## write docs/reference/parity.md anew, from what its tests measure
	rm -f docs/reference/parity.md
	PARITY=write OMP_NUM_THREADS=1 $(PEER)/bin/python -m pytest -m "" \
		tests/unit/checkpoints/test_huggingface.py tests/parity/test_open_clip_family.py

env: $(VENV)/.dev

peer: $(PEER)/.ready            ## a second environment with open_clip, torchvision and timm (about 6 GB)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml requirements/demo.lock | $(VENV)/bin/python
	$(call install,demo)

$(VENV)/.docs: pyproject.toml requirements/demo.lock requirements/docs.lock | $(VENV)/bin/python
	$(call install,demo docs)
	touch $(VENV)/.demo

$(VENV)/.dev: pyproject.toml requirements/demo.lock requirements/docs.lock requirements/dev.lock | $(VENV)/bin/python
	$(call install,demo docs dev)
	touch $(VENV)/.demo $(VENV)/.docs

# The ordinary build of PyTorch: torchvision has no other.
$(PEER)/.ready: pyproject.toml requirements/dev.lock requirements/peer.lock
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --no-deps --require-hashes $(patsubst %,-r requirements/%.lock,demo docs dev cuda peer)
	$(PEER)/bin/pip install --quiet --no-deps -e .
	touch $@

lock: env                       ## newer versions of everything, in requirements/*.lock
	$(BIN)/python requirements/lock.py
	$(MAKE) env
	$(BIN)/python requirements/licences.py --write

clean:
	rm -rf $(VENV) $(PEER) site
