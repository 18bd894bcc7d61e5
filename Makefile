PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench peers docs dashboards preview pictures vendor clean

demo: $(VENV)/.exporter  ## Install, register the example workflows, run them, serve everything
	$(BIN)/tachograph demo $(DEMO_OPTIONS)

test: $(VENV)/.test system-packages node-packages  ## Install what the tests need, then format, lint, types and all tests
	$(MAKE) check

check: $(VENV)/.test  ## Format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(PYTEST_OPTIONS)

bench: $(VENV)/.exporter  ## Measure, side by side with what one would use otherwise
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,postgres]'
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/.test  ## Write the generated parts of the docs again
	$(BIN)/python tools/docs.py

dashboards: $(VENV)/.test  ## Write dashboards and rules again, from their code and thresholds
	$(BIN)/python dashboards/generate.py

preview: $(VENV)/.test system-packages  ## Draw the dashboards with the data of a real Prometheus, for the eye
	$(BIN)/python tools/preview.py

pictures: $(VENV)/.test system-packages  ## Make the pictures in the docs again, from real runs
	$(BIN)/python tools/pictures.py

vendor:  ## Bring the page's libraries from npm again, at the versions in their manifest
	$(PYTHON) tools/vendor.py --fetch

peers:  ## The same steps on Prefect, Dagster and Temporal; installs each in an environment of its own
	$(BIN)/python benchmarks/peers/run.py

# The real Prometheus, promtool, Alertmanager, PostgreSQL, Redis and Chromium; as another user they have to be there already.
.PHONY: system-packages node-packages
system-packages:
	@missing=""; \
	command -v promtool >/dev/null 2>&1 || missing="prometheus"; \
	command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v prometheus-alertmanager >/dev/null 2>&1 || missing="$$missing prometheus-alertmanager"; \
	command -v redis-server >/dev/null 2>&1 || missing="$$missing redis-server"; \
	command -v chromium >/dev/null 2>&1 || missing="$$missing chromium fonts-dejavu-core"; \
	command -v npm >/dev/null 2>&1 || missing="$$missing nodejs npm"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else \
	    echo "Some tests need more: sudo apt-get install $$missing" >&2; \
	  fi; \
	fi

# An exporter of another language, viewers, an accessibility checker: what tests use from npm.
node-packages: system-packages tests/node/node_modules/.installed

tests/node/node_modules/.installed: tests/node/package.json
	@if command -v npm >/dev/null 2>&1; then \
	  cd tests/node && npm install --no-package-lock --no-audit --no-fund --loglevel=error && touch ../../$@; \
	fi

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { [ "$$(id -u)" = 0 ] && rm -rf $(VENV) && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); }

$(VENV)/.exporter: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[exporter]'
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[exporter,test]'
	touch $@ $(VENV)/.exporter

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist

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
