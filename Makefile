# make demo    learn the built-in stream with Finetune and with FLAVA, and draw what came of it; stopped, it goes on
# make test    every test
# make bench   what each method costs, at the paper's size on a GPU, at a small one without
# make table   the study's main table: a record a run in results/runs; make -j2 table does two at a time
# Each makes .venv and installs into it when needed. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
PY := .venv/bin/python

# Of the study: `make table SEEDS=100` is one seed of it, `RECORDS=again` makes again what is there.
SEEDS ?= 100 101 102 103 104 105 106 107 108 109
RECORDS ?= results/runs
MAIN := finetune er mir der++ gmed cls-er lump flava flava+ multitask random mats lava frs excess
TABLE := $(foreach seed,$(SEEDS),$(MAIN:%=%-$(seed)))

.PHONY: demo test bench table left

demo: .venv/installed
	$(PY) train.py --method finetune --out runs/demo-finetune --resume
	$(PY) train.py --method flava --out runs/demo-flava --resume

test: .venv/installed
	$(PY) -m pytest -q tests

table: $(TABLE:%=$(RECORDS)/%.json)
	$(PY) -m paper.evidence --records $(RECORDS)

$(RECORDS)/%.json: | left
	@$(PY) -m paper.study $* --records $(RECORDS) --folders runs/study-$(subst /,-,$(RECORDS))

left: .venv/installed
	@$(PY) -m paper.study --left $(TABLE) --records $(RECORDS)

bench: .venv/installed
	$(PY) -m paper.bench

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
