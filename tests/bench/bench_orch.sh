#!/usr/bin/env bash
# bench_orch.sh - rows a second through empty stages, and whether memory stays flat: `make bench-orch ROWS=100000`.
#
#   tests/bench/bench_orch.sh BIN_DIR NULL_WORKER OUT_DIR ROWS
#
# A folder of programs in which the workers compute nothing; a batch of ROWS rows through it. Prints rows/s, and the
# resident memory of orchestrator and batch after a tenth of the rows and at the end.
set -eu
bin=$1 null=$2 out=$3 rows=$4
rm -rf "$out"
mkdir -p "$out/bin"
cp "$bin/cosyfarm" "$bin/orchestrator" "$bin/exchange_keeper" "$out/bin/"
for stage in llm flow hift; do cp "$null" "$out/bin/${stage}_worker"; done
"$out/bin/cosyfarm" model make "$out/model" --size tiny >/dev/null
awk -v n="$rows" 'BEGIN { for (i = 0; i < n; i++) printf "{\"id\":\"%04d/%07d\",\"text\":\"It rained.\"}\n", i / 1000, i }' >"$out/rows.jsonl"
echo '{"guard":false,"llm_rows":256,"flow_rows":256,"hift_rows":256,"flow_frames":65536,"hift_frames":65536}' >"$out/config.json"

rss() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status" 2>/dev/null || true; }
cpu() { awk '{ print ($14 + $15) / 100 }' "/proc/$1/stat" 2>/dev/null || true; }
COSYFARM_RUN_DIR="$out/none" "$out/bin/cosyfarm" batch -m "$out/model" "$out/rows.jsonl" -v echo -o "$out/dir" --config "$out/config.json" -q &
batch=$!
trap 'kill $batch 2>/dev/null || true' EXIT
started=$EPOCHREALTIME early_orch='' early_batch='' late_orch='' late_batch='' orch='' cpu_s=''
while kill -0 $batch 2>/dev/null; do
    sleep 0.2
    done_rows=$(wc -l <"$out/dir/ledger.jsonl" 2>/dev/null || echo 0)
    [[ -n $orch ]] || orch=$(for p in $(cat "/proc/$batch/task/$batch/children" 2>/dev/null); do [[ $(cat "/proc/$p/comm") == orchestrator ]] && echo "$p"; done || true)
    [[ -n $orch ]] || continue
    o=$(rss "$orch") b=$(rss "$batch") c=$(cpu "$orch")
    [[ -z $o || -z $b ]] || { late_orch=$o late_batch=$b cpu_s=$c; }
    if [[ -z $early_orch ]] && ((done_rows * 10 >= rows)); then early_orch=$o early_batch=$b; fi
done
wait $batch
trap - EXIT
awk -v a="$started" -v b="$EPOCHREALTIME" -v n="$rows" -v c="${cpu_s:-0}" -v eo="${early_orch:-0}" -v lo="${late_orch:-0}" -v eb="${early_batch:-0}" -v lb="${late_batch:-0}" 'BEGIN {
    printf "%d rows in %.1f s: %.0f rows/s; orchestrator %.1f s of CPU, %.0f us a row\n", n, b - a, n / (b - a), c, 1e6 * c / n
    printf "resident KiB after a tenth and at the end: orchestrator %d and %d, batch %d and %d\n", eo, lo, eb, lb }'
rm -rf "$out"
