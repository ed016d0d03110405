#!/usr/bin/env bash
# The version matrix: matrix.sh [MAJOR…], 14 to 18 unless told. For each Postgres that can be had: builds and installs the
# extension, runs the whole server suite and makes and tries packages (15 and 17), or a smoke test (14, 16 and 18), and
# prints a table at the end. Servers and builds are kept, so that a second run costs the tests only. PG_CONFIG_NN names the
# Postgres NN to use.
#
# A version that is named must be had, and so must 15 and 17, which have the whole suite; of the others, those that can.
#
#   matrix.sh --find MAJOR    only prints the pg_config that it would use
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

versions=(14 15 16 17 18)
whole_suite=" 15 17 "
logs=$target_dir/matrix

# A Postgres of this version with its headers: the one named, else the system's when it can be installed into, else one of
# our own. Nothing when there is none; why is said.
find_postgres() { # MAJOR
  local named=PG_CONFIG_$1 wheel=${wheel_pg_config%/pginstall/*}
  local system=/usr/lib/postgresql/$1/bin/pg_config
  if [[ -n ${!named:-} ]]; then
    PG_CONFIG=${!named} "$scripts/which-postgres.sh"
  elif [[ -x $system ]] && has_server_headers "$system" && { can_be_root || [[ -w $(extension_dir "$system") ]]; }; then
    echo "$system"
  else
    case $1 in
      16 | 18)
        "$scripts/postgres-wheel.sh" || return 1
        if [[ $1 == 16 ]]; then echo "$wheel_pg_config"; else echo "$wheel/pginstall18/bin/pg_config"; fi
        ;;
      17) "$scripts/postgres-source.sh" 17 || "$scripts/postgres-17.sh" ;;
      *) "$scripts/postgres-source.sh" "$1" ;;
    esac
  fi
}

# Runs a step of a version with its output in a log; its last words on failure.
run_step() { # NAME COMMAND…
  local log=$logs/$major-$1.log
  shift
  "$@" >"$log" 2>&1 </dev/null && return
  say "  failed; what tests say, and the end of $log:"
  { grep -E -A 3 '^test .* FAILED$|panicked at' "$log" | head -n 60 || true; } >&2
  tail -n 15 "$log" >&2
  return 1
}

test_version() { # MAJOR: a row of the table
  local major=$1 kind=smoke start=$SECONDS full result
  [[ $whole_suite != *" $major "* ]] || kind=whole
  step "Postgres $major"
  if ! PG_CONFIG=$(find_postgres "$major"); then
    table+=("$major|-|none|not run: no server to be had here")
    if [[ $wanted == named || $kind == whole ]]; then broken+=("$major"); fi
    return 0
  fi
  export PG_CONFIG
  full=$("$PG_CONFIG" --version)
  full=${full#PostgreSQL }
  say "  $full ($PG_CONFIG)"
  result=passed
  run_step pgvector "$scripts/pgvector.sh" || result="no pgvector"
  [[ $result != passed || $kind != whole ]] || run_step injection "$scripts/install.sh" --injection || result="did not build"
  [[ $result != passed ]] || run_step build "$scripts/install.sh" || result="did not build"
  [[ $result != passed ]] || run_step tests "$scripts/test.sh" "$kind" || result="failed"
  if [[ $result == passed && $kind == whole ]]; then
    { run_step package "$scripts/package.sh" && run_step package-test "$scripts/package.sh" --test; } || result="packages failed"
  fi
  if [[ $result != passed ]]; then broken+=("$major"); fi
  if [[ -s $logs/$major-tests.log ]]; then
    result+=" ($(awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0 " passed, " failed + 0 " failed" }' "$logs/$major-tests.log"))"
  fi
  table+=("$major|${full%% *}|$kind|$result, $((SECONDS - start)) s")
}

print_table() {
  local row
  printf '\n%-10s %-10s %-8s %s\n' Postgres version tests result
  for row in "${table[@]}"; do
    IFS='|' read -r major full kind result <<<"$row"
    printf '%-10s %-10s %-8s %s\n' "$major" "$full" "$kind" "$result"
  done
}

main() {
  local version
  if [[ ${1:-} == --find ]]; then
    find_postgres "${2:?which major version?}"
    return
  fi
  wanted=any
  if (($#)); then
    versions=("$@")
    wanted=named
  fi
  table=()
  broken=()
  mkdir -p "$logs"
  rm -f "$logs"/*.log
  for version in "${versions[@]}"; do test_version "$version"; done
  print_table
  ((${#broken[@]} == 0)) || die "pg_ingest does not hold on Postgres ${broken[*]}, or it was not to be had: see $logs"
}

main "$@"
