#!/usr/bin/env bash
# SHA256SUMS of a folder, and SHA256SUMS.sig where DELTACONV_SIGNING_KEY names a private key of ssh that ALLOWED_SIGNERS (or the file of
# this name here) knows: `sign.sh FOLDER`.
set -euo pipefail
known=$(realpath "${ALLOWED_SIGNERS:-$(dirname "$0")/allowed_signers}")
cd "$1"
rm -f SHA256SUMS SHA256SUMS.sig
export LC_ALL=C
sums="$(sha256sum -- *)"
echo "$sums" >SHA256SUMS
if [ -z "${DELTACONV_SIGNING_KEY:-}" ]; then
  echo "SHA256SUMS is not signed: DELTACONV_SIGNING_KEY names no key"
  exit 0
fi
ssh-keygen -q -Y sign -f "$DELTACONV_SIGNING_KEY" -n deltaconv-release SHA256SUMS
# As users do: a signature that they can't verify is none.
if ! ssh-keygen -q -Y verify -f "$known" -I deltaconv -n deltaconv-release -s SHA256SUMS.sig <SHA256SUMS; then
  rm SHA256SUMS.sig
  echo "SHA256SUMS is not signed: $known doesn't have the key's public one" >&2
  exit 1
fi
