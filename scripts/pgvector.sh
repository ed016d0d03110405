#!/usr/bin/env bash
# Sees to it that the Postgres of PG_CONFIG has pgvector: the distribution's package if there is one for this version,
# else built from Debian's source package. The wheel's Postgres brings its own.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/debian-source.sh
source "$(dirname "${BASH_SOURCE[0]}")/debian-source.sh"

# The Debian release whose pgvector is built where the installed one has none (Debian 12 has none).
source_release=trixie

pg_config=${PG_CONFIG:?}
major=$(pg_major "$pg_config")
extension_dir=$(extension_dir "$pg_config")

is_distribution_postgres() { [[ $("$pg_config" --bindir) == "/usr/lib/postgresql/$major/bin" ]]; }

has_package() { [[ -n $(apt-cache --quiet search --names-only "^$1\$" 2>/dev/null) ]]; }

die_by_hand() {
  die "pgvector is not installed in the Postgres of $pg_config ($1): install it there (postgresql-$major-pgvector, pgvector_$major, or its source) or try PG_CONFIG=wheel, then run make again"
}

build_from_source() {
  local dir
  make_state_dir
  new_scratch "$state_dir/pgvector"
  dir=$scratch
  if ! has make; then
    can_be_root || die_by_hand "and there is no make to build it with"
    apt_install make
  fi
  download_source "$dir" "$source_release" pgvector || die_by_hand "$why_no_source"
  say "building $(basename "$dir"/pgvector_*.orig.tar.* | sed -E 's/_/ /; s/\.orig.*//') for Postgres $major"
  # OPTFLAGS: without it the code is tuned to this machine's processor. DESTDIR: ours, if any, is not pgvector's.
  local -a how=(OPTFLAGS= with_llvm=no DESTDIR= "PG_CONFIG=$pg_config")
  make -C "$dir/source" "-j$(nproc)" "${how[@]}" >"$dir/log" 2>&1 ||
    die_by_hand "it did not build: $(grep -E 'error|Error' "$dir/log" | head -n1)"
  local -a run=()
  [[ -w $extension_dir ]] || run=(as_root)
  "${run[@]}" make -C "$dir/source" install "${how[@]}" >"$dir/log" 2>&1 ||
    die_by_hand "it did not install: $(tail -n1 "$dir/log")"
  note_left_behind "pgvector in $extension_dir: rm -r $("$pg_config" --pkglibdir)/vector.so $extension_dir/vector.control $extension_dir/vector--*.sql $("$pg_config" --includedir-server)/extension/vector"
}

main() {
  if [[ -f $extension_dir/vector.control ]]; then exit 0; fi
  [[ -w $extension_dir ]] || can_be_root || die_by_hand "and there is no right to install it"
  has apt-get || die_by_hand "and this system has no apt"
  if can_be_root && is_distribution_postgres; then
    apt_update_once
    if has_package "postgresql-$major-pgvector"; then
      apt_install "postgresql-$major-pgvector"
      exit 0
    fi
  fi
  is_debian || die_by_hand "and the distribution has no package for Postgres $major"
  build_from_source
}

main
