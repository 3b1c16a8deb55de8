# `make demo` and `make test` need Python 3.11 or newer and nothing else: they set up .venv first.
.DEFAULT_GOAL := help
.PHONY: help demo compare test test-slow test-soak coverage mutants package check docs site format clean

BIN := .venv/bin
INSTALLED := .venv/.installed

help:  ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Train on the embedded task, end to end, without network or GPU.
	$(BIN)/prefopt demo

compare: $(INSTALLED)  ## Compare nine objectives on the embedded task, three seeds each, in one report.
	$(BIN)/prefopt compare --demo

test: $(INSTALLED)  ## Run the gate: lint, format, types, layers, fast tests.
	scripts/check.sh

test-slow: $(INSTALLED)  ## Run the tests that take minutes.
	scripts/check.sh slow

test-soak: $(INSTALLED)  ## Kill runs at every call that touches their folder, and go on with them.
	scripts/check.sh soak

coverage: $(INSTALLED)  ## Count the lines that the fast tests run; under 90 % fails.
	scripts/check.sh coverage

mutants: $(INSTALLED)  ## Plant 200 small bugs in objectives and ops; under 90 % caught fails.
	$(BIN)/python scripts/mutants.py

package: $(INSTALLED)  ## Build wheel and sdist, install the wheel elsewhere, and use and test it there.
	scripts/check_package.sh

check: $(INSTALLED)  ## Run the gate without the tests.
	scripts/check.sh static

docs: $(INSTALLED)  ## Write the generated pages of objectives, recipes and keys, plans and schema anew.
	$(BIN)/python scripts/make_objectives_page.py
	$(BIN)/python scripts/make_recipe_plans.py
	$(BIN)/python scripts/make_recipe_index.py
	$(BIN)/python scripts/make_keys_page.py
	$(BIN)/prefopt schema --output recipes/recipe.schema.json

site: $(INSTALLED)  ## Build the documentation as a site in site/; a broken link fails.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)  ## Format the code and repair what lint can repair.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv, caches and build folders; runs/ stays.
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh
