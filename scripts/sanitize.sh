#!/usr/bin/env bash
# The tests of the crates that need no server, with AddressSanitizer: sanitize.sh [CRATE…].
#
# Everything is compiled once more, below target/sanitize. ThreadSanitizer is not here: it wants a standard library that is
# compiled with it, and with the one that rustup brings it takes every channel and every joined thread for a race.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

main() {
  local host crate
  local -a crates=() packages=()
  need_rust
  need_nightly "AddressSanitizer"
  "$scripts/model.sh"
  for crate in "$root_dir"/crates/*/; do crates+=("$(basename "$crate")"); done
  if (($#)); then crates=("$@"); fi
  for crate in "${crates[@]}"; do packages+=(-p "$crate"); done
  host=$(rustc +nightly -vV | sed -n 's/^host: //p')
  step "tests with AddressSanitizer: ${crates[*]}"
  cd "$root_dir"
  # With optimisation, since the tests feed megabytes, but with overflow checks and debug assertions.
  RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes" CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
    CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
    PG_INGEST_MODEL_DIR=$target_dir/models \
    cargo +nightly test --release --target "$host" --target-dir "$target_dir/sanitize" --lib --tests "${packages[@]}"
}

main "$@"
