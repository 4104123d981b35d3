# Everything from a fresh clone: needs Python 3.11 or newer with pip and venv, and nothing else.
#   make demo    the whole workflow on simulated exports        make lint    style, types, workflow
#   make test    the test suite                                 make docs    the documentation, in site/
#   make test-whole   whole workflows, tutorials and README     make clean   remove what was built
#   make coverage  coverage per package, by the fast tests
#   make test-cluster   the workflow on a SLURM of one node, brought up here: root, apt-get install slurm-wlm munge
PYTHON ?= python3
CORES  ?= all
VENV   := .venv
BIN    := $(VENV)/bin
# The pinned set is made for the Python versions that all its packages have wheels for; others take the newest in range.
PINS    = $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' * (sys.version_info < (3, 14)))")

.PHONY: demo test test-whole test-cluster coverage lint docs clean distclean
.DELETE_ON_ERROR:

# The extra `imaging` has no wheels for the newest Python yet; the demo then takes all images from maps.
IMAGING   = $(shell $(BIN)/python -c "import importlib.util as u; print('ants' * bool(u.find_spec('ants')))")
MAPS_ONLY = $(if $(IMAGING),,--config 'datasets={adni: {simulation: {image_raw: 0}}}')

demo: $(VENV)/installed-demo
	$(BIN)/mrpipe run --cores $(CORES) -- $(MAPS_ONLY)

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not cluster and not whole" $(PYTEST_FLAGS)

test-whole: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "whole and not slow" $(PYTEST_FLAGS)

# One after the other: there is one cluster.
test-cluster: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "cluster and not slow" tests/cluster $(PYTEST_FLAGS)

coverage: $(VENV)/installed-dev
	$(BIN)/python -m tests.coverage_by_package

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A stamp is written last, so an installation that was cut short is taken up again.
$(VENV)/installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PINS) -e '.[imaging,text]'
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PINS) -e '.[dev]'
	touch $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PINS) -e '.[docs]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module: on Debian and Ubuntu, apt install python3-venv" >&2; exit 2; }

clean:
	rm -rf results site .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV) *.egg-info
