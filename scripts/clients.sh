#!/usr/bin/env bash
# Installs the Python clients that tests/clients.rs reads with, apart from everything else, and prints where. Only what is
# missing is downloaded.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(vecs==0.4.5 llama-index-vector-stores-supabase==0.6.0 llama-index-core==0.14.25 langchain-community==0.4.2)
place=$state_dir/clients

main() {
  if [[ $(cat "$place/packages" 2>/dev/null) == "${packages[*]}" ]] && "$(cat "$place/python")" -c '' 2>/dev/null; then
    echo "$place"
    exit 0
  fi
  local python
  python=$(python_with_pip) || {
    find_missing_pip
    die_of_missing
  }
  make_state_dir
  new_scratch "$place"
  say "installing ${packages[*]} into $place"
  "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --target "$scratch/lib" "${packages[@]}" \
    >"$scratch/log" 2>&1 || die "pip could not install the clients ($(tail -n1 "$scratch/log" | cut -c1-200)): check the network, then run make again"
  "$python" -c 'import sys; print(sys.executable)' >"$scratch/python"
  echo "${packages[*]}" >"$scratch/packages"
  rm -rf "$place"
  mv "$scratch" "$place"
  echo "$place"
}

main
