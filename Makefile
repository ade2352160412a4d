# make train   set up and run the main job: a small model learns to use a computer
# make example set up and make the page of a finished run: example.html; nothing is trained
# make test    set up and run the tests, but for those marked long
# make long    set up and run the tests marked long
# make lint    set up, then check style and types
# make setup   set up: .venv and the sandbox
# NAME=second  another run folder for make train
# ARGS="steps=5 seed=1"  any key of the recipe, for make train; options of pytest, for make test
SHELL := /bin/bash
NAME ?= tiny
ARGS ?=
RUN := source .venv/bin/activate &&
PYTEST := python -m pytest -q --durations=25 --durations-min=1
LINT := ruff check -q . && ruff format -q --check . && mypy

.PHONY: help train example test long setup lint

help:
	@sed -n 's/^# //p' Makefile | head -8

train: .venv/.ready
	@$(RUN) python -m sandboxrl.launch train recipes/tiny.yaml name=$(NAME) $(ARGS)

example: .venv/.ready
	@$(RUN) python -m sandboxrl.launch view --example

# The heavy tests run one after the other in one process, the light ones in two beside them, last those that need the
# machine for themselves. Each part lists its longest tests and why tests were skipped, and keeps in a cache of its own
# which failed, for `.ci/run`.
test: .venv/.ready
	@$(RUN) export OMP_NUM_THREADS=1; started=$$SECONDS; status=0; heavy=$$(mktemp); \
	{ $(LINT); } & linting=$$!; \
	$(PYTEST) -o cache_dir=.pytest_cache/heavy -p no:xdist -m "heavy and not long" $(ARGS) >$$heavy 2>&1 & heavily=$$!; \
	trap 'kill $$linting $$heavily 2>/dev/null; rm -f $$heavy; exit 130' INT TERM; \
	echo "== light tests"; $(PYTEST) -o cache_dir=.pytest_cache/light -n 2 --dist loadfile -m "not heavy and not alone and not long" $(ARGS) || status=1; \
	wait $$heavily || status=1; echo "== heavy tests"; cat $$heavy; rm -f $$heavy; \
	echo "== tests that need the machine for themselves"; $(PYTEST) -o cache_dir=.pytest_cache/alone -p no:xdist -m "alone and not long" $(ARGS) || status=1; \
	wait $$linting || { status=1; echo "lint: failed"; }; \
	echo "== make test: $$([ $$status = 0 ] && echo passed || echo FAILED), $$(( (SECONDS - started) / 60 )) min $$(( (SECONDS - started) % 60 )) s"; \
	exit $$status

long: .venv/.ready
	@$(RUN) export OMP_NUM_THREADS=1; $(PYTEST) -n 2 --dist loadfile -m long $(ARGS)

lint: .venv/.ready
	@$(RUN) $(LINT)

setup: .venv/.ready

.venv/.ready: pyproject.toml launch/setup.sh
	@launch/setup.sh
