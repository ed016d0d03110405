# shellcheck shell=bash
# The quickstart's own Postgres cluster: made, started, asked, stopped. Sourced after lib.sh.
#
# It has no TCP port at all. Its socket lies in a directory that only the server's user (and root) can enter, and who
# can enter is trusted; so it needs no password and meets no other server.

cluster=${state_dir:?}/cluster
data=$cluster/data
sockets=$cluster/socket
server_log=$cluster/log
database=quickstart

pg_bin() { "$PG_CONFIG" --bindir; }

cluster_exists() { as_server test -f "$data/PG_VERSION"; }
cluster_runs() { as_server "$(pg_bin)/pg_ctl" -D "$data" status >/dev/null 2>&1; }

# Rows on stdout, columns separated by a character that no text has; errors on stderr.
column_separator=$'\x1f'
sql() { # [psql option …], SQL on stdin
  "$(pg_bin)/psql" -X -q -A -t -F "$column_separator" -v ON_ERROR_STOP=1 -h "$sockets" -p 5432 -U postgres -d "$database" "$@"
}

make_cluster() {
  local owner locale=C.UTF-8
  # A Unix socket's path has room for 107 bytes.
  ((${#sockets} < 90)) || die "the path $sockets is too long for a socket: name a shorter directory with PG_INGEST_HOME=…"
  owner=$(server_user)
  if is_root; then
    install -d -o "$owner" -g "$(id -g "$owner")" -m 700 "$cluster"
  else
    install -d -m 700 "$cluster"
  fi
  as_server mkdir -p "$sockets"
  locale -a 2>/dev/null | grep -qiE '^C\.utf-?8$' || locale=C
  as_server "$(pg_bin)/initdb" -D "$data" -U postgres --auth-local=trust --auth-host=reject --locale="$locale" \
    --encoding=UTF8 </dev/null >"$state_dir/initdb.log" 2>&1 ||
    die "initdb failed: $(grep -iE 'error|fatal' "$state_dir/initdb.log" | head -n1) (all of it in $state_dir/initdb.log)"
  rm -f "$state_dir/initdb.log"
  as_server tee -a "$data/postgresql.conf" >/dev/null <<CONF

# Of the pg_ingest quickstart
shared_preload_libraries = 'pg_ingest'
listen_addresses = ''
port = 5432
unix_socket_directories = '$sockets'
CONF
  pg_bin >"$state_dir/cluster-made-by"
}

start_cluster() {
  as_server "$(pg_bin)/pg_ctl" -D "$data" -l "$server_log" -w -t 60 start </dev/null >/dev/null 2>&1 ||
    die "Postgres did not start: $(as_server grep -E 'FATAL|ERROR|PANIC' "$server_log" | tail -n1) (all of it in $server_log)"
}

stop_cluster() {
  as_server "$(pg_bin)/pg_ctl" -D "$data" -m fast -w -t 60 stop </dev/null >/dev/null 2>&1 ||
    die "the quickstart's Postgres did not stop within a minute: see $server_log"
}
