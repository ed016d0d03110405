#!/usr/bin/env bash
# From an empty machine to answers out of the PostgreSQL manual. May be run again: it does what is still to do.
#
#   QUICKSTART_DOCS=all       the whole manual instead of a part
#   QUICKSTART_DOCS=DIR       other documents
#   QUICKSTART_PATTERN=GLOB   other files of them
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"
# shellcheck source=scripts/cluster.sh
source "$scripts/cluster.sh"

# About a fifth of the manual, 400,000 tokens: a hundred seconds at the 4,000 tokens a second of two cores, where the
# whole takes seven minutes.
part="running a server, its programs, indexes, full text search"
part_pattern='{app-,auth,backup,client-auth,continuous,different-,disk,explicit-,high-,hot-,index,kernel-,logical-replication,maintenance,manage-ag,monitoring,mvcc,performance,pgstat,planner-,populate,preventing,query,role,routine,runtime,server-,ssl,textsearch,transaction-iso,tutorial,upgrading,user-manag,using-explain,wal,warm}*.html'

early_question="how do I find out which queries are slow?"
questions=(
  "how do I take a backup without stopping the server?"
  "two transactions wait for each other forever, what happens?"
  "let the search find a word in all its forms, singular and plural"
)

# ---- the documents --------------------------------------------------------------------------------------------------

choose_documents() {
  case ${QUICKSTART_DOCS:-} in
    "")
      documents=$("$scripts/manual.sh")
      pattern=${QUICKSTART_PATTERN:-$part_pattern}
      about="a part of the PostgreSQL manual ($part; the whole: make quickstart QUICKSTART_DOCS=all)"
      [[ -z ${QUICKSTART_PATTERN:-} ]] || about="$pattern of the PostgreSQL manual"
      ;;
    all)
      documents=$("$scripts/manual.sh")
      pattern=${QUICKSTART_PATTERN:-**/*.html}
      about="the PostgreSQL manual, $pattern"
      ;;
    *)
      [[ -d $QUICKSTART_DOCS ]] || die "QUICKSTART_DOCS=$QUICKSTART_DOCS is not a directory"
      documents=$(cd "$QUICKSTART_DOCS" && pwd)
      pattern=${QUICKSTART_PATTERN:-**/*}
      about="$documents/$pattern"
      ;;
  esac
}

# The server reads the files, as its own user.
see_to_readable_documents() {
  local owner
  owner=$(server_user)
  if as_server test -r "$documents" -a -x "$documents"; then return; fi
  say "the user $owner, as whom Postgres runs, cannot read $documents: a copy goes into $state_dir"
  rm -rf "$state_dir/documents"
  install -d -o "$owner" -m 700 "$state_dir/documents"
  cp -r "$documents/." "$state_dir/documents"
  chown -R "$owner" "$state_dir/documents"
  documents=$state_dir/documents
}

# ---- the server -----------------------------------------------------------------------------------------------------

fingerprint() { sha256sum "$@" | sha256sum | cut -d' ' -f1; }
installed_library() { fingerprint "$("$PG_CONFIG" --pkglibdir)/pg_ingest.so"; }
installed_sql() { fingerprint "$(extension_dir "$PG_CONFIG")"/pg_ingest--*.sql; }

differs_from() { # NOTE VALUE: is VALUE another than at the last run?
  [[ $(cat "$state_dir/$1" 2>/dev/null) != "$2" ]]
}

remember() { echo "$2" >"$state_dir/$1"; }

# A data directory belongs to one Postgres version, and the extension is installed in one Postgres.
replace_cluster_of_another_postgres() {
  cluster_exists || return 0
  differs_from cluster-made-by "$(pg_bin)" || return 0
  say "the quickstart's cluster was made by the Postgres in $(cat "$state_dir/cluster-made-by" 2>/dev/null || echo '?'): it is replaced by a new one"
  if cluster_runs; then stop_cluster; fi
  rm -rf "$cluster"
}

run_cluster() {
  local library
  library=$(installed_library)
  replace_cluster_of_another_postgres
  if ! cluster_exists; then
    # A half-made one of an interrupted run
    rm -rf "$cluster"
    make_cluster
  elif cluster_runs && differs_from running-library "$library"; then
    say "pg_ingest was built anew: restarting the server"
    stop_cluster
  fi
  if ! cluster_runs; then start_cluster; fi
  remember running-library "$library"
  say "Postgres runs as $(server_user), socket in $sockets, no TCP port"
}

database_exists() {
  [[ $(database=postgres sql <<<"SELECT 1 FROM pg_database WHERE datname = '$database'") == 1 ]]
}

# An extension of the same version with other SQL exists only while pg_ingest is being worked on.
drop_database_of_other_sql() {
  database_exists || return 0
  differs_from created-sql "$(installed_sql)" || return 0
  say "the SQL of pg_ingest has changed: the database $database is made anew"
  database=postgres sql <<<"DROP DATABASE $database WITH (FORCE)"
}

make_database() {
  drop_database_of_other_sql
  if ! database_exists; then
    database=postgres sql <<<"CREATE DATABASE $database"
    remember created-sql "$(installed_sql)"
  fi
  PGOPTIONS='-c client_min_messages=warning' sql >/dev/null <<'SQL'
CREATE EXTENSION IF NOT EXISTS pg_ingest CASCADE;
ALTER EXTENSION pg_ingest UPDATE;
SELECT ingest.create_pipeline()
 WHERE NOT EXISTS (SELECT FROM ingest.progress WHERE pipeline = 'default');
SQL
}

# ---- loading and asking ---------------------------------------------------------------------------------------------

load() {
  local count
  count=$(sql -v directory="$documents" -v pattern="$pattern" <<<"SELECT ingest.load_files(:'directory', :'pattern')")
  say "loaded $count documents into ingest.documents; the worker has begun"
}

ask() { # QUESTION
  local similarity key excerpt
  printf '\n  SELECT * FROM ingest.search(%s, 3);\n' "'$1'"
  sql -v question="$1" <<'SQL' |
SELECT to_char(similarity, '0.00'), key, left(regexp_replace(content, '\s+', ' ', 'g'), 200)
  FROM ingest.search(:'question', 3)
SQL
    while IFS=$column_separator read -r similarity key excerpt; do
      printf '   %s  %s\n' "$similarity" "$key"
      fold -s -w 88 <<<"$excerpt …" | sed 's/^/         /'
    done
}

columns=80
show_progress() { # PERCENT LINE, on a terminal in place, elsewhere at every twentieth part
  if [[ -t 1 ]]; then
    printf '\r\033[K%s' "${2:0:columns}"
  elif (($1 >= shown + 5 || shown < 0)); then
    printf '%s\n' "$2"
    shown=$1
  fi
}
end_progress() { if [[ -t 1 ]]; then echo; fi; }

explain_blocked() {
  end_progress
  say "the pipeline needs a person: $(sql <<<"SELECT last_error FROM ingest.progress WHERE pipeline = 'default'")"
  sql -F ' | ' <<<"SELECT CASE WHEN ok THEN 'ok  ' ELSE 'NOT ' END, \"check\", detail, hint FROM ingest.doctor()" >&2 || true
  die "the documents are not embedded: see above, and the server's log in $server_log"
}

# A stuck load must end some day, above all where nobody watches.
patience=300

watch_progress() {
  local row state percent bar documents embedded pending in_flight failed eta rate
  local last="" last_change=$SECONDS asked=no
  shown=-1
  if [[ -t 1 ]]; then columns=$(tput cols 2>/dev/null || echo 80); fi
  while true; do
    row=$(sql <<'SQL'
SELECT state, floor(coalesce(percent, 100))::int, bar || repeat(' ', 10 - length(bar)), documents, embedded, pending,
       in_flight, failed, coalesce(to_char(eta, 'HH24:MI:SS'), '?'),
       to_char(coalesce(tokens_per_minute, 0), 'FM999,999,999,990')
  FROM ingest.progress WHERE pipeline = 'default'
SQL
    ) || die "the server does not answer: see its log in $server_log"
    IFS=$column_separator read -r state percent bar documents embedded pending in_flight failed eta rate <<<"$row"
    show_progress "$percent" "$(printf '%3d%% %s  eta %s  %d/%d documents, %d failed, %s tokens/min' \
      "$percent" "$bar" "$eta" "$embedded" "$documents" "$failed" "$rate")"
    if [[ $state == blocked ]]; then explain_blocked; fi
    if ((pending + in_flight == 0)); then break; fi
    if [[ $asked == no ]] && ((percent >= 25)); then
      asked=yes
      end_progress
      printf '\nSearch answers while the load goes on:\n'
      ask "$early_question"
      echo
    fi
    if [[ $embedded.$failed.$in_flight != "$last" ]]; then
      last=$embedded.$failed.$in_flight
      last_change=$SECONDS
    elif ((SECONDS - last_change > patience)); then
      explain_blocked
    fi
    sleep 1
  done
  end_progress
}

closing() {
  local psql
  psql=$(pg_bin)/psql
  if [[ $(command -v psql || true) -ef $psql || -e /usr/share/postgresql-common/pg_wrapper ]]; then psql=psql; fi
  cat <<TEXT

Go on by hand:        $psql -h $sockets -p 5432 -U postgres $database
Stop and remove it:   make quickstart-stop
TEXT
}

main() {
  local started
  step "setup"
  "$scripts/setup.sh"
  PG_CONFIG=$("$scripts/which-postgres.sh")
  export PG_CONFIG
  make_state_dir
  choose_documents
  step "build"
  "$scripts/install.sh"
  step "server"
  see_to_readable_documents
  run_cluster
  make_database
  step "loading $about"
  started=$SECONDS
  # From here on the server works by itself, whatever becomes of this script.
  trap 'closing; exit 130' INT
  load
  watch_progress
  say "$(sql <<<"SELECT format('%s documents, %s chunks, %s tokens, %s failed', documents, chunks, tokens, failed) FROM ingest.progress WHERE pipeline = 'default'") after $((SECONDS - started)) s"
  printf '\nThree questions in plain words:\n'
  local question
  for question in "${questions[@]}"; do ask "$question"; done
  closing
}

main
