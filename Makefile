# make train   set up and run the main job: a small model learns to use a computer
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

.PHONY: help train test setup lint

help:
	@sed -n 's/^# //p' Makefile | head -6

train: .venv/.ready
	@$(RUN) python -m sandboxrl.launch train recipes/tiny.yaml name=$(NAME) $(ARGS)

# Light tests share the cores, with lint. The heavy ones run one at a time, each file in a process of its own: Ray does
# not start twice in one without traces of the first.
test: .venv/.ready
	@$(RUN) export OMP_NUM_THREADS=1; status=0; \
	{ $(LINT); } & linting=$$!; trap 'kill $$linting 2>/dev/null; exit 130' INT; \
	python -m pytest -q -m "not heavy" -n 3 --dist loadfile $(ARGS) || status=1; \
	wait $$linting || status=1; \
	for file in $$(grep -rl "mark.heavy" tests --include="test_*.py" | sort); do \
		echo "== $$file"; python -m pytest -q -m heavy $$file $(ARGS) || status=1; \
	done; exit $$status

lint: .venv/.ready
	@$(RUN) $(LINT)

setup: .venv/.ready

.venv/.ready: pyproject.toml launch/setup.sh
	@launch/setup.sh
