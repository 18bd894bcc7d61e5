PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
# Single tests spread over the cores better than whole files do; loadgroup keeps those together that share a fixture.
# Two more than there are processors: many tests wait for real components.
PARALLEL := -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2) --dist loadgroup
UNIT := -m "not e2e and not edges and not slow"
# With it, each of hundreds of processes would compile whatever it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check slow lint unit test-all fuzz chaos coverage bench engines peers docs dashboards preview pictures vendor clean help

demo: $(VENV)/.exporter  ## Install, run the example workflows, and serve the API, the page and the metrics
	$(BIN)/tachograph demo $(DEMO_OPTIONS)

# What is installed comes from different places, so it does at once; a virtual environment may need a system package.
test: $(BIN)/python  ## Install everything the tests need, then run `make check`
	$(MAKE) --jobs=3 $(VENV)/.test node-packages own-environments
	$(MAKE) check

.PHONY: own-environments
own-environments: $(VENV)/.test
	$(BIN)/python -m tests.engines.run --install dagster prefect

# The types are checked beside the tests, because mypy uses one processor alone; what it says comes last.
check: $(VENV)/.test  ## Format, lint, types and all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@types=$$(mktemp); $(BIN)/mypy >"$$types" 2>&1 & mypy=$$!; \
	$(BIN)/pytest $(PARALLEL) -m "not slow" $(PYTEST_OPTIONS); tests=$$?; \
	wait $$mypy; types_checked=$$?; cat "$$types"; rm -f "$$types"; \
	[ $$tests = 0 ] && [ $$types_checked = 0 ]

slow: $(VENV)/.test system-packages  ## The tests that take longest: alerts over simulated weeks, a fortnight of two services
	$(BIN)/pytest $(PARALLEL) -m slow $(PYTEST_OPTIONS)

lint: $(VENV)/.test  ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.test  ## The unit tests; tests of the edges and of real components are left to `make check`
	$(BIN)/pytest $(PARALLEL) $(UNIT) $(PYTEST_OPTIONS)

# One virtual environment per Python: .venv-3.12 and so on.
test-all:  ## The unit tests and those of the edges on every supported Python that is installed
	@failed=""; tested=""; \
	for version in 3.11 3.12 3.13; do \
	  python=""; \
	  for candidate in "$$HOME"/.pyenv/versions/$$version.*/bin/python "$$(command -v python$$version)"; do \
	    if [ -x "$$candidate" ] && "$$candidate" -c '' 2>/dev/null; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then echo "Python $$version is not installed: skipped"; continue; fi; \
	  echo "Python $$version: $$python"; tested="$$tested $$version"; \
	  $(MAKE) --no-print-directory unit UNIT='-m "not e2e and not slow"' VENV=.venv-$$version PYTHON="$$python" || failed="$$failed $$version"; \
	done; \
	if [ -z "$$tested" ]; then echo "no supported Python is installed" >&2; exit 1; fi; \
	if [ -n "$$failed" ]; then echo "failed on Python:$$failed" >&2; exit 1; fi; \
	echo "passed on Python:$$tested"

# Ten minutes for each database; `make check` has a few seconds of it.
fuzz: $(VENV)/.test system-packages  ## Made-up requests to every route, for 20 minutes: no 5xx, nothing over 2 s, memory under 300 MB
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/pytest tests/e2e/test_fuzz.py -n 0 -q

chaos: $(VENV)/.test system-packages  ## Faults of twenty kinds under load, ten minutes on each database: nothing lost, doubled or stuck
	$(BIN)/python -m tests.chaos --seconds $${CHAOS_SECONDS:-600} --database $${CHAOS_DATABASE:-both}

coverage: $(VENV)/.test  ## The unit tests with a coverage report; PYTEST_OPTIONS='-m ""' for all tests
	$(BIN)/pytest $(PARALLEL) $(UNIT) --cov --cov-report=term $(PYTEST_OPTIONS)

bench: $(VENV)/.exporter  ## Benchmarks beside the alternatives
	$(BIN)/python $(PIP) --editable '.[bench,postgres]'
	$(BIN)/python benchmarks/run.py

# `make engines ENGINE="prefect airflow"`: these alone; ENGINE_OPTIONS=--record writes the recordings that `make check` replays.
engines: $(VENV)/.test system-packages  ## Start real engines, each in its own environment, and compare their runs with what they say
	$(BIN)/python -m tests.engines.run $(ENGINE) $(ENGINE_OPTIONS)

peers:  ## Benchmarks beside Prefect, Dagster and Temporal; each is installed in its own environment
	$(BIN)/python benchmarks/peers/run.py

docs: $(VENV)/.test  ## Write the generated parts of the docs
	$(BIN)/python tools/docs.py

dashboards: $(VENV)/.test  ## Write the dashboards and rules from their code and thresholds
	$(BIN)/python dashboards/generate.py

preview: $(VENV)/.test system-packages  ## Draw the dashboards with data from a real Prometheus
	$(BIN)/python tools/preview.py

pictures: $(VENV)/.test system-packages  ## Take the screenshots in the docs from real runs
	$(BIN)/python tools/pictures.py

vendor:  ## Fetch the page's libraries from npm at the versions in their manifest
	$(PYTHON) tools/vendor.py --fetch

# Prometheus with promtool, Alertmanager, PostgreSQL, faketime, Redis, Chromium and Node.js. Only root can install them.
.PHONY: system-packages node-packages
system-packages:  ## Install the system packages the tests need
	@missing=""; \
	command -v promtool >/dev/null 2>&1 || missing="$$missing prometheus"; \
	command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v prometheus-alertmanager >/dev/null 2>&1 || missing="$$missing prometheus-alertmanager"; \
	command -v faketime >/dev/null 2>&1 || missing="$$missing faketime"; \
	command -v redis-server >/dev/null 2>&1 || missing="$$missing redis-server"; \
	command -v chromium >/dev/null 2>&1 || missing="$$missing chromium fonts-dejavu-core"; \
	command -v npm >/dev/null 2>&1 || missing="$$missing nodejs npm"; \
	if [ -z "$$missing" ]; then \
	  echo "system packages: all present"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "installing system packages:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
	  echo "some tests will be skipped; install what they need: sudo apt-get install$$missing" >&2; \
	fi

# From npm: an OpenTelemetry exporter of another language, trace viewers, an accessibility checker.
node-packages: system-packages tests/node/node_modules/.installed

tests/node/node_modules/.installed: tests/node/package.json
	@if command -v npm >/dev/null 2>&1; then \
	  cd tests/node && npm install --no-package-lock --no-audit --no-fund --loglevel=error && touch ../../$@; \
	fi

$(BIN)/python:
	@echo "making $(VENV), and installing what the commands need: about a minute"
	@$(PYTHON) -m venv $(VENV) || { \
	  [ "$$(id -u)" = 0 ] && rm -rf $(VENV) && echo "installing system packages: python3-venv" && \
	  apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); }

$(VENV)/.exporter: $(BIN)/python pyproject.toml
	@$(BIN)/python $(PIP) --editable '.[exporter]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python $(PIP) --editable '.[exporter,test]'
	touch $@ $(VENV)/.exporter

# The page's scripts, styles and documents. `check` includes them only where the npm packages are installed (make node-packages).
.PHONY: check-js format-js
WEB := exporter/tachograph_exporter/web
PRETTIER := tests/node/node_modules/.bin/prettier --config tools/prettier.json
ESLINT := tests/node/node_modules/.bin/eslint --config tools/eslint.config.mjs

check: $(if $(wildcard tests/node/node_modules/.bin/prettier),check-js)

check-js:  ## Format and lint of the page
	$(PRETTIER) --check $(WEB) tools/eslint.config.mjs '!$(WEB)/vendor'
	$(ESLINT) $(WEB)

format-js:  ## Format the page
	$(PRETTIER) --write $(WEB) tools/eslint.config.mjs '!$(WEB)/vendor'

clean:  ## Remove environments, caches and builds
	rm -rf $(VENV) .venv-3.* .venv-engines .mypy_cache .pytest_cache .ruff_cache .coverage* htmlcov dist

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 18
