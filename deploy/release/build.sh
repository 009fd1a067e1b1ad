#!/usr/bin/env bash
# A release of the tag that is checked out, in target/release-VERSION: docs/releasing.md says what is in it, and how it is made.
#
#   build.sh [--cuda] [--draft]
#
#   --cuda    also the program for NVIDIA GPUs
#   --draft   whatever is checked out, as VERSION-draft
#
# DELTACONV_SIGNING_KEY is a private key of ssh, whose public one is in allowed_signers; without it nothing is signed.
set -euo pipefail
cd "$(dirname "$0")/../.."
cuda=no draft=no
for argument in "$@"; do
  case $argument in
    --cuda) cuda=yes ;;
    --draft) draft=yes ;;
    *)
      sed -n '2,10s/^# \{0,1\}//p' "$0"
      exit 2
      ;;
  esac
done
stop() {
  echo "build.sh: $*" >&2
  exit 1
}
here=deploy/release
target=x86_64-unknown-linux-musl
version="$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)"
[ -n "$version" ] || stop "Cargo.toml has no version"

# Everything is said at once.
wrong=()
[ -z "$(git status --porcelain)" ] || wrong+=("the tree has changes that no commit has")
[ "$(git tag --points-at HEAD --list "v$version")" ] || wrong+=("the commit has no tag v$version")
grep -qE "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}\$" CHANGELOG.md || wrong+=("CHANGELOG.md has no section [$version] with a date")
diff -r proto/proto/deltaconv "proto/released/$version/deltaconv" >/dev/null 2>&1 \
  || wrong+=("proto/released/$version is not what proto/proto is")
if [ "${#wrong[@]}" != 0 ]; then
  printf 'build.sh: %s\n' "${wrong[@]}" >&2
  [ $draft = yes ] || exit 1
  version=$version-draft
fi

# What is missing, too. A static program of glibc would look names up with libraries of the machine that it runs on, so it is musl or
# nothing.
missing=()
rustc --print target-libdir --target $target | xargs ls >/dev/null 2>&1 || missing+=("rustup target add $target")
command -v musl-gcc >/dev/null || missing+=("apt-get install musl-tools")
for tool in auditable@0.7.7 cyclonedx@0.5.9 "about@0.9.3 --features cli"; do
  command -v "cargo-${tool%%@*}" >/dev/null || missing+=("cargo install --locked cargo-$tool")
done
if [ "${#missing[@]}" != 0 ]; then
  printf 'build.sh: first: %s\n' "${missing[@]}" >&2
  exit 1
fi

SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)"
export SOURCE_DATE_EPOCH
# No path of this machine stays in a program.
cargo_home="${CARGO_HOME:-$HOME/.cargo}"
export RUSTFLAGS="--remap-path-prefix=$PWD=/deltaconv --remap-path-prefix=$cargo_home=/cargo"
export CFLAGS="-ffile-prefix-map=$PWD=/deltaconv -ffile-prefix-map=$cargo_home=/cargo"
built=$PWD/target/release-build
out=$PWD/target/release-$version
rm -rf "$out"
mkdir -p "$out" "$built"

# bill NAME TARGET FEATURES: NAME.cdx.json. In a copy, since it is written into the folders of crates.
bill() {
  local copy=$built/bill
  rm -rf "$copy"
  mkdir -p "$copy"
  git archive HEAD | tar -x -C "$copy"
  cargo cyclonedx --quiet --manifest-path "$copy/cli/Cargo.toml" --format json --describe binaries --spec-version 1.5 --target "$2" \
    --features "$3"
  sed "s,file://$copy,file:///deltaconv,g" "$copy/cli/deltaconv_bin.cdx.json" >"$out/$1.cdx.json"
}
# licences FEATURES: their texts, of everything that is linked.
licences() {
  cargo about generate --frozen --fail --config $here/about.toml --manifest-path cli/Cargo.toml --features "$1" \
    --output-file "$built/THIRD-PARTY.md" $here/about.hbs
}

cargo auditable build --release --locked --target $target --target-dir "$built" -p deltaconv
program=$built/$target/release/deltaconv
# What asks for a loader isn't static.
if readelf --program-headers "$program" | grep -q INTERP; then stop "$program is not static"; fi
[ "$("$program" --version)" = "deltaconv ${version%-draft}" ] || stop "$program is of another version"
name=deltaconv-$version-x86_64-linux
licences ""
bash $here/pack.sh "$program" "$name" "$out" "$built/THIRD-PARTY.md"
bill "$name" $target ""

if [ $cuda = yes ]; then
  # PTX of no newer device than the oldest that it shall run on.
  export CUDA_COMPUTE_CAP=80
  eval "$(bash deploy/cuda/setup.sh)"
  cargo auditable build --release --locked --target x86_64-unknown-linux-gnu --target-dir "$built" -p deltaconv --features cuda
  gpu=$built/x86_64-unknown-linux-gnu/release/deltaconv
  glibc="$(objdump -T "$gpu" | sed -n 's/.*(GLIBC_\([0-9.]*\)).*/\1/p' | sort -uV | tail -n 1)"
  echo "the program for GPUs starts with glibc $glibc or newer"
  licences cuda
  DELTACONV_RUNS=$program bash $here/pack.sh "$gpu" "$name-cuda13" "$out" "$built/THIRD-PARTY.md"
  bill "$name-cuda13" x86_64-unknown-linux-gnu cuda
fi

bash $here/sign.sh "$out"
ls -l "$out"
