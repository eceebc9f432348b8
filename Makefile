# make demo   the main job: distil a real model, end to end         make test   C++ and Python tests
# make compare  hard, soft and hybrid side by side                   make lint   formatters, linters, types (as in CI)
# make bench  CPU benchmarks against other implementations
# Every target makes its own virtual environment in .venv when there is none.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MEGATRON ?= megatron-core==0.19.2
BUILD ?= build

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# The extension is built against the torch of this environment, not against one that pip would fetch for the build.
LOCAL := $(PIP) --no-build-isolation --editable

.PHONY: all demo compare test ctest pytest lint bench install clean
all: install

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml setup.py csrc/sources.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch ($(TORCH)) and what the extension is built with ..."
	$(PIP) "$(TORCH)" numpy packaging psutil "setuptools>=77" wheel ninja "pybind11>=3.0"
	@echo "Installing $(MEGATRON): its wheels for Python 3.11 work, although it declares Python >= 3.12, so pip is told not to ask."
	$(PIP) --no-deps --ignore-requires-python "$(MEGATRON)"
	@echo "Building bgkd_megatron ..."
	$(LOCAL) ".[megatron,convert,examples]"
	@touch $@

# The extra requirements alone: installing the project again would compile it again.
EXTRA = $(PY) -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
  print(*(line for name in '$(1)'.split() for line in extras[name]), sep='\n')" > $(VENV)/extra.txt && \
  $(PIP) -r $(VENV)/extra.txt

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call EXTRA,test lint gpu-proof)
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(call EXTRA,bench)
	@touch $@

demo: install
	$(PY) examples/demo.py $(ARGS)

compare: install
	$(PY) examples/compare.py $(ARGS)

test: ctest pytest

ctest: $(VENV)/.installed-dev
	$(VENV)/bin/cmake -S . -B $(BUILD)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja \
	  -DPython3_EXECUTABLE=$(abspath $(PY)) > /dev/null
	$(VENV)/bin/cmake --build $(BUILD)/cmake
	$(VENV)/bin/ctest --test-dir $(BUILD)/cmake --output-on-failure

pytest: $(VENV)/.installed-dev
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

bench: $(VENV)/.installed-bench
	$(PY) benchmarks/loss.py $(ARGS)

clean:
	rm -rf $(VENV) $(BUILD) bgkd_megatron/*.so
