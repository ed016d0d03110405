# shellcheck shell=bash
# Source packages of another Debian release, from the mirror that this system uses for its own. Sourced after lib.sh.

is_debian() { [[ -r /etc/os-release ]] && (. /etc/os-release && [[ ${ID:-} == debian ]]); }

# The mirror that this system uses for its own release.
debian_mirror() {
  local codename mirrors
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # shellcheck disable=SC2016 # the names are apt's, not the shell's
  mirrors=$(apt-get indextargets --format '$(RELEASE) $(SITE)' "Created-By: Packages" | sort -u)
  awk -v release="$codename" '$1 == release { print $2; exit }' <<<"$mirrors"
}

# apt with a configuration of its own beside the system's, which stays untouched. Signatures are checked all the same.
private_apt() {
  local dir=$1
  shift
  (cd "$dir" && apt-get -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root "$@")
}

# Unpacks the source of a package of a Debian release, without Debian's patches, into DIRECTORY/source. Fails with the
# reason in $why_no_source.
download_source() { # DIRECTORY RELEASE PACKAGE
  local dir=$1 mirror keyring=/usr/share/keyrings/debian-archive-keyring
  why_no_source="this is no Debian system"
  is_debian || return 1
  mirror=$(debian_mirror)
  why_no_source="no Debian mirror in apt's sources"
  [[ -n $mirror ]] || return 1
  # Debian 13 renamed the file.
  if [[ -e $keyring.pgp ]]; then keyring=$keyring.pgp; else keyring=$keyring.gpg; fi
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/source"
  echo "deb-src [signed-by=$keyring] $mirror $2 main" >"$dir/sources.list"
  if ! { private_apt "$dir" -o APT::Update::Error-Mode=any update && private_apt "$dir" source --download-only "$3"; } >"$dir/log" 2>&1; then
    # shellcheck disable=SC2034 # for the scripts that source this
    why_no_source="Debian's source package could not be downloaded: $(grep -E '^E:' "$dir/log" | tail -n1)"
    return 1
  fi
  tar -xf "$dir/$3"_*.orig.tar.* -C "$dir/source" --strip-components=1
}
