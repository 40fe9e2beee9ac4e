PYTHON ?= python3
PROFILE ?=   # none: the default of this machine, which the program knows (src/model_serve_flow/flow/default_profile.py)
DEVICE ?= cpu
ENVIRONMENTS := $(or $(MODEL_SERVE_FLOW_ENVIRONMENTS),.environments)
BIN := $(ENVIRONMENTS)/notebook/bin
TOOLS := $(ENVIRONMENTS)/tools
FAST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal tests/unit tests/soak tests/contract/notebook
LOCK := examples/model-serve-flow/environments/notebook/$(DEVICE).txt
# Where `make install` puts the command.
TO ?= $(HOME)/.local/bin

# As the flow sets it: threads that wait must not hold a core that others need.
export OMP_WAIT_POLICY ?= passive
unexport PYTHONDONTWRITEBYTECODE   # set in many images; without compiled files every import takes almost three times as long

.PHONY: help demo serving install test test-fast lab lint lock audit bench bench-accuracy bench-serving evidence soak clean bootstrap environments predictors
.DEFAULT_GOAL := demo

help:             ## these lines
	@sed -nE 's/^([a-z-]+):.*## /\1               /; s/^([a-z -]{15}) */make \1/p' Makefile

demo: bootstrap   ## the whole flow, from nothing to the report
	$(BIN)/model-serve-flow run $(addprefix --profile ,$(PROFILE))

install: bootstrap   ## puts the command model-serve-flow into ~/.local/bin; `make install TO=DIR` elsewhere
	@mkdir -p $(TO)
	@ln -sf $(abspath $(BIN))/model-serve-flow $(TO)/model-serve-flow
	@case ":$$PATH:" in *":$(TO):"*) ;; *) echo "Put $(TO) on the PATH: export PATH=\"$(TO):\$$PATH\"" ;; esac

test: environments predictors   ## unit, contract and end-to-end tests, each in the environment its folder names
	$(FAST)
	$(ENVIRONMENTS)/serve/bin/python -m pytest tests/contract/serve
	$(ENVIRONMENTS)/compress/bin/python -m pytest tests/contract/compress
	$(ENVIRONMENTS)/notebook/bin/python -m pytest tests/e2e/notebook
	$(ENVIRONMENTS)/compress/bin/python -m pytest tests/e2e/compress
	$(ENVIRONMENTS)/serve/bin/python -m pytest tests/e2e/serve

test-fast: lint   ## lint and every test that starts no engine, in the notebook environment: two minutes on two cores
	$(FAST)

serving: environments predictors   ## the notebooks of serving from scratch, executed into artifacts/serving
	$(BIN)/model-serve-flow run $(addprefix --profile ,$(PROFILE)) --only 00
	@mkdir -p artifacts/serving
	@for notebook in examples/serving-from-scratch/*/*.ipynb; do \
	    folder=$$(dirname $$notebook); \
	    smaller=$$(ls $$folder/$(PROFILE).yaml 2>/dev/null); \
	    JUPYTER_PATH=$(abspath $(ENVIRONMENTS))/serve/share/jupyter $(BIN)/papermill $$notebook artifacts/serving/$$(basename $$notebook) \
	        --cwd $$folder --no-progress-bar $(addprefix -p profile ,$(PROFILE)) $${smaller:+-f $$smaller} || exit 1; done

lab: bootstrap    ## JupyterLab with a kernel for each environment
	$(BIN)/model-serve-flow lab

lint: bootstrap   ## ruff over code and notebooks, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(BIN)/python
	$(BIN)/lint-imports

lock: bootstrap   ## resolves the locks again from the modules' pyprojects; `make lock UPGRADE=--upgrade` moves them
	$(BIN)/python tools/lock.py $(UPGRADE)

audit: bootstrap  ## known vulnerabilities of every pin; `make audit AUDIT="--ignore-vuln ID"` accepts one
	$(BIN)/python tools/audit.py $(AUDIT)

bench: bootstrap  ## the benchmarks of docs/benchmarks; `make bench PROFILE=...` another profile
	$(BIN)/python benchmarks/bench.py $(PROFILE)

bench-accuracy: environments   ## scores with stock lm-eval and with ours, side by side; `make bench-accuracy ITEMS=50`
	$(BIN)/model-serve-flow run $(addprefix --profile ,$(PROFILE)) --only 00
	$(ENVIRONMENTS)/serve/bin/python benchmarks/bench_accuracy.py $(PROFILE) --items $(or $(ITEMS),200)

bench-serving: environments   ## the teaching server's techniques, each against its goal; on an idle machine
	$(BIN)/model-serve-flow run $(addprefix --profile ,$(PROFILE)) --only 00
	$(ENVIRONMENTS)/serve/bin/python benchmarks/bench_serving.py $(PROFILE)

evidence: bootstrap   ## every promised error rate and coverage, simulated: writes docs/evidence in half an hour
	$(BIN)/python docs/evidence/evidence.py $(EVIDENCE)

soak: environments   ## kills the flow at random points, for hours; `make soak SOAK="--points 40 --seed 1"`
	$(BIN)/python tests/soak/soak.py --artifacts artifacts/soak $(SOAK)

clean:            ## the environments and caches; artifacts stay
	rm -rf $(ENVIRONMENTS) .pytest_cache .ruff_cache .hypothesis

bootstrap: $(TOOLS)/ready  ## the notebook environment
	@PYTHONPATH=src $(TOOLS)/bin/python -m model_serve_flow.system.environments notebook --device $(DEVICE)

environments: bootstrap    ## all three environments
	@for name in serve compress; do \
	    PYTHONPATH=src $(TOOLS)/bin/python -m model_serve_flow.system.environments $$name --device $(DEVICE) || exit 1; done

predictors: bootstrap    ## the environment of the stock servers behind the gateway; no other command needs it
	@PYTHONPATH=src $(TOOLS)/bin/python -m model_serve_flow.system.environments predictors --device $(DEVICE)

$(TOOLS)/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Example: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) has no venv module. Run without make: PYTHONPATH=src $(PYTHON) -m model_serve_flow run. Or install it (Debian, Ubuntu: the package python3-venv), or name another Python: make PYTHON=..." >&2; exit 1; }
	@rm -rf $(TOOLS)
	@$(PYTHON) -m venv $(TOOLS)
	@awk '/^(uv|packaging)==/ {pin = 1} pin {print} !/\\$$/ {pin = 0}' $(LOCK) > $(TOOLS)/lock.txt
	@$(TOOLS)/bin/pip install --quiet --no-deps --require-hashes -r $(TOOLS)/lock.txt
	@touch $@
