#!/usr/bin/env bash
# Fuzzes what reads things from outside: fuzz.sh [SECONDS_PER_TARGET] [TARGET…], half a minute each and all targets unless
# told. The seed is printed; TORTURE_SEED gives it. What a fuzzer found worth keeping stays below target/, for the next run.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

cargo_fuzz_version=0.13.2
# What no input may take: seconds (the slowest committed one takes a hundredth of it), and memory in MB, that of the
# sanitizer and of two encodings' vocabularies included.
slowest_input=20
most_memory=2048

work=$target_dir/fuzz

need_fuzzer() {
  need_rust
  need_nightly "fuzzing"
  has c++ || has g++ || has clang++ ||
    die "fuzzing needs a C++ compiler, for libFuzzer: install g++ (Debian, Ubuntu) or gcc-c++ (Fedora), then run $0 again"
  PATH=$target_dir/tools/bin:$PATH
  if ! cargo fuzz --version >/dev/null 2>&1; then
    say "installing cargo-fuzz $cargo_fuzz_version into $target_dir/tools"
    cargo install --quiet --locked --root "$target_dir/tools" --version "$cargo_fuzz_version" cargo-fuzz ||
      die "cargo-fuzz did not install: run 'cargo install cargo-fuzz --locked' by hand to see why"
  fi
}

dictionary_of() { # TARGET
  case $1 in
    answer | refusal | options) echo json ;;
    chunks | tokens) echo text ;;
    files) echo html ;;
    headers | endpoint) echo "$1" ;;
  esac
}

# The figure that libFuzzer calls NAME in its last words.
figure() { sed -nE "s/^stat::$1: *([0-9]+)$/\1/p" "$2" | tail -n1; }

show_crash() { # TARGET LOG FILE
  say "" "$1 broke a promise. The end of $2:"
  grep -vE '^(#[0-9]+\s+(NEW|REDUCE|RELOAD|pulse)|\s*NEW_FUNC|WARNING: Failed to find|INFO:)' "$2" | tail -n 40 | cut -c1-300 >&2
  if [[ -n $3 ]]; then
    say "" "The input, $(wc -c <"$3") bytes:"
    head -c 1024 "$3" | od -An -c -v | head -n 40 >&2
    say "It is in $3. Once more: $program $3" \
      "When it is mended, keep the input as fuzz/seeds/$1/WHAT-IT-SHOWS."
  fi
}

fuzz() { # TARGET SEED SECONDS
  local log=$work/logs/$1.log corpus=$work/corpus/$1 found=$work/found/$1 dictionary options=() start=$SECONDS
  program=$work/$host/release/$1
  mkdir -p "$work/logs" "$corpus" "$found"
  rm -f "$found"/*
  dictionary=$(dictionary_of "$1")
  [[ -z $dictionary ]] || options+=("-dict=$root_dir/fuzz/dictionaries/$dictionary.dict")
  if ! (cd "$work" && RUST_BACKTRACE=0 timeout --kill-after=10 "$(($3 + 10 * slowest_input))" "$program" "$corpus" "$root_dir/fuzz/seeds/$1" \
    "${options[@]}" -seed="$2" -max_total_time="$3" -max_len=4096 -timeout="$slowest_input" -rss_limit_mb="$most_memory" \
    -artifact_prefix="$found/" -print_final_stats=1) >"$log" 2>&1; then
    show_crash "$1" "$log" "$(find "$found" -type f | head -n1)"
    return 1
  fi
  printf '  %-10s %10d inputs, %7d/s, slowest %3d s, %5d MB, %d s\n' "$1" "$(figure number_of_executed_units "$log")" \
    "$(figure average_exec_per_sec "$log")" "$(figure slowest_unit_time_sec "$log")" "$(figure peak_rss_mb "$log")" \
    $((SECONDS - start)) >&2
}

main() {
  local seconds=30 given seed target
  local -a targets=() broken=()
  if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
  fi
  for target in "$root_dir"/fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$target" .rs)"); done
  for target in "$@"; do
    [[ -f $root_dir/fuzz/fuzz_targets/$target.rs ]] || die "fuzz.sh: no target $target; there are ${targets[*]}"
  done
  if (($#)); then targets=("$@"); fi
  need_fuzzer
  given=${TORTURE_SEED:-$((RANDOM * 32768 + RANDOM))}
  [[ $given =~ ^[0-9]+$ ]] || die "fuzz.sh: TORTURE_SEED is a number, not $given"
  # libFuzzer takes 32 bits, and zero for "any".
  seed=$(((10#$given & 0x7fffffff) + 1))
  host=$(rustc +nightly -vV | sed -n 's/^host: //p')
  step "building the fuzz targets"
  (cd "$root_dir" && CARGO_TARGET_DIR=$work cargo +nightly fuzz build --fuzz-dir fuzz --sanitizer none --target "$host") ||
    die "the fuzz targets did not build: the compiler's messages stand above"
  step "fuzzing ${#targets[@]} targets for $seconds s each, TORTURE_SEED=$given"
  for target in "${targets[@]}"; do fuzz "$target" "$seed" "$seconds" || broken+=("$target"); done
  if ((${#broken[@]})); then
    die "fuzzing found something in ${broken[*]}; repeat with TORTURE_SEED=$given $0 $seconds ${broken[*]}"
  fi
}

main "$@"
