# make demo    learn the built-in stream with Finetune and with FLAVA, and draw what came of it; stopped, it goes on
# make test    every test
# make bench   what each method costs, at the paper's size on a GPU, at a small one without
# Each makes .venv and installs into it when needed. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test bench

demo: .venv/installed
	$(PY) train.py --method finetune --out runs/demo-finetune --resume
	$(PY) train.py --method flava --out runs/demo-flava --resume

test: .venv/installed
	$(PY) -m pytest -q tests

bench: .venv/installed
	$(PY) -m paper.bench

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
