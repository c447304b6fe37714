# Two commands do everything on a fresh machine: `make run` and `make test`.
PY := .venv/bin/python
JOBS ?= 2
.PHONY: help setup run demo-vault test test-slow test-vault check lint types imports report bench bench-quick profile clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make .venv/ with the locked packages and .venv/bin/ostiary
	@PYTHON="$(PYTHON)" sh tools/setup.sh

run: setup ## show a keyless request being served on the embedded store (ONCE=1: then end)
	@$(PY) -m tools.demo

demo-vault: setup ## the same on a real OpenBao, with a rotation
	@$(PY) -m tools.demo --vault

test: setup ## run the test suite
	@$(PY) -m pytest -n $(JOBS) -m "not slow"

test-slow: setup ## run what is too slow for every day
	@$(PY) -m pytest -n $(JOBS) -m slow --timeout=900

test-vault: setup ## the tests of Vault against HashiCorp Vault itself, built from source once (needs Go)
	@OSTIARY_TEST_VAULT="$$($(PY) -m tools.vaultserver)" && test -n "$$OSTIARY_TEST_VAULT" && export OSTIARY_TEST_VAULT && "$$OSTIARY_TEST_VAULT" version && \
	$(PY) -m pytest -n $(JOBS) --timeout=900 tests/vault tests/faults/test_vault.py tests/faults/test_store_and_policy.py \
		tests/faults/test_transit.py tests/e2e/test_rotation.py tests/e2e/test_rotation_costs.py tests/e2e/test_leases.py tests/e2e/test_client_certificates_vault.py \
		tests/ostiary/test_vault_policy.py tests/ostiary/test_vault_setup.py tests/ostiary/test_doctor.py \
		tests/slow/test_rotation.py tests/slow/test_leases_aws.py tests/slow/test_vault_life.py tests/slow/test_vault_network.py

check: setup lint types imports ## lint, format, types, import contracts, wheel contents, docs
	@$(PY) -m pytest -q tests/architecture tests/docs

lint:
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types:
	@.venv/bin/mypy

imports:
	@.venv/bin/lint-imports

report: ## write docs/testing.md and docs/guides/clients.md from the last test run
	@$(PY) -m tools.report

bench: setup ## measure against nginx and stock mitmdump; writes bench/RESULTS.md
	@$(PY) -m bench.run

bench-quick: setup ## the three main ratios, printed only
	@$(PY) -m bench.run --quick

profile: setup ## where the fast engine spends its time
	@$(PY) -m bench.profile

clean: ## remove what was built
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
