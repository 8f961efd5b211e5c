PYTHON ?= python3
BIN = .venv/bin

help:  ## say what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: .venv/ready  ## fill in the dummy data and serve on http://127.0.0.1:5000
	$(BIN)/python seed.py
	$(BIN)/python course_api.py

test: .venv/ready-dev  ## run the tests, on SQLite or on the server that TEST_DATABASE_URL names
	$(BIN)/python -m pytest

fuzz: .venv/ready-dev  ## try tens of thousands of made-up requests
	$(BIN)/python tests/fuzz.py

torture: .venv/ready-dev  ## kill, fill, lock and overload the API, for five minutes
	$(BIN)/python tests/torture.py

audit: .venv/ready-dev  ## look the dependencies up among the known vulnerabilities
	$(BIN)/pip-audit --requirement requirements.txt --no-deps --disable-pip

lint: .venv/ready-dev  ## check style and common faults
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready-bench  ## measure the API beside its peers, and on larger catalogues (needs wrk, and node for one peer)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/bench.py compare
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/bench.py growth

clean:  ## remove the virtual environment and caches, not the database
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis __pycache__ tests/__pycache__

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
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
