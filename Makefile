# Every target works from a fresh clone: the environment is made first, and again when its requirements change.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: env test check coverage docs demo bench fuzz chaos sanitize
env: $(READY)

# torch first and pinned: what comes after finds it in place and does not choose another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[report,logs,gp,sweeps,frames,onnx,dev,docs]"
	touch $@

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

# Fails where a changed line is run by no test: make coverage BASE=origin/main.
BASE ?= origin/main
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q --cov=equipoise --cov-report=xml
	$(BIN)/diff-cover coverage.xml --compare-branch $(BASE) --fail-under 95

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

DEMO := --data digits --net mlp --epochs 30 --batch-size 64 --seed 0 --overwrite
ATTACK := --eps 0.15 --step-size 0.03 --steps 10
demo: $(READY)
	$(BIN)/equipoise train standard $(DEMO) --out demo/standard
	$(BIN)/equipoise train pgd $(DEMO) $(ATTACK) --out demo/pgd
	$(BIN)/equipoise train udp $(DEMO) $(ATTACK) --out demo/udp
	$(BIN)/equipoise report demo/standard demo/pgd demo/udp --out report.html

bench: $(READY)
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/autoattack.py --threads 1 --samples 300
	$(BIN)/python benchmarks/autoattack.py --threads 1 --net preact-resnet18 --precision bf16

# Inputs drawn at random, for every test in tests/fuzz: make fuzz MINUTES=5.
MINUTES ?= 60
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

# Commands killed at random, continued and compared with undisturbed ones: make chaos KILLS=10 SEED=1.
KILLS ?= 100
SEED ?= 0
chaos: $(READY)
	$(BIN)/python tests/chaos/chaos.py --kills $(KILLS) --seed $(SEED)

# The tests of the C kernels with gcc's checks of memory and of undefined behaviour.
SANITIZERS := $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)
sanitize: $(READY)
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 OMP_NUM_THREADS=1 \
		CC="gcc -g -fsanitize=address,undefined" $(BIN)/python -m pytest -q -p no:cacheprovider tests/kernels/native
