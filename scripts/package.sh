#!/usr/bin/env bash
# Makes a tarball and, where there is dpkg-deb, a .deb of the extension for the Postgres of PG_CONFIG, in target/package.
# MODEL=no leaves the local model out. With --test, installs each of them into a copy of that Postgres, and the tarball once
# more as supabase/install.sh does, and runs the quickstart's tests there.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$scripts/lib.sh"

# The name of a file in the packages: what the library contains that is not ours.
third_party=THIRD-PARTY-LICENSES.txt
# Whoever hands the package on is its maintainer; these are the variables that Debian's own tools read.
maintainer="${DEBFULLNAME:-pg_ingest contributors} <${DEBEMAIL:-$(id -un)@$(uname -n)}>"

# Sets $stage to a tree as the tarball has it: lib/ goes to `pg_config --pkglibdir`, share/ to `pg_config --sharedir`.
make_stage() {
  local installed
  new_scratch "$packages/tree"
  installed=$scratch
  DESTDIR=$installed "$scripts/install.sh"
  stage=$packages/$name
  rm -rf "$stage"
  mkdir -p "$stage/lib"
  cp -r "$installed$("$PG_CONFIG" --pkglibdir)/." "$stage/lib"
  cp -r "$installed$("$PG_CONFIG" --sharedir)" "$stage/share"
  strip --strip-unneeded "$stage/lib/pg_ingest.so"
  glibc=$("$scripts/check-library.sh" "$stage/lib/pg_ingest.so")
  cp "$root_dir/LICENSE" "$stage"
  # With all that README.md leads to.
  mkdir -p "$stage/doc/crates/embedder"
  cp -r "$root_dir/README.md" "$root_dir/CHANGELOG.md" "$root_dir/CONTRIBUTING.md" "$root_dir/docs" "$root_dir/supabase" "$stage/doc"
  cp "$root_dir/crates/embedder/catalogue.json" "$stage/doc/crates/embedder"
  "$scripts/licenses.sh" "pg$major" >"$stage/$third_party"
  chmod -R u=rwX,go=rX "$stage"
}

make_tarball() {
  tar --create --gzip --file "$packages/$name.tar.gz" --owner=0 --group=0 --numeric-owner --sort=name \
    --directory "$packages" "$name"
  say "  $packages/$name.tar.gz"
}

# What dpkg calls this kind of machine.
deb_arch() {
  case $arch in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    ppc64le) echo ppc64el ;;
    *) echo "$arch" ;;
  esac
}

copyright() {
  cat "$stage/LICENSE"
  printf '\n%s\n%s\n' "The library contains the Rust crates that $third_party in this directory lists, under the licences that" \
    "stand there."
  if [[ -d $stage/share/pg_ingest/models ]]; then
    printf '\n%s\n%s\n' "The model all-MiniLM-L6-v2 in /usr/share/postgresql/$major/pg_ingest/models is under the Apache License," \
      "Version 2.0: the file LICENSE beside it, or /usr/share/common-licenses/Apache-2.0."
  fi
}

make_deb() {
  local package=postgresql-$major-pg-ingest root doc file
  has dpkg-deb || {
    say "no .deb: this system has no dpkg-deb"
    return
  }
  new_scratch "$packages/deb"
  root=$scratch
  doc=$root/usr/share/doc/$package
  mkdir -p "$root/DEBIAN" "$root/usr/lib/postgresql/$major" "$root/usr/share/postgresql" "$doc"
  cp -r "$stage/lib" "$root/usr/lib/postgresql/$major/lib"
  cp -r "$stage/share" "$root/usr/share/postgresql/$major"
  copyright >"$doc/copyright"
  cp -r "$stage/doc/." "$stage/$third_party" "$doc"
  cat >"$root/DEBIAN/control" <<CONTROL
Package: $package
Version: $version
Architecture: $(deb_arch)
Maintainer: $maintainer
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: postgresql-$major, libc6 (>= $glibc), libgcc-s1
Recommends: postgresql-$major-pgvector
Section: database
Priority: optional
Description: embedding pipeline inside Postgres, next to pgvector
 INSERT a document, get vectors: documents go into a staging table, and a
 background worker of the server splits them, counts their tokens, embeds
 them and writes the vectors.
 .
 The server has to preload the library: shared_preload_libraries.
CONTROL
  (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
  chmod -R u=rwX,go=rX "$root"
  file=$packages/${package}_${version}_$(deb_arch).deb
  dpkg-deb --root-owner-group --build "$root" "$file" >/dev/null
  say "  $file"
}

# ---- the test -------------------------------------------------------------------------------------------------------

# Copies the Postgres of PG_CONFIG, without pg_ingest, below $scratch, where it runs as it is: it finds its parts by their
# place relative to its programs. Sets $copy to the pg_config there.
copy_postgres() {
  local part
  new_scratch "$state_dir/package-test"
  for part in --bindir --libdir --pkglibdir --sharedir --includedir-server; do
    part=$("$PG_CONFIG" "$part")
    # A system's own library directory is there as it is.
    if [[ $part == /usr/lib/*-linux-gnu || ! -d $part ]]; then continue; fi
    mkdir -p "$scratch$part"
    cp -a "$part/." "$scratch$part"
  done
  chmod 755 "$scratch"
  copy=$scratch$("$PG_CONFIG" --bindir)/pg_config
  PG_CONFIG=$copy "$scripts/install.sh" --remove 2>/dev/null
  [[ ! -e $(extension_dir "$copy")/pg_ingest.control && -e $(extension_dir "$copy")/vector.control ]] ||
    die "the copy of the Postgres in $scratch is not clean"
}

test_in_copy() { # WHAT: what is installed there
  step "the quickstart's tests with the $1"
  PG_CONFIG=$copy "$scripts/test.sh" installcheck --test quickstart
}

test_tarball() {
  copy_postgres
  new_scratch "$packages/unpacked"
  tar -xzf "$packages/$name.tar.gz" -C "$scratch"
  # As docs/installing.md says.
  install -m 755 "$scratch/$name/lib/pg_ingest.so" "$("$copy" --pkglibdir)"/
  cp -r --remove-destination "$scratch/$name/share/." "$("$copy" --sharedir)"
  test_in_copy tarball
}

test_deb() {
  has dpkg-deb || return 0
  copy_postgres
  new_scratch "$packages/unpacked"
  dpkg-deb --extract "$packages/postgresql-$major-pg-ingest_${version}_$(deb_arch).deb" "$scratch"
  cp -r "$scratch/usr/lib/postgresql/$major/lib/." "$("$copy" --pkglibdir)"
  cp -r "$scratch/usr/share/postgresql/$major/." "$("$copy" --sharedir)"
  test_in_copy .deb
}

# As in an image of Supabase: a script around postgres names the directory of libraries, and pg_config another one.
test_in_image() {
  local path
  copy_postgres
  new_scratch "$packages/image"
  path=$scratch
  printf '#!/bin/sh\nexport NIX_PGLIBDIR=%s\nexec %s "$@"\n' \
    "'$("$copy" --pkglibdir)'" "$("$copy" --bindir)/postgres" >"$path/postgres"
  # shellcheck disable=SC2016 # for the script that is written
  printf '#!/bin/sh\n[ "$1" != --pkglibdir ] || exec echo /nowhere\nexec %s "$@"\n' "$copy" >"$path/pg_config"
  chmod 755 "$path"/*
  PATH=$path:$PATH sh "$root_dir/supabase/install.sh" "$packages/$name.tar.gz" >/dev/null
  test_in_copy "tarball as supabase/install.sh puts it"
}

test_packages() {
  [[ -f $packages/$name.tar.gz ]] || die "there are no packages for Postgres $major yet: run make package PG_CONFIG=$PG_CONFIG first"
  make_state_dir
  test_tarball
  test_deb
  test_in_image
}

main() {
  PG_CONFIG=$("$scripts/which-postgres.sh" --build)
  export PG_CONFIG
  major=$(pg_major "$PG_CONFIG")
  arch=$(uname -m)
  version=$(sed -nE "s/^default_version = '(.*)'/\1/p" "$root_dir/pg_ingest.control")
  packages=$target_dir/package
  name=pg_ingest-$version-pg$major-$arch
  case ${1:-} in
    "")
      make_stage
      say "packages:"
      make_tarball
      make_deb
      rm -rf "$stage"
      ;;
    --test) test_packages ;;
    *) die "package.sh: unknown option $1" ;;
  esac
}

main "$@"
