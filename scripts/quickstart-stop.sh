#!/usr/bin/env bash
# Stops the quickstart's server and removes all that the quickstart keeps in the state directory; tells what is left.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"
# shellcheck source=scripts/cluster.sh
source "$scripts/cluster.sh"


# The Postgres that made the cluster, whatever would be chosen today.
cluster_pg_config() { echo "$(cat "$state_dir/cluster-made-by" 2>/dev/null)/pg_config"; }

stop_server() {
  PG_CONFIG=$(cluster_pg_config)
  if [[ -x $PG_CONFIG ]] && cluster_exists && cluster_runs; then
    stop_cluster
    say "the server is stopped"
  fi
}

# By name, so that nothing is lost that somebody has put there since.
remove_state() {
  rm -rf "$state_dir"/{cluster,cluster-made-by,running-library,created-sql,documents,manual,postgres,left-behind,initdb.log,.pg_ingest}
  rm -rf "$state_dir"/{manual,postgres,pgvector}.new.*
  rmdir "$state_dir" 2>/dev/null || say "$state_dir holds other files too, and stays"
  say "removed: the cluster and everything else of the quickstart in $state_dir"
}

tell_what_is_left() { # PG_CONFIG NOTES
  if [[ -x $1 && -f $("$1" --pkglibdir)/pg_ingest.so ]]; then
    say "left: pg_ingest in $("$1" --pkglibdir) and $("$1" --sharedir): make uninstall PG_CONFIG=$1"
  fi
  if [[ -n $2 ]]; then say "left: ${2//$'\n'/$'\n'left: }"; fi
  if [[ -d $target_dir ]]; then say "left: what was built and downloaded in $target_dir: make clean"; fi
}

main() {
  local notes
  [[ -e $state_dir/.pg_ingest ]] || {
    say "nothing to stop or remove: there is nothing of the quickstart in $state_dir"
    exit 0
  }
  notes=$(cat "$state_dir/left-behind" 2>/dev/null || true)
  stop_server
  remove_state
  tell_what_is_left "$PG_CONFIG" "$notes"
}

main
