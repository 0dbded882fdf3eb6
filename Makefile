# One front door: people and continuous integration run the same commands.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo demo-alert test lint types check unit slow proto bench zoo scoreboard clean

help:
	@echo "make demo   train a backdoored model on the digits, guard it, serve it, attack it; one table"
	@echo "make demo-alert   watch that server with Prometheus, attack it, see the alert fire"
	@echo "make test   lint, types and all tests"
	@echo "make unit   the tests alone        make check   lint and types alone"
	@echo "make slow   the tests that take minutes: a hundred thousand malformed requests (FUZZ_REQUESTS), a soak (SOAK_MINUTES)"
	@echo "make scoreboard   every attack against every detector (hours, resumable); QUICK=1 on the digits alone (minutes)"
	@echo "make zoo   train the backdoored models that it needs (hours, resumable)"
	@echo "make bench  the figures of benchmarks/results.md        make proto   regenerate serving/_pb"

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(RUN)/python examples/demo.py

demo-alert: $(READY)
	@sh deploy/prometheus/install.sh
	@$(RUN)/python -m examples.demo_alert

test: check unit

check: lint types

lint: $(READY)
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .

types: $(READY)
	@$(RUN)/mypy

unit: $(READY)
	@$(RUN)/python -m pytest

slow: $(READY)
	@$(RUN)/python -m pytest -m slow

proto: $(READY)
	@$(RUN)/python proto/generate.py

bench: $(READY)
	@$(RUN)/python -m benchmarks

zoo: $(READY)
	@$(RUN)/python -m benchmarks.zoo

scoreboard: $(READY)
	@$(RUN)/python -m benchmarks.board $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
