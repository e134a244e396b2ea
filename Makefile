# Every target prepares what it needs. The one thing to have is Python 3.11 or newer; `make PYTHON=...` chooses which.
# `make test ARGS="-k wheel -x"` hands arguments on to pytest; `make test WORKERS=0` runs the tests in one process.

PYTHON ?= python3
ARGS ?=
# Small models keep PyTorch and ONNX Runtime to about one core. Each process starts with a part of the tests, in their
# order, and takes from another's when it is done; what is expensive is made once for all (once_per_run in conftest.py).
WORKERS ?= auto
PYTEST = pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal
# For the targets on a GPU: a Python with PyTorch for CUDA, transformers, onnx, onnxruntime-gpu and pytest. Nothing is
# installed into it; packages that it lacks may lie in GPU_SITE (see benchmarks/wheels.py).
GPU_PYTHON ?= python3
GPU_SITE ?= build/gpu-site
ON_GPU = PYTHONPATH=$(GPU_SITE):.:export $(GPU_PYTHON)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The packages come from each environment, never from the caller's shell.
unexport PYTHONPATH

SOURCES := pyproject.toml README.md LICENSE \
	$(shell find erniem_rt export/erniem_export -name '*.py' -o -name py.typed)
DEV := .venv/.stamp
TF5 := .venv-tf5/.stamp
SERVE := .venv-serve/.stamp
FLOOR := .venv-floor/.stamp
BENCH := .venv-bench/.stamp
INTEROP := .venv-interop/.stamp
SERVING := .venv-serving/.stamp
TRITON := .venv-triton/.stamp
NANO := examples/nano/checkpoints
HEADS := qa cls ner ie mc base
# What `make soak` asks: serve, gunicorn or ray.
SERVER ?= serve
WEB := examples/web
WEB_MODELS := out/web/models/qa.stamp out/web/models/cls.stamp out/web/models/ner.stamp
# What a page needs of onnxruntime-web.
ORT_WEB := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm

.PHONY: help setup demo test test-slow test-serving test-floor test-transformers5 test-interop lint typecheck format check nano-train nano-eval nano-task-sets web test-web bench bench-quick bench-xlm-roberta bench-serving soak test-gpu bench-gpu wheel clean clean-all

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-20s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(DEV) ## Prepare .venv, the environment for development

demo: $(DEV) $(SERVE) ## Export the nano checkpoints, then answer real text in a process without torch
	for head in qa cls ner mc ie base; do \
		.venv/bin/erniem-export --model $(NANO)/$$head --output out/demo/$$head || exit 1; echo; \
	done
	.venv-serve/bin/python examples/demo.py out/demo

test: $(DEV) ## Run the tests against the reference, transformers 4.57
	.venv/bin/$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(DEV) ## Run the tests that `make test` leaves out: sweeps over many cases, int8 of every trained head
	.venv/bin/$(PYTEST) -m slow $(ARGS)

test-floor: $(DEV) $(FLOOR) ## Run the runtime's tests on the oldest onnxruntime that is admitted, with artifacts exported here
	for head in base cls ie mc ner qa; do \
		.venv/bin/erniem-export --model $(NANO)/$$head --engine none --output out/floor/$$head || exit 1; \
	done
	ERNIEM_NANO=out/floor .venv-floor/bin/$(PYTEST) tests/runtime --ignore tests/runtime/tensorrt $(ARGS)

test-serving: $(SERVING) $(TRITON) out/serving/.stamp ## Run `erniem-rt serve`, `erniem_rt.ray` and `erniem-rt triton` on their servers, with artifacts exported here
	ERNIEM_SERVING=kserve ERNIEM_NANO=out/serving .venv-serving/bin/$(PYTEST) tests/serving/test_serve.py tests/serving/test_manifests.py $(ARGS)
	ERNIEM_SERVING=ray ERNIEM_NANO=out/serving .venv-serving/bin/pytest tests/serving/test_ray.py $(ARGS)
	ERNIEM_SERVING=triton ERNIEM_NANO=out/serving .venv-triton/bin/pytest tests/serving/test_triton.py $(ARGS)

# What there is of transformers in an export: its configurations, its model class and its activations. Once a graph is
# traced there is nothing left of it, so what is done with graphs is tested once, by `make test`; an export in int8, which
# rewrites the graph in every way, shows that it starts from the same one here.
WITHOUT_TRANSFORMERS := int8 passes precision tensorrt gate/test_parity*.py

test-transformers5: $(TF5) ## Run what depends on transformers, and real exports, on transformers 5
	.venv-tf5/bin/$(PYTEST) tests/export $(WITHOUT_TRANSFORMERS:%='--ignore-glob=tests/export/%') $(ARGS)
	.venv-tf5/bin/erniem-export --model $(NANO)/qa --head qa --output out/transformers5
	.venv-tf5/bin/erniem-verify out/transformers5/qa.onnx --model $(NANO)/qa
	.venv-tf5/bin/erniem-export --model $(NANO)/cls --head cls --int8 --output out/transformers5/int8

test-interop: $(INTEROP) ## Run other tools on our artifacts and compare with docs/interop.md (some minutes)
	.venv-interop/bin/python -m benchmarks.interop $(ARGS)

lint: $(DEV) ## Check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

typecheck: $(DEV) ## Check types in both packages, strictly
	.venv/bin/mypy

format: $(DEV) ## Format the code and fix what can be fixed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

check: lint typecheck test test-slow test-floor test-transformers5 ## Run every check: lint, types, all tests

nano-train: $(DEV) ## Train the nano checkpoints from scratch
	.venv/bin/python examples/nano/train.py $(ARGS)

nano-eval: $(DEV) ## Measure the nano checkpoints on their held-out data
	.venv/bin/python examples/nano/evaluate.py $(ARGS)

nano-task-sets: $(DEV) ## Write the task sets and calibration texts of the nano checkpoints
	.venv/bin/python examples/nano/task_sets.py $(ARGS)

web: $(WEB)/node_modules/.stamp $(WEB_MODELS) ## Put the page of examples/web, with nano's models, into out/web: static files
	@mkdir -p out/web/ort
	cp -R $(WEB)/index.html $(WEB)/style.css $(WEB)/app.js $(WEB)/src examples/nano/demo.json out/web
	cp $(ORT_WEB:%=$(WEB)/node_modules/onnxruntime-web/dist/%) out/web/ort
	@echo 'out/web is ready: serve it with python3 -m http.server --bind 127.0.0.1 --directory out/web'

# Looked for only when it is needed.
HAS_NODE = $(shell node -e 'process.exit(+(parseInt(process.versions.node) < 20))' 2>/dev/null && npm --version 2>/dev/null)
.SECONDEXPANSION:
test-web: $$(if $$(HAS_NODE),web out/web-test/expected.json) ## Compare examples/web with the Python package, in Node and in Chromium; skips what is not installed
	@$(if $(HAS_NODE),cd $(WEB) && npm run --silent types && npm test --silent,echo 'make test-web: skipped: there is no Node.js 20 or newer with npm')

bench: $(BENCH) ## Measure every engine at base size; write results, plots and tables (half an hour, 16 GB of memory)
	.venv-bench/bin/python -m benchmarks.bench $(ARGS)
	.venv-bench/bin/python -m benchmarks.plots
	.venv-bench/bin/python -m benchmarks.tables --write-docs

bench-quick: $(BENCH) ## Measure the main engines on a smaller model, in under three minutes
	.venv-bench/bin/python -m benchmarks.bench --quick $(ARGS)

bench-xlm-roberta: $(BENCH) ## Compare an XLM-R model with sentence-transformers; ARGS="--prepare-only" exports alone (slow)
	.venv-bench/bin/python -m benchmarks.xlm_roberta $(ARGS)

bench-serving: $(SERVING) ## Measure the batcher, `erniem-rt serve` and Ray; ARGS="--artifact DIR --tokenizer DIR"
	.venv-serving/bin/python -m benchmarks.serving $(ARGS)

soak: $(SERVING) out/serving/.stamp ## Ask a server for an hour, and compare every answer; SERVER=gunicorn or ray also kills workers
	.venv-serving/bin/python -m benchmarks.soak $(SERVER) nli=out/serving/cls \
		$(foreach head,$(HEADS),$(head)=out/serving/$(head)) --json out/soak-$(SERVER).json $(ARGS)

test-gpu: ## Run the parity gate of heads, precisions and engines on an NVIDIA GPU, for at most 8 minutes
	@$(ON_GPU) benchmarks/machine.py test-gpu cuda pytest sentencepiece
	$(ON_GPU) tests/gpu/run.py $(ARGS)

bench-gpu: ## Measure every engine on an NVIDIA GPU for at most 8 minutes; write results, plots and tables
	@$(ON_GPU) benchmarks/machine.py bench-gpu cuda matplotlib
	$(ON_GPU) -m benchmarks.bench --device cuda $(ARGS)
	$(ON_GPU) -m benchmarks.plots --results benchmarks/results/bench-gpu.json
	$(ON_GPU) -m benchmarks.tables --results benchmarks/results/bench-gpu.json --write-docs

wheel: dist/.stamp ## Build the wheel into dist/

clean: ## Remove outputs and caches, keep the environments
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean ## Remove the environments too
	rm -rf .venv .venv-tf5 .venv-serve .venv-floor .venv-bench .venv-serving .venv-triton .venv-interop

# $(call install,FOLDER,NAME): a virtual environment in FOLDER with exactly requirements/NAME.txt.
define install
@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo 'Expected Python 3.11 or newer with the venv module as "$(PYTHON)": the pinned tools need it. Install it' \
	'(on Debian and Ubuntu also python3-venv), or name another one: make PYTHON=/path/to/python' >&2; exit 1; }
@echo 'installing requirements/$(2).txt into $(1) (once, about a minute)'
@$(PYTHON) -m venv --clear $(1)
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/$(2).txt
endef

# $(call install-package,FOLDER,WHAT): this project, and nothing that it would pull in beyond the pins.
define install-package
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(2)
@touch $(1)/.stamp
endef

$(DEV): pyproject.toml requirements/serve.txt requirements/common.txt requirements/dev.txt
	$(call install,.venv,dev)
	$(call install-package,.venv,--no-build-isolation --editable .)

$(TF5): pyproject.toml requirements/serve.txt requirements/common.txt requirements/transformers5.txt
	$(call install,.venv-tf5,transformers5)
	$(call install-package,.venv-tf5,--no-build-isolation --editable .)

$(BENCH): pyproject.toml requirements/serve.txt requirements/common.txt requirements/bench.txt
	$(call install,.venv-bench,bench)
	$(call install-package,.venv-bench,--no-build-isolation --editable .)

$(INTEROP): pyproject.toml requirements/serve.txt requirements/common.txt requirements/interop.txt
	$(call install,.venv-interop,interop)
	$(call install-package,.venv-interop,--no-build-isolation --editable .)

.venv-serving/.pins: requirements/serve.txt requirements/serving.txt
	$(call install,.venv-serving,serving)
	@touch $@

$(SERVING): .venv-serving/.pins dist/.stamp
	$(call install-package,.venv-serving,--force-reinstall dist/*.whl)

.venv-triton/.pins: requirements/triton.txt
	$(call install,.venv-triton,triton)
	@touch $@

$(TRITON): .venv-triton/.pins dist/.stamp
	$(call install-package,.venv-triton,--force-reinstall dist/*.whl)

.venv-floor/.pins: requirements/floor.txt
	$(call install,.venv-floor,floor)
	@touch $@

$(FLOOR): .venv-floor/.pins dist/.stamp
	$(call install-package,.venv-floor,--force-reinstall dist/*.whl)

.venv-serve/.pins: requirements/serve.txt
	$(call install,.venv-serve,serve)
	@touch $@

$(SERVE): .venv-serve/.pins dist/.stamp
	$(call install-package,.venv-serve,--force-reinstall dist/*.whl)

$(WEB)/node_modules/.stamp: $(WEB)/package-lock.json
	@echo 'installing $< into $(@D) (once, about half a minute)'
	@cd $(WEB) && npm ci --loglevel=error
	@touch $@

out/web-test/expected.json: $(WEB)/test/expected.py $(WEB_MODELS)
	.venv/bin/python $< out/web/models $@

out/serving/.stamp: $(DEV) $(SOURCES)
	for head in $(HEADS); do \
		.venv/bin/erniem-export --model $(NANO)/$$head --engine none --output out/serving/$$head || exit 1; \
	done
	@touch $@

out/web/models/%.stamp: $(DEV) $(SOURCES)
	.venv/bin/erniem-export --model $(NANO)/$* --output out/web/models/$*
	@touch $@

dist/.stamp: $(DEV) $(SOURCES)
	@rm -rf dist
	@.venv/bin/python -m hatchling build --target wheel --directory dist
	@touch $@
