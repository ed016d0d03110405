#!/usr/bin/env bash
# The tests: test.sh all | rust | installcheck | whole | smoke | bench | torture.
#
# The dependencies take minutes to compile, so everything is arranged to share them: all use the release profile, and
# all name the package pg_ingest too, because cargo compiles a dependency with the features that the named packages
# together ask for. (pg_ingest itself has no tests for cargo: its library only links inside Postgres.)
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"
cd "$root_dir"

use_postgres() { # [--build]
  PG_CONFIG=$("$scripts/which-postgres.sh" "$@")
  export PG_CONFIG
  export PGRX_PG_CONFIG_PATH=$PG_CONFIG
  features=(--no-default-features --features "pg_ingest/pg$(pg_major "$PG_CONFIG")")
}

formatting() {
  need_rust
  { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 ||
    die "the tests need rustfmt and clippy: run 'rustup component add rustfmt clippy', then run make again"
  step "formatting"
  cargo fmt --all --check
}

rust_tests() {
  "$scripts/model.sh"
  step "clippy"
  cargo clippy --release --workspace --all-targets "${features[@]}" --features tests/injection -- -D warnings
  step "tests without a server"
  PG_INGEST_MODEL_DIR=$target_dir/models \
    cargo test --release -p pg_ingest -p chunker -p embedder -p engine -p files -p injection -p limiter -p fake_api -p fuzz_targets \
      "${features[@]}"
}

# The tests against a server start their own clusters, as this user when they run as root.
with_server() {
  [[ -f $("$PG_CONFIG" --pkglibdir)/pg_ingest.so ]] ||
    die "pg_ingest is not installed in the Postgres of $PG_CONFIG: run make install PG_CONFIG=$PG_CONFIG first"
  if is_root; then
    PG_INGEST_TEST_USER=$(server_user)
    export PG_INGEST_TEST_USER
  fi
  PG_INGEST_MODEL_DIR=$("$PG_CONFIG" --sharedir)/pg_ingest/models "$@"
}

server_tests() { # [cargo's option …]
  step "tests against a server"
  PG_INGEST_CLIENTS=$("$scripts/clients.sh")
  export PG_INGEST_CLIENTS
  with_server cargo test --release --no-fail-fast -p pg_ingest -p tests "${features[@]}" "$@"
}

# What tells within a minute whether a Postgres version is served at all.
smoke_tests=(--test quickstart --test documents --test search --test restore --test upgrade --test standby)

benchmarks() {
  cargo build --release -p pg_ingest -p tests --bin bench "${features[@]}"
  with_server "$target_dir/release/bench"
}

# TORTURE_SEED repeats a run, TORTURE_SCALE makes it longer or shorter, FUZZ_SECONDS is the time for each fuzz target.
torture() {
  cargo build --release -p pg_ingest -p tests --bin torture "${features[@]}" --features tests/injection
  export TORTURE_SEED=${TORTURE_SEED:-$(date +%s)}
  say "TORTURE_SEED=$TORTURE_SEED"
  timed with_server "$target_dir/release/torture"
  timed "$scripts/fuzz.sh" "${FUZZ_SECONDS:-20}"
  timed "$scripts/sanitize.sh"
}

# What took how long: the budget of a fresh machine is mostly building.
timed() {
  local start=$SECONDS
  "$@"
  say "-- ${*##*/}: $((SECONDS - start)) s"
}

all_tests() {
  timed "$scripts/setup.sh"
  use_postgres
  # Before the build: it takes a second, and the build minutes.
  formatting
  step "build and install"
  timed "$scripts/install.sh" --injection
  timed "$scripts/install.sh"
  timed rust_tests
  timed server_tests --features tests/injection
}

case ${1:-} in
  all) all_tests ;;
  rust)
    use_postgres --build
    formatting
    rust_tests
    ;;
  installcheck)
    use_postgres
    server_tests "${@:2}"
    ;;
  # What `make test-matrix` runs on each Postgres, where the extension is installed already.
  whole)
    use_postgres
    server_tests --features tests/injection
    ;;
  smoke)
    use_postgres
    server_tests "${smoke_tests[@]}"
    ;;
  torture)
    "$scripts/setup.sh"
    use_postgres
    step "build and install"
    "$scripts/install.sh" --injection
    "$scripts/install.sh"
    torture
    ;;
  bench)
    use_postgres
    benchmarks
    ;;
  *) die "test.sh: say all, rust, installcheck, whole, smoke, bench or torture" ;;
esac
