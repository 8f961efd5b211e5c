PYTHON ?= python3
MARKERS ?= not integration
BIN = .venv/bin

help:  ## list what you can make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: .venv/ready  ## add the dummy data and serve on http://127.0.0.1:5000
	$(BIN)/python seed.py
	$(BIN)/python course_api.py

test: .venv/ready-dev  ## run the tests that need only Python and curl; MARKERS= runs all of them
	$(BIN)/python -m pytest -m "$(MARKERS)"

fuzz: .venv/ready-dev  ## send tens of thousands of random requests
	$(BIN)/python tests/fuzz.py

torture: .venv/ready-dev  ## kill, fill, lock and overload the API for ten minutes
	$(BIN)/python tests/torture.py

audit: .venv/ready-dev  ## check the dependencies for known vulnerabilities
	$(BIN)/pip-audit --requirement requirements.txt --no-deps --disable-pip

lint: .venv/ready-dev  ## check style and common faults
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready-bench  ## compare the API with its peers, and on larger catalogues (needs wrk, and node for one peer)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/bench.py compare growth walk

clean:  ## remove the virtual environment and caches, but not the database
	rm -rf .venv .venv-tools .pytest_cache .ruff_cache .hypothesis __pycache__ tests/__pycache__

.venv/ready: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12')"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/ready-dev: requirements-dev.txt requirements-servers.txt .venv/ready
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

.venv/ready-bench: benchmarks/requirements.txt benchmarks/package.json .venv/ready
	$(BIN)/pip install --quiet --requirement benchmarks/requirements.txt
	if command -v npm; then npm install --prefix benchmarks --no-package-lock --no-audit --no-fund; fi
	touch $@

.PHONY: help run test fuzz torture audit lint bench clean
