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

# Makes DIRECTORY a place for private_apt with the packages of a Debian release: KIND is deb or deb-src. Fails with the reason in
# $why_no_source.
open_release() { # DIRECTORY KIND RELEASE
  local dir=$1 mirror keyring=/usr/share/keyrings/debian-archive-keyring
  why_no_source="this is no Debian system"
  is_debian || return 1
  mirror=$(debian_mirror)
  why_no_source="no Debian mirror in apt's sources"
  [[ -n $mirror ]] || return 1
  # Debian 13 renamed the file.
  if [[ -e $keyring.pgp ]]; then keyring=$keyring.pgp; else keyring=$keyring.gpg; fi
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  echo "$2 [signed-by=$keyring] $mirror $3 main" >"$dir/sources.list"
  private_apt "$dir" -o APT::Update::Error-Mode=any update >"$dir/log" 2>&1 || not_downloaded "$dir"
}

# The first error says what failed; those after it only that something did.
not_downloaded() { # DIRECTORY
  why_no_source="Debian's package could not be downloaded: $(grep -m1 -E '^E:' "$1/log" || echo "no reason given")"
  return 1
}

not_unpacked() { # DIRECTORY
  # shellcheck disable=SC2034 # for the scripts that source this
  why_no_source="Debian's package could not be unpacked: $(tail -n1 "$1/log")"
  return 1
}

# Unpacks the source of a package of a Debian release, without Debian's patches, into DIRECTORY/source.
download_source() { # DIRECTORY RELEASE PACKAGE
  open_release "$1" deb-src "$2" || return 1
  private_apt "$1" source --download-only "$3" >"$1/log" 2>&1 || not_downloaded "$1" || return 1
  mkdir -p "$1/source"
  tar -xf "$1/$3"_*.orig.tar.* -C "$1/source" --strip-components=1 >"$1/log" 2>&1 || not_unpacked "$1"
}

# Unpacks a package of a Debian release into DIRECTORY/root.
download_package() { # DIRECTORY RELEASE PACKAGE
  open_release "$1" deb "$2" || return 1
  private_apt "$1" download "$3" >"$1/log" 2>&1 || not_downloaded "$1" || return 1
  mkdir -p "$1/root"
  dpkg-deb --extract "$1/$3"_*.deb "$1/root" >"$1/log" 2>&1 || not_unpacked "$1"
}
