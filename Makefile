# The two commands: `make train`, `make test`. Both set up first, in .venv unless VENV names another.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# a file of exact versions, as tests/constraints.txt; empty: the newest in the ranges of pyproject.toml
CONSTRAINTS ?=
RUN_DIR ?= runs/sharpen-$(shell date +%Y%m%d-%H%M%S)
# processes of the tests, a thread each
JOBS ?= 2
# where verl is put for its tests: outside of the environment, whose packages are newer than it asks for
VERL ?= .verl
BIN := $(VENV)/bin
STAMP := $(VENV)/.fastrl-installed

.PHONY: train test test-gpu-code test-browser test-integrations lint soak sanitize fuzz bench clean

train: $(STAMP)
	$(BIN)/fastrl train --objective sharpen --output-dir $(RUN_DIR)

# on CPUs, wherever it runs; `bash bench/gpu.sh` has the tests on a GPU
test: export CUDA_VISIBLE_DEVICES :=
test: $(STAMP)
	$(BIN)/pytest -q -n $(JOBS) -m "not slow"
	TRITON_INTERPRET=1 $(BIN)/pytest -q -n $(JOBS) -m "not slow" -k triton $(wildcard tests/test_rows*.py tests/test_*_triton.py)

# the code for GPUs on a device made of host memory (tests/fake_cuda): its graphs, its streams, its copies
FAKE := PYTHONPATH=tests $(BIN)/pytest -q -p fake_cuda
test-gpu-code: $(STAMP)
	$(FAKE) tests/test_fake_cuda.py tests/test_bench_tune.py tests/test_layer_rows_triton.py
	$(FAKE) -k "graph or 11_" tests/test_rows_bits.py tests/test_paged_attention_triton.py
	FAKE_CUDA_KERNELS=twins $(FAKE) -n $(JOBS) tests/test_sampler_gpu.py tests/test_offload_gpu.py \
	  tests/test_sampler_memory.py tests/test_train_gpu.py

# the reports in a real browser; the driver is the standard library's (tests/chromium.py)
test-browser: $(STAMP)
	@$(BIN)/python -c "import sys; sys.path.insert(0, 'tests'); import chromium; \
	  sys.exit(None if chromium.find_chromium() else 'No Chromium here: apt-get install chromium')"
	$(BIN)/pytest -q $(wildcard tests/test_*browser*.py)

test-integrations: $(STAMP)
	$(BIN)/python -m pip install --quiet --requirement tests/requirements-trl.txt \
	  --requirement tests/requirements-tracking.txt
	test -d $(VERL)/verl \
	  || $(BIN)/python -m pip install --quiet --no-deps --target $(VERL) --requirement tests/requirements-verl.txt
	PYTHONPATH=$(abspath $(VERL)) $(BIN)/pytest -q -n $(JOBS) tests/test_integrations*.py tests/test_docs*.py tests/test_tracking.py

soak: $(STAMP)
	$(BIN)/pytest -q -m slow

sanitize: $(STAMP)
	bash tests/sanitize.sh $(abspath $(BIN)/python)

# needs clang++ and g++; five minutes for each of the ten targets, unless FUZZ says otherwise
FUZZ ?= -max_total_time=300
fuzz:
	bash tests/fuzz/run.sh $(FUZZ)

bench: $(STAMP)
	$(BIN)/fastrl bench kernels --out bench/results/kernels-cpu.json
	$(BIN)/python bench/table.py bench/results/kernels-cpu.json --into README.md
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/fastrl bench grading --out bench/results/grading-cpu.json
	$(BIN)/python bench/table.py bench/results/grading-cpu.json --into README.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h tests/*.c tests/*/*.cpp tests/*/*.h)

# An environment that already has torch keeps it; a new one gets the pinned build first, so that no
# other package's wish for torch decides.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" \
	  || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable ".[test,lint]"
	touch $@

clean:
	rm -rf build *.egg-info fastrl/*.so $(STAMP) $(VERL)
