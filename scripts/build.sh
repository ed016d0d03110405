#!/usr/bin/env bash
# Builds the extension against the headers of the Postgres of PG_CONFIG, and leaves a note for the installation which
# Postgres that was. With --injection, builds the library of the crash tests instead, at whose points SQL makes the worker
# wait, fail or die; it has a name of its own.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

build() { # FEATURES
  PGRX_PG_CONFIG_PATH=$PG_CONFIG cargo build --release --no-default-features --features "$1" ||
    die "the extension did not build: the compiler's messages stand above"
}

main() {
  local -a which=(--build)
  [[ -n ${PG_CONFIG:-} ]] || which+=(--say)
  PG_CONFIG=$("$scripts/which-postgres.sh" "${which[@]}")
  need_rust
  find_missing_build_tools
  if ((${#missing[@]})); then die_of_missing; fi
  cd "$root_dir"
  if [[ ${1:-} == --injection ]]; then
    build "pg$(pg_major "$PG_CONFIG"),injection"
    cp "$target_dir/release/libpg_ingest.so" "$target_dir/release/libpg_ingest_injection.so"
    # What is left there may be installed.
    rm "$target_dir/release/libpg_ingest.so"
    return
  fi
  build "pg$(pg_major "$PG_CONFIG")"
  echo "$PG_CONFIG" >"$target_dir/release/pg_ingest.pg_config"
}

main "$@"
