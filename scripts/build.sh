#!/usr/bin/env bash
# Builds the extension against the headers of the Postgres of PG_CONFIG, and leaves a note for the installation which
# Postgres that was.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

main() {
  local -a which=(--build)
  [[ -n ${PG_CONFIG:-} ]] || which+=(--say)
  PG_CONFIG=$("$scripts/which-postgres.sh" "${which[@]}")
  need_rust
  find_missing_build_tools
  if ((${#missing[@]})); then die_of_missing; fi
  cd "$root_dir"
  PGRX_PG_CONFIG_PATH=$PG_CONFIG cargo build --release --no-default-features --features "pg$(pg_major "$PG_CONFIG")" ||
    die "the extension did not build: the compiler's messages stand above"
  echo "$PG_CONFIG" >"$target_dir/release/pg_ingest.pg_config"
}

main
