# Two commands are all the set-up there is: `make demo` and `make test`.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

TORCH_INDEX := https://download.pytorch.org/whl/cpu
# Whether it answers is known after five seconds, however name servers behave: the alarm kills.
ANSWERS := 'import signal, urllib.request as r; signal.alarm(5); r.urlopen("$(TORCH_INDEX)/torch/")'

.PHONY: demo test slow check bench chaos clean

demo: $(VENV)/.demo
	$(PY) -m pipelines.speech

# $(call notice,MODULE,NAME,STAMP) says that tests are skipped if a module is not installed.
notice = @$(PY) -c 'import $(1)' 2>/dev/null || \
	  echo "$(2) is not installed, and its tests are skipped: make $(VENV)/.$(3) installs it"

test: $(VENV)/.test
	$(call notice,torch,PyTorch,torch)
	$(call notice,sklearn,scikit-learn,tabular)
	$(call notice,dask.dataframe,dask[dataframe],tabular)
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.test
	$(PY) -m pytest -n 3 --dist load -m slow

check: $(VENV)/.check
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy dbdask $(wildcard pipelines/*.py)

bench: $(VENV)/.test $(VENV)/.demo $(VENV)/.bench
	mkdir -p bench
	for program in $(filter-out chaos mixed_chaos paper_image_network,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))); do \
	  json=; \
	  if $(PY) -m benchmarks.$$program --help | grep -q -e --json; then \
	    json="--json bench/$$program.json"; fi; \
	  $(PY) -m benchmarks.$$program $$json || exit 1; done

chaos: $(VENV)/.test
	$(PY) -m pytest -m chaos
	for options in "" "--transport dask" "--partitions 2"; do \
	  $(PY) -m benchmarks.chaos $$options || exit 1; done
	$(PY) -m benchmarks.mixed_chaos
	for options in "--transport dask" "--transport in-process" "--partitions 2" \
	    "--partitions 2 --transport dask"; do \
	  $(PY) -m benchmarks.mixed_chaos $$options --downpour 4 --sandblaster 2 || exit 1; done

# A stamp per set of extras, so that a repeated make does nothing.
$(VENV)/.made:
	@found=; python=; \
	for name in python3.14 python3.13 python3.12 python3.11 python3; do \
	  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found=$$name; \
	  $$name -c 'import ensurepip, venv' 2>/dev/null && python=$$name && break; \
	done; \
	test -n "$$found" || { echo "dbdask needs Python 3.11 or newer, found none" >&2; exit 1; }; \
	test -n "$$python" || { echo "$$found lacks ensurepip:" \
	  "install the package python3-venv (or $$found-venv)" >&2; exit 1; }; \
	$$python -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[speech]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[speech,http,test]'
	@touch $@

# Without an NVIDIA GPU the CPU build will do: most of the 4.6 GB of the ordinary one are for CUDA.
$(VENV)/.torch: $(VENV)/.made pyproject.toml constraints.txt
	@index=; \
	if test -e /dev/nvidiactl -o -e /dev/dxg; then \
	  echo "PyTorch: the ordinary build, for this machine's GPU"; \
	elif { $(PY) -c $(ANSWERS); } 2>/dev/null; then \
	  index="--extra-index-url $(TORCH_INDEX)"; echo "PyTorch: the CPU build, of $(TORCH_INDEX)"; \
	else echo "PyTorch: the ordinary build, because $(TORCH_INDEX) does not answer"; fi; \
	$(PIP) $$index -e '.[torch]'
	@touch $@

$(VENV)/.climate: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[climate]'
	@touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.tabular: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[tabular]'
	@touch $@

$(VENV)/.images: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[images]'
	@touch $@

$(VENV)/.check: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) bench build demo *.egg-info
