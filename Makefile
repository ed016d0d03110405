# What a Postgres person types. The recipes are one line each: the work is done by scripts/, which can be run by
# hand as well. Variables: PG_CONFIG (which Postgres), DESTDIR (packaging), MODEL=no (without the local model),
# PG_INGEST_HOME (where the quickstart keeps its files), QUICKSTART_DOCS, QUICKSTART_PATTERN (what the quickstart loads).

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all help quickstart quickstart-stop setup build install uninstall model test test-rust installcheck test-matrix package package-test torture bench clean

all: help build $(if $(filter no,$(MODEL)),,model)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

quickstart: ## everything from an empty machine to answers out of the PostgreSQL manual
	@scripts/quickstart.sh

quickstart-stop: ## stop the quickstart's server and remove its files
	@scripts/quickstart-stop.sh

setup: ## install what is missing: compiler, libclang, Postgres, pgvector, the model
	@scripts/setup.sh

build: ## build the extension (release)
	@scripts/build.sh

install: ## install the extension and its model into the Postgres of PG_CONFIG
	@scripts/install.sh

uninstall: ## remove them again
	@scripts/install.sh --remove

model: ## download the local model and verify its checksum
	@scripts/model.sh

test: ## set up, build, install, and run every test
	@scripts/test.sh all

test-rust: ## formatting, clippy, and the tests that need no server
	@scripts/test.sh rust

installcheck: ## the tests against a real server, with the extension as installed
	@scripts/test.sh installcheck

test-matrix: ## the server tests on Postgres 14 to 18, as far as they can be had
	@scripts/matrix.sh

package: ## a tarball and a .deb for the Postgres of PG_CONFIG, in target/package
	@scripts/package.sh

package-test: ## install those into copies of that Postgres, and test them there
	@scripts/package.sh --test

torture: ## the long tests: deaths at every point, random operations, fuzzing, sanitizers
	@scripts/test.sh torture

bench: ## the benchmarks, as ratios within one run
	@scripts/test.sh bench

clean: ## remove what was built and downloaded here
	@cargo clean
