# make demo   a real guest moves live between two hosts of this machine
# make test   everything that is checked
# make test-all   that, and every combination in the lab (hours)
# make lab    three real-kernel hosts to play with; make lab xen: two of them with Xen
PYTHON := $(shell for p in /usr/bin/python3 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all unit lint lab bench man lock pyz clean
help:
	@sed -n 's/^# make/make/p' Makefile

demo: packages-demo $(VENV)/ready
	$(BIN)/python -m tests.demo

# make unit   the quick tests (seconds)
unit: $(VENV)/ready
	$(BIN)/python -m pytest -q tests/unit

# more workers than two cores: tests wait, for deadlines and for guests
PYTEST := $(BIN)/python -m pytest -q -n 3 --dist worksteal
test: packages-test $(VENV)/ready
	$(PYTEST) -m "not slow" tests

test-all: packages-all $(VENV)/ready
	$(PYTEST) tests

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lab: packages-test $(VENV)/ready
	$(BIN)/python -m tests.lab $(filter xen,$(MAKECMDGOALS))

# the word of `make lab xen`
.PHONY: xen
xen: lab
	@:

# make bench   storkit against what one would run instead
bench: packages-test $(VENV)/ready
	@set -e; for script in bench/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

# make man   the manual page: build/storkit.1
man: $(VENV)/ready
	@mkdir -p build
	$(BIN)/python -m storkit.cli.manual.page > build/storkit.1

# make lock   lock the libraries in the pyz anew, by their hashes: packaging/pyz.lock
lock: $(VENV)/ready
	$(BIN)/python tools/wheels.py

# make pyz   one file that runs on any host with Python 3.11: build/storkit.pyz
pyz: $(VENV)/ready
	$(BIN)/python tools/make_pyz.py build/storkit.pyz

.PHONY: packages-demo packages-test packages-all
packages-demo:
	@tools/packages tools/demo.packages
packages-test:
	@tools/packages tools/demo.packages tools/test.packages tests/lab/packages.txt
packages-all:
	@tools/packages tools/demo.packages tools/test.packages tests/lab/packages.txt tests/lab/nvme.packages tools/all.packages

$(VENV)/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt install python3 python3-venv" >&2; exit 1; }
	@tools/packages tools/python.packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
