#!/usr/bin/env bash
# Prints which crates the library contains that are not ours, under which licences, and the texts of these as the crates bring
# them: licenses.sh pgNN, the feature that it is built with. For packages, which hand copies on.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# "name-version|licence|origin" of each crate that is linked. Those with a path are ours.
linked_crates() { # FEATURE HOST
  cargo tree --locked --quiet --package pg_ingest --edges normal,no-proc-macro --target "$2" --no-default-features --features "$1" \
    --prefix none --no-dedupe --format '{p}|{l}|{r}' |
    sed -nE '/ \(\//!s/^([^ ]+) v([^ |]+)[^|]*/\1-\2/p' | LC_ALL=C sort -u
}

# Sets ${source[name-version]} to the directory of each crate.
declare -A source
find_sources() { # HOST
  local manifest
  while read -r manifest; do
    manifest=${manifest%/Cargo.toml}
    source[${manifest##*/}]=$manifest
  done < <(cargo metadata --locked --quiet --format-version 1 --filter-platform "$1" |
    grep -oE '"manifest_path":"[^"]*"' | cut -d'"' -f4)
}

# The standard library comes with the compiler; its crates are under the same licences.
standard_library() { echo "std-$(rustc --version | cut -d' ' -f2)|MIT OR Apache-2.0|the Rust project"; }

print_list() {
  local crate licence origin
  echo "pg_ingest.so contains code of these Rust crates, besides its own. The texts of their licences, as far as the crates bring"
  echo "them, stand below."
  echo
  while IFS='|' read -r crate licence origin; do
    printf '%-36s %-36s %s\n' "$crate" "$licence" "$origin"
  done <<<"$crates"
}

# Each text once, with the crates that have it.
print_texts() {
  local crate file hash
  local -A users=() text=()
  local -a order=()
  while IFS='|' read -r crate _; do
    [[ -n ${source[$crate]:-} ]] || continue
    while read -r file; do
      hash=$(sha256sum <"$file")
      if [[ -z ${text[$hash]:-} ]]; then
        text[$hash]=$file
        order+=("$hash")
      fi
      users[$hash]+=" $crate"
    done < <(find "${source[$crate]}" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'copyright*' \
      -o -iname 'notice*' -o -iname 'unlicense*' \) | LC_ALL=C sort)
  done <<<"$crates"
  for hash in "${order[@]}"; do
    printf '\n%s\n' "-------------------------------------------------------------------------------"
    tr ' ' '\n' <<<"${users[$hash]# }" | uniq | paste -sd ' ' | fold -s -w 100
    echo
    cat "${text[$hash]}"
  done
}

main() {
  local host
  need_rust
  cd "$root_dir"
  host=$(rustc -vV | sed -n 's/^host: //p')
  crates=$(linked_crates "${1:?which feature?}" "$host")
  [[ $crates == *"pgrx-"* ]] || die "cargo does not say which crates the library contains"
  find_sources "$host"
  crates+=$'\n'$(standard_library)
  print_list
  print_texts
}

main "$@"
