# What one can do here: `make help`. Each command first makes the virtual environment .venv, with pinned versions.
#
# PYTHON=/path/to/python       use this interpreter instead of the first of python3.12, python3.11, python3
# ARGS='tests/jobs -k cancel'  for `make test`: what pytest shall run
# MINUTES=15 SEED=1            for `make chaos fuzz` and `make fuzz`: how long, and which run

# torch with more threads than idle cores mostly waits for itself.
export OMP_NUM_THREADS ?= 1

DEMO = demo-output

.PHONY: help demo test test-slow test-all chaos fuzz alerts units check format lint types package dist constraints clean

help: ## say what one can do here
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/installed ## edit the pictures of examples/data.csv on this machine, no GPU needed
	.venv/bin/producer run examples/data.csv --output-dir $(DEMO)

test: .venv/installed ## run the tests, those with a real Redis, S3 and HTTP server too, side by side
	.venv/bin/pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: .venv/installed ## run the soaks and sweeps that `make test` leaves out
	.venv/bin/pytest -n auto --dist loadfile -m slow $(or $(ARGS),$(shell grep -rlF mark.slow tests --include='*.py'))

test-all: .venv/installed ## run both in one go, which takes less time than one after the other
	.venv/bin/pytest -n auto --dist worksteal $(ARGS)

chaos: .venv/installed ## hundreds of jobs under random faults (MINUTES=5 SEED=...); nothing may get lost
	.venv/bin/python -m tests.chaos.soak --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

fuzz: .venv/installed ## random damage of messages, jobs, images, weights and tables (MINUTES=5 SEED=...); nothing may raise
	.venv/bin/python -m tests.fuzz --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

alerts: .venv/installed ## make the cause of each alert and see a real Prometheus raise it (ARGS=KontextRedisAway)
	.venv/bin/python -m tests.deploy.alerts $(ARGS)

units: .venv/installed ## boot a systemd, install the units, and kill, freeze, restart and stop workers (root; ARGS=...)
	.venv/bin/python -m tests.deploy.booted $(ARGS)

check: format lint types ## format, lint and type-check; see that imports point one way
	.venv/bin/pytest -q tests/test_architecture.py

format: .venv/installed ## lay out the code (with CI=true: only say what is not)
	.venv/bin/ruff format $(if $(CI),--check) .

lint: .venv/installed
	.venv/bin/ruff check .

types: .venv/installed
	.venv/bin/mypy

package: .venv/installed ## build the wheel and try it in an environment that has nothing else
	tools/try-wheel .venv/bin/python

dist: .venv/installed ## build sdist, wheel, bill of materials (CycloneDX) and list of licences, into dist/
	rm -rf dist
	.venv/bin/python -m build --outdir dist .
	.venv/bin/python tools/bill-of-materials dist
	cd dist && sha256sum * > SHA256SUMS

constraints: .venv/installed ## write what is installed in .venv into constraints.txt
	tools/freeze .venv/bin/python > constraints.new
	mv constraints.new constraints.txt

clean: ## remove the virtual environment, caches and the demo's pictures
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis $(DEMO)

.venv/installed: pyproject.toml constraints.txt
	@python=$$(tools/find-python) && { test -x .venv/bin/pip || $$python -m venv .venv; }
	@echo "Installing the pinned packages into .venv (1.5 GB on disk; more with CUDA) ..."
	@.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,dev]'
	@touch $@
