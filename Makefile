# make demo          a fresh clone federates four synthetic store regions and writes the report
# make deploy-demo   headquarters and three regions as real processes with TLS, start to finish
# make test          style, types, tests
# make test-e2e      real processes, users, namespaces and a browser; CI runs both
# make bench RUN=DIR learning, encoding, simulation and start-up beside what one would use instead
# make bench-gpu     encoding and training on a GPU against its measured rates: bench-gpu.json
# make bench-scaling RUN=DIR how cost grows, point by point: bench.json
# make bench-search  search beside raw FAISS, bm25s and a plain pipeline: bench.json and a table
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Exactly one FAISS: the GPU build where a GPU answers.
FAISS := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo deploy-demo test test-e2e test-slow bench bench-gpu bench-scaling bench-search constraints clean

demo: $(VENV)/installed
	$(BIN)/fedshelf simulate --out runs/demo

deploy-demo: $(VENV)/installed
	rm -rf runs/deploy-demo
	$(BIN)/python -m simulations.deploy_demo runs/deploy-demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow and not e2e" -n auto --maxprocesses 8 --dist loadfile

# As root it tests more: other users, namespaces, full disks. Needs nginx and chromium. Two files at
# a time: it is bound by the processor, since Flower starts a Python process for every message.
test-e2e: $(VENV)/installed
	$(BIN)/pytest -q -m "e2e and not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations=10

# make bench RUN=DIR: of a folder that fedshelf simulate made
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(RUN)

bench-gpu: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu --device cuda

# make bench-scaling RUN=DIR: of a folder that fedshelf simulate made
bench-scaling: $(VENV)/installed
	$(BIN)/python -m benchmarks.scaling $(RUN)

bench-search: $(VENV)/installed
	$(BIN)/python -m benchmarks.search

# make test-slow FASHION=DIR ICECAT=DIR: real data, half an hour; the deployment demonstration; waiting
test-slow: $(VENV)/installed
	FEDSHELF_FASHION=$(FASHION) FEDSHELF_ICECAT=$(ICECAT) $(BIN)/pytest -q -m slow

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: fedshelf needs Python 3.11 or newer; make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(FAISS),dev]'
	@touch $@

# After changing a lower bound: installs the newest versions that fit, and pins them.
constraints:
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[$(FAISS),dev]'
	{ sed -n 1p constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
