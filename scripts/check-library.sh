#!/usr/bin/env bash
# Checks what a library of ours needs of the system that it is installed on: check-library.sh FILE. Prints the glibc that it
# needs. Fails when that is newer than Debian 12's, which images of Supabase have too, or when it links anything but the C
# library and the compiler's run time.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

newest_glibc=2.36

main() {
  local library=${1:?which library?} others needs
  has readelf || die "checking the library needs readelf: install binutils, then run make again"
  others=$(LC_ALL=C readelf --dynamic "$library" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p' |
    grep -vxE 'lib(c|m|pthread|dl|rt)\.so\.[0-9]+|libgcc_s\.so\.1|ld-linux.*' || true)
  [[ -z $others ]] || die "$library links ${others//$'\n'/, }: it must need nothing but libc, libm and libgcc_s"
  # Only the versions needed, not those that the library defines.
  needs=$(LC_ALL=C readelf --version-info "$library" | sed -n '/^Version needs/,$p' | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -n1 || true)
  [[ -n $needs ]] || die "$library names no version of glibc: is it a library for Linux with glibc?"
  [[ $(printf '%s\n' "$needs" "$newest_glibc" | sort -V | tail -n1) == "$newest_glibc" ]] ||
    die "$library needs glibc $needs: a package must do with $newest_glibc, so build it on a system that has no newer one (Debian 12)"
  echo "$needs"
}

main "$@"
