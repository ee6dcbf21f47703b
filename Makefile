# Two commands: `make quickstart` and `make test`.
# Both make their own .venv; with PYTHON=/path/to/python they use that environment instead, and add what it lacks.

ifeq ($(origin PYTHON), undefined)
  PYTHON := .venv/bin/python
  ENVIRONMENT := .venv/bin/python
endif

.PHONY: help quickstart test lint install clean

help:
	@echo "make quickstart   install, then doctor, short tuning, export, load, training; on the CPU, under 6 minutes"
	@echo "make test         install if needed, lint, types, tests by folder; ONLY='house ops' runs some folders"
	@echo "make lint         ruff and mypy alone"

quickstart: install
	@$(PYTHON) .ci/quickstart

test: install
	@$(PYTHON) .ci/test $(ONLY)

lint:
	@$(PYTHON) -m ruff check .
	@$(PYTHON) .ci/types

install: $(ENVIRONMENT)
	@$(PYTHON) .ci/install

.venv/bin/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is older than 3.11: give PYTHON=/path/to/python")'
	@python3 -m venv .venv

clean:
	rm -rf build dist .venv
