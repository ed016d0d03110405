#!/usr/bin/env bash
# Installs the clients that tests/clients.rs reads with, apart from everything else, and prints where: those of Python, and
# supabase-js where there is a Node.js to run it. Only what is missing is downloaded.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(vecs==0.4.5 llama-index-vector-stores-supabase==0.6.0 llama-index-core==0.14.25 langchain-community==0.4.2)
place=$state_dir/clients
# Which supabase-js, with the checksums of all that it needs.
package_json=$root_dir/tests/clients/package.json
package_lock=$root_dir/tests/clients/package-lock.json
javascript=$place/javascript

has_python_clients() {
  [[ $(cat "$place/packages" 2>/dev/null) == "${packages[*]}" ]] && "$(cat "$place/python")" -c '' 2>/dev/null
}

install_python_clients() {
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
}

has_npm() { has npm && node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' 2>/dev/null; }

has_supabase_js() {
  cmp -s "$package_lock" "$javascript/package-lock.json" && "$(cat "$javascript/node" 2>/dev/null)" -e '' 2>/dev/null
}

# Without it one test is skipped and says so: few who build a Postgres extension have a Node.js.
install_supabase_js() {
  rm -rf "$javascript"
  if ! has_npm; then
    say "supabase-js is not tested: there is no Node.js 18 or newer with npm"
    return
  fi
  make_state_dir
  new_scratch "$javascript"
  say "installing supabase-js into $javascript"
  cp "$package_json" "$package_lock" "$scratch"
  if ! npm ci --prefix "$scratch" --ignore-scripts --no-audit --no-fund --fetch-retries 1 >"$scratch/log" 2>&1; then
    say "supabase-js is not tested: npm could not install it ($(grep -m1 'npm error' "$scratch/log" | cut -c1-200))"
    return
  fi
  node -p process.execPath >"$scratch/node"
  mv "$scratch" "$javascript"
}

main() {
  has_python_clients || install_python_clients
  has_supabase_js || install_supabase_js
  echo "$place"
}

main
