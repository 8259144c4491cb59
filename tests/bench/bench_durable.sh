#!/usr/bin/env bash
# bench_durable.sh - what "nothing is lost" costs: `make bench-durable ROWS=300`.
#
#   tests/bench/bench_durable.sh BIN_DIR OUT_DIR ROWS
#
# A batch of ROWS rows on the tiny model, with real stages. Prints the seconds that the batch spent in its ledger (it waits
# for them) and the farm's journal thread in write and fdatasync (only the word "accepted" waits for them), against the wall
# clock. Exit status 1 when both together are more than 2 % of it.
set -eu
bin=$1 out=$2 rows=$3
rm -rf "$out"
mkdir -p "$out"
"$bin/cosyfarm" model make "$out/model" --size tiny >/dev/null
awk -v n="$rows" 'BEGIN { split("It rained.|The lamp went out.|She said yes, and then nothing for an hour.", t, "|")
    for (i = 0; i < n; i++) printf "{\"id\":\"%06d\",\"text\":\"%s\"}\n", i, t[i % 3 + 1] }' >"$out/rows.jsonl"
COSYFARM_RUN_DIR="$out/none" "$bin/cosyfarm" batch -m "$out/model" "$out/rows.jsonl" -v echo -o "$out/dir" --json >"$out/summary"
value() { sed -E "s/.*\"$1\":([0-9.e+-]+).*/\1/" "$out/summary"; }
awk -v n="$rows" -v w="$(value wall_s)" -v l="$(value ledger_s)" -v j="$(value journal_s)" 'BEGIN {
    printf "%d rows in %.1f s: ledger %.3f s, journal %.3f s, together %.2f %% of the wall clock\n", n, w, l, j, 100 * (l + j) / w
    exit 100 * (l + j) / w > 2 }' || status=$?
rm -rf "$out"
exit "${status:-0}"
