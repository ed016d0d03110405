#!/bin/sh
# Puts pg_ingest where the Postgres of a Supabase image looks for libraries and extensions, which is not where its pg_config says:
# the program that starts it sets NIX_PGLIBDIR. As root, in the image:
#   install.sh pg_ingest-<version>-pg17-x86_64.tar.gz
set -eu
die() { echo "install.sh: $*" >&2; exit 1; }

package=${1:?the tarball of make package}
postgres=$(readlink -f "$(command -v "${POSTGRES:-postgres}")") || die "there is no postgres on the path"
# With -a, for the program may be a compiled one that has the line in it.
libdir=$(grep -ao "NIX_PGLIBDIR[= ']*/[^'\" ]*" "$postgres" | sed "s/^[^/]*//" | head -n 1)
[ -n "$libdir" ] || libdir=$(pg_config --pkglibdir)
[ -f "$libdir/vector.so" ] || die "$libdir holds no vector.so: this is not where this Postgres looks"
for share in "$(pg_config --sharedir)" "${libdir%/lib}/share/postgresql"; do
  [ -f "$share/extension/vector.control" ] && break
done
[ -f "$share/extension/vector.control" ] || die "vector.control is not found below $share"

unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
tar -xzf "$package" -C "$unpacked"
# "postgres (PostgreSQL) 17.6"; the folder in the tarball says what it was built for.
major=$("$postgres" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
machine=$(uname -m)
[ -d "$(echo "$unpacked"/pg_ingest-*-pg"$major-$machine")" ] ||
  die "$package holds $(ls "$unpacked"): it must be for Postgres $major on $machine, as this image is"
library=$(find "$unpacked" -name pg_ingest.so | head -n 1)
[ -n "$library" ] || die "$package holds no pg_ingest.so"
# By rename: a server that runs goes on with the file that it has mapped.
cp "$library" "$libdir/pg_ingest.so.new"
mv -f "$libdir/pg_ingest.so.new" "$libdir/pg_ingest.so"
find "$unpacked" -path '*/extension/pg_ingest*' -type f -exec cp {} "$share/extension/" \;
models=$(find "$unpacked" -type d -path '*/pg_ingest/models' | head -n 1)
if [ -n "$models" ]; then
  mkdir -p "$share/pg_ingest/models"
  cp -R "$models/." "$share/pg_ingest/models/"
fi
echo "pg_ingest is in $libdir and $share/extension"
