# Every target does all of its own set-up, in .venv, on a machine that has only Python and make.
# .venv belongs to this file: a set-up that was interrupted is thrown away and made anew.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Tools that a test starts (ninja, torchrun, accelerate, rlhf-kit) are found in .venv first.
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-real check bench bench-reward bench-ppo schemas clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  ARGS=... is handed on, e.g. make quickstart ARGS='ppo.kl_coef=0.1' or make test ARGS='-k gae'"

# The stamps are removed before an install starts and written after it ended: without a stamp, .venv is not trusted.
# torch comes first, so that no other package's open range can choose another build of it.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("rlhf-kit needs Python 3.10 or newer: make PYTHON=/path/to/python3")'
	@if [ -f $@ ]; then rm -f $(VENV)/.base $(VENV)/.dev; else $(PYTHON) -m venv --clear $(VENV); fi
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $(VENV)/.base

# DeepSpeed comes as a source archive. DS_BUILD_OPS=0 compiles nothing now; the one operation that the CPU needs is
# compiled at the first start (ninja from the extra, a C++ compiler of the machine) and kept in torch's cache.
$(VENV)/.dev: $(VENV)/.base
	@rm -f $(VENV)/.base $(VENV)/.dev
	DS_BUILD_OPS=0 $(INSTALL) -e '.[dev,data,quant,deepspeed,judge,label,tasks]'
	@touch $(VENV)/.base $(VENV)/.dev

quickstart: $(VENV)/.base ## SFT, reward model and PPO on SmolLM2-135M; the page is runs/quickstart/report.html
	$(BIN)/rlhf-kit run recipes/quickstart.yaml $(ARGS)

test: $(VENV)/.dev ## all tests but the slow ones, on two processes
	$(PYTEST) -n 2 --dist loadfile $(ARGS)

# Pages are tested in a real browser: the distribution's own, fetched where this may be done without asking.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
		echo "no chromium here and no right to install one: the browser tests will be skipped"

test-slow: $(VENV)/.dev browser ## tests that need environments of their own, several processes or a browser
	DS_ACCELERATOR=cpu $(PYTEST) -m slow -n 2 --dist loadfile $(ARGS)

# The test is left out of `test-slow` where these are missing: a desktop's parts are much to ask of every machine.
.PHONY: test-screen-reader
test-screen-reader: $(VENV)/.dev browser ## the page for labelers by ear: Orca, installed where this may be done without asking
	@command -v orca >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends orca at-spi2-core xvfb openbox \
		xdotool dbus-daemon speech-dispatcher python3-pyatspi gir1.2-wnck-3.0 >/dev/null; }
	$(PYTEST) -m slow tests/slow/test_label_screen_reader.py $(ARGS)

.PHONY: test-label-studio
test-label-studio: $(VENV)/.dev browser ## there and back through Label Studio itself, which it installs apart (1 GB)
	RLHF_KIT_LABEL_STUDIO=1 $(PYTEST) -m slow tests/slow/test_label_studio.py $(ARGS)

# The folder holds other people's datasets, which are not part of this repository.
DATA ?= ../shared/data
test-real: $(VENV)/.dev ## converts and validates real datasets: make test-real DATA=folder
	RLHF_KIT_REAL_DATA="$(abspath $(DATA))" $(PYTEST) tests/real $(ARGS)

check: $(VENV)/.dev ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## the scripts of benchmarks/ that need nothing else, one after another
	@set -e; for script in benchmarks/bench_rollout.py benchmarks/bench_validate.py; do \
		echo "== $$script"; $(BIN)/python $$script $(ARGS); done

# TRL in an environment of its own, so that it is measured with its own dependencies and nothing of the kit.
PEER := .venv-trl
$(PEER)/.made: constraints.txt
	@rm -rf $(PEER)
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(PEER)/bin/python -m pip install --disable-pip-version-check -c constraints.txt 'trl==1.16.*' transformers peft accelerate
	@touch $@

K ?= 6
bench-reward: $(VENV)/.dev $(PEER)/.made ## a reward step beside TRL's: K=6 answers a prompt, or K=all for the table
	$(BIN)/python benchmarks/bench_reward.py --k $(K) $(ARGS)

# The last TRL that had PPO, with the versions of everything else that the kit is measured with.
PPO_PEER := .venv-trl-ppo
$(PPO_PEER)/.made: constraints.txt
	@rm -rf $(PPO_PEER)
	$(PYTHON) -m venv $(PPO_PEER)
	grep -v '^trl==' constraints.txt > $(PPO_PEER)/constraints.txt
	$(PPO_PEER)/bin/python -m pip install --disable-pip-version-check -c $(PPO_PEER)/constraints.txt torch
	$(PPO_PEER)/bin/python -m pip install --disable-pip-version-check -c $(PPO_PEER)/constraints.txt \
		'trl==1.12.*' transformers peft accelerate rich
	@touch $@

bench-ppo: $(VENV)/.dev $(PPO_PEER)/.made ## an update of PPO beside TRL 1.12's: time, memory, where they go
	$(BIN)/python benchmarks/bench_ppo.py --sizes $(ARGS)

schemas: $(VENV)/.base ## write data_schemas/ anew from the records
	$(BIN)/python -m rlhf_kit.schemas data_schemas

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) $(PEER) $(PPO_PEER) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +
