# Everything runs from .venv, which `make install` makes; Python >= 3.11 and make are all that has to be there.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv-bench/.installed
PAGES := README.md SECURITY.md CHANGELOG.md CONTRIBUTING.md LICENSE LICENSE-TEXT CITATION.cff data_manifest deploy benchmarks nbs $(wildcard figures/paper)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test reproduce lab site book bench export publish freeze clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv and install the library with all it needs

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "thesis_ad needs Python 3.11 or newer; name one with 'make PYTHON=/path/to/python'" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
		{ echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[thesis,serve,cluster,dev]'
	@$(BIN)/python -c 'import cv2' || \
		{ echo "OpenCV lacks a system library; on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0" >&2; exit 1; }
	@touch $@

test: export OMP_NUM_THREADS = 1
test: install ## lint, run every chapter and compare its outputs, run the tests
	$(BIN)/ruff check thesis_ad tests benchmarks site .ci
	$(BIN)/python .ci/chapters.py
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

reproduce: install ## bring every figure and table up to date, e.g. ARGS='--profile smoke'
	$(BIN)/thesis-ad reproduce $(ARGS)

lab: install ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

site: install ## build the book into site/_build/html
	@$(MAKE) --no-print-directory book PYTHON=$(BIN)/python
	@echo "open site/_build/html/index.html"

book:  # the same with any Python that has the packages of the site
	rm -rf site/_build/source
	mkdir -p site/_build/source
	tar -cf - $(PAGES) | tar -xf - -C site/_build/source
	cp -p site/index.md site/_build/source/
	$(PYTHON) -m sphinx -q -W --keep-going -b html -c site site/_build/source site/_build/html

bench: $(PEERS) ## compare with anomalib, FAISS, scikit-learn: benchmarks/results.csv, e.g. ARGS='--cookies FOLDER'
	$(BIN)/python benchmarks/results.py --peer .venv-bench/bin/python $(ARGS)

$(PEERS): $(STAMP)  # anomalib has an environment of its own, with the same torch and timm
	@test -x .venv-bench/bin/pip || $(BIN)/python -m venv .venv-bench
	.venv-bench/bin/python -m pip install --disable-pip-version-check $$(grep -oE 'anomalib==[0-9.]+' pyproject.toml) $$(grep -E '^(torch|torchvision|timm)==' constraints.txt)
	@touch $@

export: install ## notebooks to library, then notebooks cleaned
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_clean --fname nbs/book

publish: install ## put the outputs of the last run of profile paper into nbs/evaluation and README.md
	$(BIN)/python .ci/publish.py
	$(BIN)/nbdev_clean --fname nbs
	$(BIN)/nbdev_clean --fname nbs/evaluation

freeze: install ## write the installed versions into constraints.txt
	$(BIN)/python .ci/freeze.py > constraints.new
	mv constraints.new constraints.txt
	@touch $(STAMP)

clean: ## remove build products and runs; .venv, .venv-bench and the cache stay
	rm -rf build dist _docs runs site/_build *.egg-info .pytest_cache .hypothesis .ruff_cache
	find nbs thesis_ad tests benchmarks site .ci -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
