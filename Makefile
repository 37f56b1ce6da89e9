# make serve [MODEL=<directory or Hugging Face id>] [ARGS="--port 8080"]; without MODEL, the demo model
# make test | lint | bench | constraints | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -b constraints.txt

# $(call phase,what it does,command) prints what it does, runs the command, and prints the seconds it took.
phase = @printf 'set-up: %s ... ' '$(1)'; start=$$(date +%s); { $(2); } && echo "$$(( $$(date +%s) - start )) s"

.PHONY: serve test lint format bench constraints clean

serve: $(VENV)/.installed
	$(BIN)/ryzjax serve $(if $(MODEL),"$(MODEL)") $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/ryzjax bench offline $(if $(MODEL),"$(MODEL)") $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip's resolver can take ten minutes on the extras; uv takes seconds.
$(VENV)/bin/uv:
	$(call phase,creating $(VENV),$(PYTHON) -m venv $(VENV))
	$(call phase,installing uv,$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv)

# The kernels are compiled at install.
NATIVE := hatch_build.py ryzjax/native/CMakeLists.txt $(wildcard ryzjax/native/src/*)

$(VENV)/.packages: $(VENV)/bin/uv pyproject.toml constraints.txt
	$(call phase,downloading packages and compiling their bytecode,$(INSTALL) --compile-bytecode -r pyproject.toml)
	@touch $@

$(VENV)/.installed: $(VENV)/.packages $(NATIVE)
	$(call phase,compiling the CPU kernels,$(INSTALL) --no-deps -e .)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call phase,downloading the tools of development,$(INSTALL) -r pyproject.toml --extra dev)
	@touch $@

# Pinned versions without hosts: what `make` installs everywhere, for every supported Python.
constraints: $(VENV)/bin/uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --extra dev pyproject.toml -o constraints.txt
	@echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" >> constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist
