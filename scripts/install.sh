#!/usr/bin/env bash
# Installs the extension, its SQL and the model into the Postgres it was built for (or that of PG_CONFIG), below DESTDIR
# if given. With --remove, takes them away again. With --injection, installs what the crash tests need beside it.
# MODEL=no leaves the model out.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

library=$target_dir/release/libpg_ingest.so
built_for=$target_dir/release/pg_ingest.pg_config
model=$target_dir/models/all-MiniLM-L6-v2

# Under sudo the checkout is somebody else's: root must not leave files in it, and has no cargo as a rule.
may_build() { ! is_root || [[ -O $root_dir ]]; }

choose_postgres() {
  if [[ -z ${PG_CONFIG:-} && -s $built_for ]]; then PG_CONFIG=$(<"$built_for"); fi
  export PG_CONFIG=${PG_CONFIG:-}
  PG_CONFIG=$("$scripts/which-postgres.sh" --build)
}

build_if_needed() {
  local major built_major=none
  if may_build; then
    "$scripts/build.sh"
    [[ ${MODEL:-} == no ]] || "$scripts/model.sh"
    return
  fi
  major=$(pg_major "$PG_CONFIG")
  if [[ -s $built_for ]]; then built_major=$(pg_major "$(<"$built_for")"); fi
  [[ -f $library && $built_major == "$major" ]] ||
    die "the extension is not built for Postgres $major: run make PG_CONFIG=$PG_CONFIG first, as the owner of this directory"
  [[ ${MODEL:-} == no || -f $model/LICENSE ]] ||
    die "the model is not there: run make model first, as the owner of this directory (or make install MODEL=no)"
}

# `run` goes before each command that changes the Postgres tree.
run=()
find_rights() {
  local dir
  [[ -z $destdir ]] || return 0
  for dir in "$libdir" "$extdir"; do
    if [[ -w $dir ]]; then continue; fi
    can_be_root || die "no right to write to $dir: run sudo make install"
    say "installing with sudo, for $dir is not ours to write"
    run=(as_root)
    return 0
  done
}

# By rename: a running server goes on with the file that it has mapped, and nobody ever sees half a file.
place() { # FILE DESTINATION [MODE]
  if cmp -s "$1" "$2"; then return; fi
  "${run[@]}" install -d -m 755 "$(dirname "$2")"
  "${run[@]}" install -m "${3:-644}" "$1" "$2.new"
  "${run[@]}" mv -f "$2.new" "$2"
  say "  $2"
}

# The hand-written SQL in loading order, as one script.
join_sql() { # FILE [DIRECTORY...]
  local part file=$1
  local LC_ALL=C
  shift
  : >"$file"
  for part in "$root_dir"/sql/*.sql "$@"; do
    [[ -e $part ]] || die "no SQL in sql/: this is not a whole checkout"
    cat "$part" >>"$file"
    echo >>"$file"
  done
}

control_version() { sed -nE "s/^default_version = '(.*)'/\1/p" "$root_dir/pg_ingest.control"; }

# A version of its own, with a library of its own: nobody gets it who does not ask for it by name.
install_injection() {
  local version sql control
  version=$(control_version)-injection
  sql=$(mktemp)
  control=$(mktemp)
  join_sql "$sql" "$root_dir"/sql/injection/*.sql
  echo "module_pathname = '\$libdir/pg_ingest_injection'" >"$control"
  say "installing the library of the crash tests into Postgres $(pg_major "$PG_CONFIG") ($PG_CONFIG)"
  place "$target_dir/release/libpg_ingest_injection.so" "$libdir/pg_ingest_injection.so" 755
  place "$control" "$extdir/pg_ingest--$version.control"
  place "$sql" "$extdir/pg_ingest--$version.sql"
  rm -f "$sql" "$control"
}

install_all() {
  local version sql step file
  version=$(control_version)
  sql=$(mktemp)
  join_sql "$sql"
  say "installing into Postgres $(pg_major "$PG_CONFIG") ($PG_CONFIG)${destdir:+ below $destdir}"
  place "$library" "$libdir/pg_ingest.so" 755
  place "$root_dir/pg_ingest.control" "$extdir/pg_ingest.control"
  place "$sql" "$extdir/pg_ingest--$version.sql"
  rm -f "$sql"
  # For whoever has supautils: docs/supabase.md.
  place "$root_dir/supabase/after-create.sql" "$(dirname "$modeldir")/after-create.sql"
  # The releases before, as they were, and the way from each to the next.
  for step in "$root_dir"/sql/releases/pg_ingest--*.sql; do place "$step" "$extdir/$(basename "$step")"; done
  for step in "$root_dir"/sql/upgrade/*--*.sql; do place "$step" "$extdir/pg_ingest--$(basename "$step")"; done
  if [[ ${MODEL:-} != no ]]; then
    for file in model.onnx tokenizer.json sentence_bert_config.json LICENSE; do
      place "$model/$file" "$modeldir/all-MiniLM-L6-v2/$file"
    done
  fi
}

# Models of other origin in the same place stay.
remove_all() {
  say "removing pg_ingest from Postgres $(pg_major "$PG_CONFIG") ($PG_CONFIG)"
  "${run[@]}" rm -f "$libdir/pg_ingest.so" "$libdir/pg_ingest_injection.so" "$extdir/pg_ingest.control" \
    "$extdir"/pg_ingest--*.sql "$extdir"/pg_ingest--*.control
  "${run[@]}" rm -rf "$modeldir/all-MiniLM-L6-v2" "$(dirname "$modeldir")/after-create.sql"
  "${run[@]}" rmdir --ignore-fail-on-non-empty -p "$modeldir" 2>/dev/null || true
  [[ -n $destdir ]] ||
    say "a server that has pg_ingest in shared_preload_libraries does not start again until it is taken out there (docs/installing.md)"
}

choose_postgres
destdir=${DESTDIR:-}
libdir=$destdir$("$PG_CONFIG" --pkglibdir)
extdir=$destdir$(extension_dir "$PG_CONFIG")
modeldir=$destdir$("$PG_CONFIG" --sharedir)/pg_ingest/models
case ${1:-} in
  "")
    build_if_needed
    find_rights
    install_all
    ;;
  --injection)
    "$scripts/build.sh" --injection
    find_rights
    install_injection
    ;;
  --remove)
    find_rights
    remove_all
    ;;
  *) die "install.sh: unknown option $1" ;;
esac
