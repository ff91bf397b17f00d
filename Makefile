# The verbs of the project; CI calls the same ones. Needs Python 3.11+ and make; everything else is set up here,
# pinned by uv.lock, with the machine's own pip configuration (mirror, proxy, CA).
PYTHON ?= python3
BIN    := .venv/bin
SOURCE := $(shell find forwarder -type f -not -path '*/__pycache__/*') pyproject.toml

# uv.lock names no registry (see `lock`), so uv is told the placeholder that stands in it.
OFFLINE := UV_DEFAULT_INDEX=https://registry.invalid/simple $(BIN)/uv
EXPORT  := $(OFFLINE) export --quiet --frozen --no-emit-project --no-default-groups
PIP     := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test check docs bench fuzz interop torture format lock clean

run: .venv/.run
	@$(BIN)/litellm-forwarder run --config config.toml

test: .venv/.dev           ## ARGS="-k spool" narrows it
	$(BIN)/pytest -n auto $(ARGS)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(OFFLINE) lock --check --offline --quiet

docs: .venv/.dev
	$(BIN)/python docs/generate.py

bench: .venv/.dev
	$(BIN)/python benchmarks/run.py

fuzz: .venv/.fuzz          ## SECONDS=60 for each target
	$(BIN)/python tests/fuzz/fuzz_all.py $(or $(SECONDS),60)

interop: .venv/.dev       ## against real LiteLLM releases and real metrics servers, which it installs for itself
	cd tests && ../$(BIN)/python -m interop.install
	INTEROP=1 $(BIN)/pytest -n 0 tests/interop $(ARGS)

torture: .venv/.dev       ## ARGS="--seconds 300 --seed 1 --targets 10"; how to read it: docs/operations.md
	cd tests && ../$(BIN)/python -m torture.storm $(ARGS)

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Resolve anew, then take the registry's host out: whoever installs uses their own.
lock: .venv/.uv
	$(BIN)/uv lock $(ARGS)
	sed -i -E 's#https?://[^/"]+/#https://registry.invalid/#g' uv.lock

clean:
	rm -rf .venv build dist

.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or later; set PYTHON=python3.12, say" >&2; exit 1; }
	@echo "setting up .venv" >&2
	@$(PYTHON) -m venv .venv
	@$(PIP) install "uv>=0.8,<1"
	@touch $@

# What the agent needs, by hash; then the agent itself, built and installed as the wheel that users get.
.venv/.deps: uv.lock .venv/.uv
	@$(EXPORT) --group build > .venv/requirements.txt
	@$(PIP) install --require-hashes -r .venv/requirements.txt
	@touch $@

.venv/.run: .venv/.deps $(SOURCE)
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir .venv/wheel .
	@$(PIP) install --no-deps --no-index --force-reinstall .venv/wheel/*.whl
	@touch $@

.venv/.devdeps: .venv/.deps
	@$(EXPORT) --all-groups --no-group fuzz > .venv/requirements-dev.txt
	@$(PIP) install --require-hashes -r .venv/requirements-dev.txt
	@touch $@

.venv/.fuzz: .venv/.dev
	@$(EXPORT) --only-group fuzz > .venv/requirements-fuzz.txt
	@$(PIP) install --require-hashes -r .venv/requirements-fuzz.txt
	@touch $@

.venv/.dev: .venv/.devdeps .venv/.run
	@touch $@
