# make demo   set up, build, train on real data with torch's losses and with the fused ones, compare
# make demo-distributed   train a language model whose vocabulary is spread over two processes
# make test   set up, build, run the tests: of large grids a part, see tests/quick_selection.py
# make test-all     the tests and nothing left out
# make test-rest    of these, what make test leaves out
# make test-gpu     what a GPU adds to them: the parity tests on it, streams, graphs
# make test-integrations   the frameworks that people train with, in a virtual environment of their own (many downloads)
# make docs   the site, with warnings as errors: build/docs/index.html
# make wheel   a wheel for this Python and this kind of machine, without torch's libraries: dist/
# make test-wheel   that wheel, in a virtual environment of its own with $(TORCH), under a part of the tests
# make sdist   the source distribution: dist/
# make lock   the newest versions of what these commands install, but torch: requirements/development.txt; needs uv
# make sanitizers   those tests that run the CUDA kernels under sanitizers, and that find faults planted in them
# make memcheck   the tests on a GPU under its sanitizer
# make bench   the benchmarks, with BENCH_ARGS
# make lint, make format   the linters, and the formatters that satisfy them
# make install, make clean   set up and build alone; remove all that was made
#
# Variables: PYTHON (the interpreter that makes the virtual environment), VENV (where it is made), TORCH (the torch to
# install, any requirement that pip understands from 2.10 on: TORCH=torch==2.14.1), PYTEST_ARGS, BENCH_ARGS.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
BENCH_ARGS ?=

# -qq: errors alone. pip warns of each place where it finds no package, which is none of ours.
PIP = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
BUILD_TOOLS = "setuptools>=77" "pybind11>=2.13" ninja wheel
SITE_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
# A process for each core; more than eight spend their time on imports.
PYTEST = $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal
CXX_FILES = $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh csrc/*/*/*.cpp csrc/*/*/*.h)
CXX_TEST_FOLDERS = $(addprefix tests/,native/cpu_kernels cuda/emulation cuda/emulation/*)
CXX_TESTS = $(wildcard $(addsuffix /*.cpp,$(CXX_TEST_FOLDERS)) $(addsuffix /*.h,$(CXX_TEST_FOLDERS)))
SOURCES = setup.py pyproject.toml fused_losses/_version.py $(CXX_FILES)
GPU_TESTS = $(addprefix tests/,autograd functional modules native patching cuda/test_on_gpu.py) -k cuda
WHEEL_TESTS = $(addprefix tests/,functional modules native patching)
PYTHON_FILES = setup.py fused_losses tests benchmarks examples $(wildcard docs/*.py)
FORGE = .github
ISSUE_FORMS = $(filter-out %/config.yml,$(wildcard $(FORGE)/ISSUE_TEMPLATE/*.yml))

.PHONY: demo demo-distributed test test-all test-rest test-gpu test-integrations docs wheel test-wheel sdist lock sanitizers memcheck bench lint format clean install

demo: $(VENV)/.extra-demo
	$(VENV)/bin/python -m examples

demo-distributed: install
	$(VENV)/bin/torchrun --standalone --nproc-per-node 2 -m examples.vocab_parallel

test: install
	$(PYTEST) --quick $(PYTEST_ARGS)

test-all: $(VENV)/.extra-demo
	$(PYTEST) $(PYTEST_ARGS)

test-rest: $(VENV)/.extra-demo
	$(PYTEST) --rest $(PYTEST_ARGS)

test-gpu: install
	FUSED_LOSSES_TEST_DEVICES=cuda $(PYTEST) $(GPU_TESTS) $(PYTEST_ARGS)

test-integrations: $(VENV)-integrations/.installed
	$(VENV)-integrations/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal tests/integrations $(PYTEST_ARGS)

# The frameworks alone: what is in $(VENV) is seen from here, the extension and torch too, so nothing is built twice. The
# constraint: no framework is to bring another torch.
$(VENV)-integrations/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)-integrations
	echo "import site; site.addsitedir('$$($(VENV)/bin/python -c $(SITE_PACKAGES))')" \
	  > "$$($(VENV)-integrations/bin/python -c $(SITE_PACKAGES))/base.pth"
	echo "$(TORCH)" > $(VENV)-integrations/constraints.txt
	$(VENV)-integrations/bin/python -m pip install -qq --disable-pip-version-check \
	  -c $(VENV)-integrations/constraints.txt "fused-losses[integrations]"
	@touch $@

wheel: $(VENV)/.extra-wheel
	rm -rf build/wheel dist/*.whl
	mkdir -p dist
	$(VENV)/bin/python -m build --wheel --no-isolation --outdir build/wheel
ifeq ($(shell uname -s),Linux)
	PATH="$(abspath $(VENV)/bin):$$PATH" $(VENV)/bin/python -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' -w dist build/wheel/*.whl
	for wheel in build/wheel/*.whl; do $(VENV)/bin/python -m auditwheel show $$wheel; done
else
	cp build/wheel/*.whl dist/
endif

# bin/pytest, where python -m pytest would put this folder on the path, whose package has no business here.
test-wheel:
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install -qq --disable-pip-version-check "$(TORCH)"
	$(VENV)-wheel/bin/python -m pip install -qq --disable-pip-version-check --force-reinstall --no-deps dist/*.whl
	$(VENV)-wheel/bin/python -m pip install -qq --disable-pip-version-check "fused-losses[test]"
	cd $(VENV)-wheel && bin/python -m fused_losses
	FUSED_LOSSES_TEST_DEVICES=cpu $(VENV)-wheel/bin/pytest --quick -n auto --maxprocesses 8 $(WHEEL_TESTS) $(PYTEST_ARGS)

sdist: $(VENV)/.extra-wheel
	$(VENV)/bin/python -m build --sdist --no-isolation --outdir dist

# Without torch, of which each environment has its own, and without an index, of which each network has.
lock:
	mkdir -p build
	echo "torch; sys_platform == 'never'" > build/without_torch.txt
	printf '%s\n' $(BUILD_TOOLS) > build/tools.in
	uv pip compile -q pyproject.toml build/tools.in --extra test --extra bench --extra demo --extra lint --extra wheel \
	  --override build/without_torch.txt --universal --python-version 3.10 --upgrade --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" -o build/locked.txt
	grep -v "'never'" build/locked.txt > requirements/development.txt

docs: $(VENV)/.extra-docs
	$(VENV)/bin/python -m sphinx -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

# On a GPU, with compute-sanitizer from the CUDA toolkit.
memcheck: install
	FUSED_LOSSES_TEST_DEVICES=cuda compute-sanitizer --error-exitcode 1 $(VENV)/bin/python -m pytest $(GPU_TESTS) -x $(PYTEST_ARGS)

sanitizers: install
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS) tests/cuda/test_emulation.py \
	  tests/cuda/test_kernels_under_sanitizers.py tests/cuda/test_planted_kernel_faults.py

bench: install
	$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/.extra-lint
	$(VENV)/bin/ruff check $(PYTHON_FILES)
	$(VENV)/bin/ruff format --check $(PYTHON_FILES)
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES) $(CXX_TESTS)
	$(VENV)/bin/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff
	$(VENV)/bin/check-jsonschema -q --builtin-schema vendor.github-issue-config $(FORGE)/ISSUE_TEMPLATE/config.yml
	$(VENV)/bin/check-jsonschema -q --builtin-schema vendor.github-issue-forms $(ISSUE_FORMS)
	$(VENV)/bin/check-jsonschema -q --builtin-schema vendor.github-workflows $(wildcard $(FORGE)/workflows/*.yml)

format: $(VENV)/.extra-lint
	$(VENV)/bin/ruff check --fix $(PYTHON_FILES)
	$(VENV)/bin/ruff format $(PYTHON_FILES)
	$(VENV)/bin/clang-format -i $(CXX_FILES) $(CXX_TESTS)

install: $(VENV)/.installed

# --no-build-isolation: the extension is built against the torch of this environment, not against a second download.
$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV)"
	$(PIP) "$(TORCH)" $(BUILD_TOOLS)
	@echo "Building the extension (a minute or two)"
	$(PIP) --editable ".[test,bench]" --no-build-isolation
	@touch $@

# What few need. The package itself is installed already: its extra alone.
$(VENV)/.extra-%: $(VENV)/.installed
	$(PIP) "fused-losses[$*]"
	@touch $@

clean:
	rm -rf build dist $(VENV) *.egg-info fused_losses/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
