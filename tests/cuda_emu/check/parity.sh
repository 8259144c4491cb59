#!/usr/bin/env bash
# parity.sh - the small cases of tests/golden on the emulated device.   parity.sh BUILD_DIR PRECISION
set -u
bin=$1/bin
model=$(mktemp -d) || exit 1
trap 'rm -rf "$model"' EXIT
"$bin/cosyfarm" model make "$model/tiny" >/dev/null || exit 1
cases=(llm-instruct flow-one-token hift-one-frame hift-nine-frames-not-final speed-1.3)
"$bin/cosyfarm" parity -m "$model/tiny" --device cuda:0 --precision "$2" $(printf "tests/golden/tiny-0/%s.safetensors " "${cases[@]}") 2>&1 && exit 0
exit 1
