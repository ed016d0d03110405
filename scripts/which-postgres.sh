#!/usr/bin/env bash
# Prints the pg_config of the Postgres to use. With --say, one line on stderr tells which it is and why.
#
#   which-postgres.sh            for quickstart and tests: one that we can install into, at last a wheel of our own
#   which-postgres.sh --build    for `make && sudo make install`: who builds need not be able to install
#
# Of the system's, the first takes the newest from 15 to 17, the second the newest of all that pg_ingest can be built for. PG_CONFIG
# names one; PG_CONFIG=wheel asks for our own although the system has one.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for_build=no
aloud=no
for option in "$@"; do
  case $option in
    --build) for_build=yes ;;
    --say) aloud=yes ;;
    *) die "which-postgres.sh: unknown option $option" ;;
  esac
done

answer() { # PG_CONFIG WHY
  if [[ $aloud == yes ]]; then say "Postgres: $1 ($2)"; fi
  echo "$1"
  exit 0
}

can_install_into() {
  { [[ -w $("$1" --pkglibdir) && -w $(extension_dir "$1") ]]; } || can_be_root
}

# /usr/bin/pg_config may be a wrapper that follows the newest version; the one beside the server stays what it is.
beside_the_server() {
  local beside
  beside=$("$1" --bindir)/pg_config
  if [[ -x $beside ]]; then echo "$beside"; else echo "$1"; fi
}

# Debian's libpq-dev brings a pg_config and no server; so a server and its headers must both be there.
is_complete() {
  local bindir
  bindir=$("$1" --bindir 2>/dev/null) || return 1
  [[ -x $bindir/postgres && -x $bindir/initdb ]] && has_server_headers "$1"
}

# "major path" of each Postgres of the system, newest first.
system_postgres() {
  local candidate
  for candidate in "$(command -v pg_config || true)" /usr/lib/postgresql/*/bin/pg_config /usr/pgsql-*/bin/pg_config; do
    if [[ -x $candidate ]] && is_complete "$candidate"; then
      candidate=$(beside_the_server "$candidate")
      echo "$(pg_major "$candidate") $candidate"
    fi
  done | sort -rn -u
}

# Other programs read the answer in other directories.
absolute_path() { # PROGRAM
  local path
  path=$(command -v "$1") || return 1
  [[ $path == /* ]] || path=$(cd "$(dirname "$path")" && pwd)/$(basename "$path")
  [[ -x $path ]] && echo "$path"
}

choose_named() {
  local named major
  named=$(absolute_path "$PG_CONFIG") || die "PG_CONFIG=$PG_CONFIG is not a program: give the path of a pg_config, or leave it out"
  major=$(pg_major "$named")
  [[ $major =~ ^1[4-8]$ ]] || die "PG_CONFIG=$PG_CONFIG is of Postgres ${major:-unknown}; pg_ingest needs 14 to 18"
  has_server_headers "$named" ||
    die "the Postgres of PG_CONFIG=$PG_CONFIG has no server headers: install postgresql-server-dev-$major (Debian, Ubuntu) or postgresql$major-devel (Fedora), then run make again"
  if [[ $for_build == no ]] && ! can_install_into "$named"; then
    die "no right to install into the Postgres of PG_CONFIG=$PG_CONFIG: run as root, or leave PG_CONFIG out for one that needs no rights"
  fi
  answer "$named" "Postgres $major, named by PG_CONFIG"
}

choose() {
  local major candidate served='^1[5-7]$' range="15 to 17" reason
  if [[ $for_build == yes ]]; then
    served='^1[4-8]$'
    range="14 to 18"
  fi
  reason="no Postgres $range with its server and headers on this system"
  if [[ ${PG_CONFIG:-} == wheel ]]; then
    reason="asked for by PG_CONFIG=wheel"
  elif [[ -n ${PG_CONFIG:-} ]]; then
    choose_named
  else
    while read -r major candidate; do
      [[ $major =~ $served ]] || continue
      if [[ $for_build == yes ]] || can_install_into "$candidate"; then
        answer "$candidate" "Postgres $major, the newest of this system from $range with its server headers"
      fi
      reason="no right to install into the system's $candidate"
    done < <(system_postgres)
  fi
  candidate=$wheel_pg_config
  if [[ $for_build == yes && ! -x $candidate ]]; then
    die "$reason: install postgresql and postgresql-server-dev-NN (Debian, Ubuntu), name one with PG_CONFIG=…, or run make setup, which brings its own"
  fi
  answer "$candidate" "Postgres 16 of our own, from a Python wheel: $reason; it touches nothing of the system"
}

choose
