#!/usr/bin/env bash
# Builds a Postgres from Debian's source package into the state directory: postgres-source.sh MAJOR. Prints its pg_config.
# For `make test-matrix`, where the system has none of that version; it has what the tests need, and no more.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"
# shellcheck source=scripts/debian-source.sh
source "$scripts/debian-source.sh"

# The release of Debian that has this major version.
release_of() {
  case $1 in
    15) echo bookworm ;;
    17) echo trixie ;;
    *) die "no supported release of Debian has the source of Postgres $1: name an installed one with PG_CONFIG_$1=…" ;;
  esac
}

see_to_tools() {
  local program
  local -a wanted=()
  for program in gcc make bison flex perl; do has "$program" || wanted+=("$program"); done
  ((${#wanted[@]})) || return 0
  { has apt-get && can_be_root; } || die "building Postgres needs ${wanted[*]}: install them, then run $0 again"
  apt_install "${wanted[@]}"
}

build() { # PACKAGE RELEASE PLACE
  local dir
  make_state_dir
  see_to_tools
  new_scratch "$state_dir/$1-build"
  dir=$scratch
  download_source "$dir" "$2" "$1" || die "no source of $1: $why_no_source"
  say "building $(basename "$dir/$1"_*.orig.tar.* | sed -E 's/_/ /; s/\.orig.*//'), which takes minutes"
  # Installed in its place only when it is whole.
  (cd "$dir/source" && ./configure --quiet --prefix="$3" --without-readline --without-icu --without-zlib &&
    make -s "-j$(nproc)" && make -s -C contrib "-j$(nproc)" &&
    make -s install "DESTDIR=$dir/root" && make -s -C contrib install "DESTDIR=$dir/root") >"$dir/log" 2>&1 </dev/null ||
    die "$1 did not build: $(grep -E 'error|Error' "$dir/log" | head -n1)"
  chmod -R go=rX "$dir/root"
  mv "$dir/root$3" "$3"
}

main() {
  local major=${1:?which major version?} release place
  release=$(release_of "$major")
  place=$state_dir/postgresql-$major
  [[ -x $place/bin/pg_config ]] || build "postgresql-$major" "$release" "$place"
  echo "$place/bin/pg_config"
}

main "$@"
