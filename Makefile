# make demo    train Finetune and FLAVA on the built-in stream, and draw the results; if stopped, it resumes
# make test    every test, two at a time; TESTS=8: eight at a time
# make quick   the tests of the equations
# make bench   the cost of each method: at the paper's size on a GPU, at a small one without
# make gpu     checks of a GPU, in eight minutes
# make table   the study's main table and report; JOBS=2: two runs at a time
# Each makes .venv and installs into it when needed. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
PY := .venv/bin/python

# The study: `make table SEEDS=100` makes one seed. `RECORDS=again/records.jsonl` makes again what has a record.
SEEDS ?=
RECORDS ?= results/records.jsonl
JOBS ?= 1

# Tests: how many at a time, and which ones are the equations.
TESTS ?= 2
EQUATIONS := patches model avm selection memory baselines flava eval conformance

.PHONY: demo test quick bench gpu table

demo: .venv/installed
	$(PY) train.py --method finetune --out runs/demo-finetune --resume
	$(PY) train.py --method flava --out runs/demo-flava --resume

test: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(TESTS) --dist worksteal

quick: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "not slow" $(EQUATIONS:%=tests/test_%.py)

table: .venv/installed
	$(PY) -m study.runs main $(if $(SEEDS),--seeds $(SEEDS)) --records $(RECORDS) --left \
		| xargs -P $(JOBS) -n 1 $(PY) -m study.runs --records $(RECORDS)
	$(PY) -m study.report --records $(RECORDS)

bench: .venv/installed
	$(PY) -m paper.bench

gpu: .venv/installed
	$(PY) -m paper.gpu_check

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
