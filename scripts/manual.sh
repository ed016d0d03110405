#!/usr/bin/env bash
# Prints the directory of the PostgreSQL manual in HTML: the one installed, else Debian's package unpacked into the
# state directory, which needs no root.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"


newest_manual() { # DIRECTORY: of the manuals below DIRECTORY/usr/share/doc
  local found
  for found in "$1"/usr/share/doc/postgresql-doc-*/html; do
    if [[ -e $found/index.html ]]; then echo "$found"; fi
  done | sort -V | tail -n1
}

by_hand="install postgresql-doc, or name a directory of text, Markdown or HTML files with QUICKSTART_DOCS=DIR, then run make again"

# apt's lists are empty in a fresh container; without root, private ones serve as well.
download() { # DIRECTORY
  local -a apt=(apt-get -qq)
  local package
  mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
  if [[ -z $(newest_package apt-cache) ]]; then
    if can_be_root; then
      apt_update_once
    else
      apt+=(-o "Dir::State::Lists=$1/lists" -o "Dir::Cache=$1/cache")
      "${apt[@]}" update >/dev/null 2>&1 || true
    fi
  fi
  package=$(newest_package apt-cache "${apt[@]:2}")
  [[ -n $package ]] || die "apt knows no package with the PostgreSQL manual: check the network, or $by_hand"
  say "downloading $package"
  (cd "$1" && "${apt[@]}" -o APT::Sandbox::User=root download "$package") >"$1/log" 2>&1 ||
    die "could not download $package ($(grep -E '^E:' "$1/log" | tail -n1)): check the network, or $by_hand"
}

newest_package() { # apt-cache [option …]
  "$@" search --names-only '^postgresql-doc-[0-9]+$' 2>/dev/null | cut -d' ' -f1 | sort -V | tail -n1
}

main() {
  local found
  found=$(newest_manual "")
  [[ -n $found ]] || found=$(newest_manual "$state_dir/manual")
  if [[ -z $found ]]; then
    { has apt-get && has dpkg-deb; } || die "the PostgreSQL manual is not on this system: $by_hand"
    make_state_dir
    new_scratch "$state_dir/manual"
    download "$scratch"
    mkdir "$scratch/tree"
    dpkg-deb -x "$scratch"/postgresql-doc-*.deb "$scratch/tree"
    chmod -R u=rwX,go=rX "$scratch/tree"
    rm -rf "$state_dir/manual"
    mv "$scratch/tree" "$state_dir/manual"
    found=$(newest_manual "$state_dir/manual")
    [[ -n $found ]] || die "the package of the PostgreSQL manual has no HTML in it: $by_hand"
  fi
  echo "$found"
}

main
