# packshot: a folder of labelled product images in, a verified classification service out.
#
#   make train export serve              on a drawn sample catalogue
#   make train export serve DATA=photos  on your own: one sub-folder a class

PYTHON    ?= python3
MODEL     ?= products
DATA      ?= data/sample
RUN       ?= runs/$(MODEL)
ARCH      ?= resnet50
EPOCHS    ?=
RECIPE    ?=
WEIGHTS   ?=
FIT       ?=
TRAIN     ?=
ENGINES   ?= fp32,int8
TARGETS   ?= this
PORT      ?= 8001
HTTP_PORT ?= 8002
IMAGE     ?= data/sample/test/shoe/shoe-085.jpg
LOAD      ?=
TARGET    ?= serve-cpu
BASE      ?= python:3.11-slim-bookworm
BUILD     ?=
CONTAINERS ?= $(if $(shell command -v docker),docker,podman)

UV_VERSION           := 0.13.8
GRPCIO_TOOLS_VERSION := 1.71.2
CHECKOV_VERSION      := 3.3.30

# The sample, however its folder is spelled, is drawn, and may be trained on from scratch.
IS_SAMPLE := $(filter $(abspath data/sample),$(abspath $(DATA)))

BIN    := .venv/bin
READY  := .venv/.installed
# uv does not read pip's configuration: hand a company's own index over.
UV     = index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}; \
         $${index:+env UV_DEFAULT_INDEX="$$index"} $(BIN)/uv
VERSION := $(shell sed -n 's/__version__ = "\(.*\)"/\1/p' packshot/__init__.py)
PROTOS := packshot/v1/classifier.proto packshot/oip/open_inference.proto
SAMPLE := data/sample
# What is not given is not handed on. Not in the recipe, of which make prints empty lines too.
ASKED  = $(if $(EPOCHS),--epochs "$(EPOCHS)") $(if $(RECIPE),--recipe "$(RECIPE)") \
         $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(FIT),--fit "$(FIT)") \
         $(if $(IS_SAMPLE),--without-weights scratch) $(TRAIN)
# Without the sample a load test draws its own images; a folder that was named must be there.
PHOTOS = $(if $(IS_SAMPLE),$(wildcard $(SAMPLE)),$(DATA))

export ORT_DISABLE_TELEMETRY = 1

.NOTPARALLEL: # `make train export serve` is an order, not a set
.PHONY: help setup sample train export serve classify load test image image-test manifests kubectl dashboard lint proto lock bench bench-gpu clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DATA=$(DATA) RUN=$(RUN) MODEL=$(MODEL) ARCH=$(ARCH) EPOCHS=$(or $(EPOCHS),<the recipe's>)"
	@echo "  RECIPE=$(or $(RECIPE),auto) WEIGHTS=$(or $(WEIGHTS),imagenet) FIT=$(or $(FIT),crop) TRAIN=$(TRAIN)"
	@echo "  ENGINES=$(ENGINES) TARGETS=$(TARGETS)"
	@echo "  PORT=$(PORT) HTTP_PORT=$(HTTP_PORT) IMAGE=$(IMAGE) LOAD=$(LOAD)"
	@echo "  TARGET=$(TARGET) BASE=$(BASE) CONTAINERS=$(CONTAINERS) BUILD=$(BUILD)"

setup: $(READY) ## create .venv and install the locked packages (other verbs do it when needed)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "packshot needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..."; exit 1; }
	@echo "setting up .venv: about 5 GB to download, most of it PyTorch; seven minutes at 100 Mbit/s, of which nothing is seen"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

sample: $(SAMPLE) ## draw the sample catalogue into data/sample
$(SAMPLE): | $(READY)
	$(BIN)/python -m trainer.sample $@

train: $(READY) $(if $(IS_SAMPLE),$(SAMPLE)) ## fine-tune ARCH on DATA: checkpoint and report into RUN
	$(BIN)/python -m trainer --data "$(DATA)" --run "$(RUN)" --arch "$(ARCH)" $(ASKED)

export: $(READY) ## turn the checkpoint of RUN into the next version of models/MODEL: ENGINES, verified
	$(BIN)/python -m exporters --run "$(RUN)" --models models --model "$(MODEL)" --engines "$(ENGINES)" --targets "$(TARGETS)"

serve: $(READY) ## serve models/MODEL on PORT, metrics on HTTP_PORT
	$(BIN)/python -m serving --models models --model "$(MODEL)" --port $(PORT) --http-port $(HTTP_PORT)

classify: $(READY) ## classify IMAGE (a file, folder or pattern) with the server on PORT
	@$(BIN)/packshot classify --target 127.0.0.1:$(PORT) "$(IMAGE)"

load: $(READY) ## load-test the server on PORT with LOAD=--sweep ... or a rate; report in runs/load
	@$(BIN)/packshot load --target 127.0.0.1:$(PORT) --metrics-url http://127.0.0.1:$(HTTP_PORT)/metrics \
	  --out runs/load $(LOAD) $(if $(PHOTOS),"$(PHOTOS)")

test: $(READY) ## run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The base by the digest that its name has today: what was built can be told, and built again.
image: ## build the image packshot-TARGET (serve-cpu, serve-gpu, train) on BASE, by docker or podman
	@$(CONTAINERS) image inspect $(BASE) >/dev/null 2>&1 || $(CONTAINERS) pull --quiet $(BASE)
	@base=$$($(CONTAINERS) image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' $(BASE) | head -1); \
	echo "packshot-$(TARGET):$(VERSION) on $${base:-$(BASE)}"; \
	$(CONTAINERS) build --file deploy/Dockerfile --target $(TARGET) --build-arg BASE=$${base:-$(BASE)} \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
	  --tag packshot-$(TARGET):$(VERSION) $(BUILD) .

image-test: $(READY) ## build the image serve-cpu on Debian's packages by podman, run it and test it
	$(BIN)/python -m pytest -m image

MANIFESTS := $(addprefix kubernetes/,overlays/cpu overlays/gpu overlays/gpu/build-plan store) \
             $(addprefix training/,claims store job trainjob export) kserve

# checkov in an environment of its own: it is large, and at odds with newer packages.
manifests: $(READY) $(BIN)/kubectl ## render deploy/ by kustomize and scan what comes out by checkov
	@rm -rf .venv/manifests && mkdir .venv/manifests
	@for folder in $(MANIFESTS); do \
	  $(BIN)/kubectl kustomize deploy/$$folder > .venv/manifests/$$(echo $$folder | tr / -).yaml || exit 1; done
	$(UV) tool run --quiet checkov==$(CHECKOV_VERSION) --config-file deploy/checkov.yaml -d .venv/manifests

kubectl: $(BIN)/kubectl ## fetch kubectl for the tests of deploy/
$(BIN)/kubectl: deploy/kubectl.py | $(READY)
	$(BIN)/python deploy/kubectl.py

lint: $(READY) ## check style, types, generated code and the Dockerfile
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(call protoc,.venv/proto)
	@for file in $$(cd .venv/proto && find packshot -name '*.py*'); do \
	  cmp $$file .venv/proto/$$file || { echo "$$file is not what proto/ gives: run make proto"; exit 1; }; done

proto: $(READY) ## regenerate packshot/v1 and packshot/oip from proto/
	$(call protoc,.)

# An old generator on purpose: its output runs on old and new runtimes, today's only on new ones.
define protoc
	@mkdir -p $(1)
	$(UV) run --quiet --isolated --no-project --python $(BIN)/python --with grpcio-tools==$(GRPCIO_TOOLS_VERSION) \
	  python -m grpc_tools.protoc -I proto --python_out=$(1) --grpc_python_out=$(1) --pyi_out=$(1) $(addprefix proto/,$(PROTOS))
endef

dashboard: $(READY) ## regenerate what deploy/ holds twice: Grafana's dashboard, the rules as a PrometheusRule
	$(BIN)/python -m deploy.grafana.dashboard > .venv/packshot.json
	mv .venv/packshot.json deploy/grafana/packshot.json
	$(BIN)/python deploy/kubernetes/prometheus_rule.py

lock: ## renew requirements.lock, and those of the images, from pyproject.toml
	$(call compile,pyproject.toml --extra train --extra export --extra serve --extra dev,requirements.lock)
	$(call compile,pyproject.toml --extra serve --extra otel,deploy/locks/serve-cpu.lock)
	$(call compile,$(GPU) --extra tensorrt,deploy/locks/serve-gpu-tensorrt.lock)
	$(call compile,$(GPU) --extra tensorrt-rtx,deploy/locks/serve-gpu-tensorrt-rtx.lock)
	$(call compile,pyproject.toml --extra train --extra export --extra serve --extra timm,deploy/locks/train.lock)
	$(call compile,deploy/locks/build.in,deploy/locks/build.lock)

# The first lock binds the others: what was tested is what an image holds.
GPU = pyproject.toml --extra serve-gpu --extra otel --extra export
define compile
	$(UV) pip compile $(1) $(if $(filter requirements.lock,$(2)),--upgrade,--constraint requirements.lock) --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --custom-compile-command "make lock" --quiet --output-file $(2)
endef

bench: $(READY) ## measure speed against the bars: a table, and all rounds in runs/bench/bench.json
	$(BIN)/python -m benchmarks --models models --model "$(MODEL)"

bench-gpu: $(READY) ## measure a GPU's engine served against its own loop, and what limits it
	$(BIN)/python -m benchmarks.gpu --models models --model "$(MODEL)"

clean: ## remove .venv, the drawn sample and caches; runs and models stay
	rm -rf .venv $(SAMPLE) data/.unfinished-* dist .mypy_cache .pytest_cache .ruff_cache
