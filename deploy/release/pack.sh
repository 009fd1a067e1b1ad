#!/usr/bin/env bash
# One archive of a release, the same bytes wherever it is packed.
#
#   pack.sh PROGRAM NAME OUT [FILE…]     OUT/NAME.tar.gz with the program, more files, and what of the last commit users need
#
# SOURCE_DATE_EPOCH is the time that everything in it has. DELTACONV_RUNS names a build that runs on this machine and has the same commands,
# where PROGRAM doesn't: its manual pages and completions are packed.
set -euo pipefail
program=$(realpath "$1") name=$2 out=$(realpath "$3")
shift 3
runs=$(realpath "${DELTACONV_RUNS:-$program}")
more=()
for file in "$@"; do more+=("$(realpath "$file")"); done
cd "$(dirname "$0")/../.."
: "${SOURCE_DATE_EPOCH:?the seconds since 1970 that everything in the archive has}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
folder=$work/$name

mkdir -p "$folder/man/man1" "$folder/completions"
# What lies beside those files here, a bundle with a key maybe, isn't packed.
git archive HEAD README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE deploy/systemd deploy/monitoring | tar -x -C "$folder"
find "$folder" -name .gitignore -delete
install -m 0755 "$program" "$folder/deltaconv"
for file in ${more[@]+"${more[@]}"}; do install -m 0644 "$file" "$folder/"; done
"$runs" man --out "$folder/man/man1" >/dev/null
"$runs" completions bash >"$folder/completions/deltaconv.bash"
"$runs" completions zsh >"$folder/completions/_deltaconv"
"$runs" completions fish >"$folder/completions/deltaconv.fish"

tar -c -C "$work" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$name" \
  | gzip -n -9 >"$out/$name.tar.gz"
