#!/usr/bin/env bash
# batch.sh - the same sentence alone and among others gives the same file.   batch.sh BUILD_DIR [MODEL]
set -u
bin=$1/bin model=${2:-}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export COSYFARM_RUN_DIR=$dir/run
mkdir -m 700 "$dir/run"
if [[ -z $model ]]; then
    model=$dir/tiny
    "$bin/cosyfarm" model make "$model" >/dev/null || exit 1
fi
"$bin/cosyfarm" up -m "$model" --device cuda:0 & farm=$!
trap 'kill "$farm" 2>/dev/null; wait "$farm" 2>/dev/null; rm -rf "$dir"' EXIT
say() { "$bin/cosyfarm" say -m "$model" -o "$dir/$1.wav" "$2" >/dev/null || exit 1; }
for _ in {1..600}; do
    "$bin/cosyfarm" status >/dev/null 2>&1 && break
    read -rt 0.1 <> <(:) || true
done
say alone "The harbour was quiet when the last ferry came in."
pids=()
for i in {1..12}; do
    say "other$i" "Sentence number $i, which keeps the card busy for a while." & pids+=($!)
done
say among "The harbour was quiet when the last ferry came in."
wait "${pids[@]}"
cmp "$dir/alone.wav" "$dir/among.wav"
