# make train   set up and run the main job: a small model learns to use a computer
# make example set up and make the page of a finished run: example.html; nothing is trained
# make test    set up and run the tests
# make lint    set up, then check style and types
# make setup   set up: .venv and the sandbox
# NAME=second  another run folder for make train
# ARGS="steps=5 seed=1"  any key of the recipe, for make train; options of pytest, for make test
SHELL := /bin/bash
NAME ?= tiny
ARGS ?=
RUN := source .venv/bin/activate &&
LINT := ruff check -q . && ruff format -q --check . && mypy

.PHONY: help train example test setup lint

help:
	@sed -n 's/^# //p' Makefile | head -7

train: .venv/.ready
	@$(RUN) python -m sandboxrl.launch train recipes/tiny.yaml name=$(NAME) $(ARGS)

example: .venv/.ready
	@$(RUN) python -m sandboxrl.launch view --example

# The heavy tests run one after the other, a process per file (Ray does not start twice in one without traces of the
# first), the light ones in two processes beside them, last those that need the machine for themselves. The longest are told at the end, and why a test was skipped.
test: .venv/.ready
	@$(RUN) export OMP_NUM_THREADS=1; started=$$SECONDS; status=0; heavy=$$(mktemp); \
	{ $(LINT); } & linting=$$!; \
	( failed=0; for file in $$(grep -rl "mark.heavy" tests --include="test_*.py" | sort); do echo "== $$file"; \
		python -m pytest -q -p no:xdist -m heavy --durations=3 $$file $(ARGS) || failed=1; done; exit $$failed ) >$$heavy 2>&1 & heavily=$$!; \
	trap 'kill $$linting $$heavily 2>/dev/null; rm -f $$heavy; exit 130' INT TERM; \
	echo "== light tests"; python -m pytest -q -n 2 --dist loadfile -m "not heavy and not alone" --durations=25 $(ARGS) || status=1; \
	wait $$heavily || status=1; echo "== heavy tests"; cat $$heavy; rm -f $$heavy; \
	echo "== tests that need the machine for themselves"; python -m pytest -q -p no:xdist -m alone $(ARGS) || status=1; \
	wait $$linting || { status=1; echo "lint: failed"; }; \
	echo "== make test: $$([ $$status = 0 ] && echo passed || echo FAILED), $$(( (SECONDS - started) / 60 )) min $$(( (SECONDS - started) % 60 )) s"; \
	exit $$status

lint: .venv/.ready
	@$(RUN) $(LINT)

setup: .venv/.ready

.venv/.ready: pyproject.toml launch/setup.sh
	@launch/setup.sh
