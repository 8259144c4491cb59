#!/usr/bin/env bash
# bench_orch.sh - rows a second through empty stages, and whether memory stays flat: `make bench-orch ROWS=100000`.
#
#   tests/bench/bench_orch.sh BIN_DIR NULL_WORKER OUT_DIR ROWS
#
# A folder of programs in which the workers compute nothing; a batch of ROWS rows through it. Prints rows/s, and the
# resident memory of orchestrator and batch at each tenth of the rows. With 100000 rows and more (before, it is still
# warming up) memory that grows by more than GROWTH_MAX percent after the first tenth is a failure, status 1.
set -eu
bin=$1 null=$2 out=$3 rows=$4
GROWTH_MAX=5
pause_s=$((rows < 100000 ? 1 : 20))e-1 # long ledgers are not counted often
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
started=$EPOCHREALTIME orch='' cpu_s=0 samples='' tenth=1
while kill -0 $batch 2>/dev/null; do
    sleep "$pause_s"
    [[ -f $out/dir/ledger.jsonl ]] || continue
    done_rows=$(wc -l <"$out/dir/ledger.jsonl")
    [[ -n $orch ]] || orch=$(for p in $(cat "/proc/$batch/task/$batch/children" 2>/dev/null); do [[ $(cat "/proc/$p/comm") == orchestrator ]] && echo "$p"; done || true)
    [[ -n $orch ]] || continue
    o=$(rss "$orch") b=$(rss "$batch") c=$(cpu "$orch")
    [[ -n $o && -n $b && -n $c ]] || continue
    cpu_s=$c last="$done_rows $o $b"
    if ((done_rows * 10 >= tenth * rows)); then
        samples+="$last"$'\n'
        tenth=$((done_rows * 10 / rows + 1))
    fi
done
wait $batch
trap - EXIT
ended=$EPOCHREALTIME
rm -rf "$out"
awk -v a="$started" -v b="$ended" -v n="$rows" -v c="$cpu_s" 'BEGIN {
    printf "%d rows in %.1f s: %.0f rows/s; orchestrator %.1f s of CPU, %.0f us a row\n", n, b - a, n / (b - a), c, 1e6 * c / n }'
printf '%s%s\n' "$samples" "$last" | awk -v n="$rows" -v max="$GROWTH_MAX" '
    NR == 1 { o = $2; b = $3 }
    { printf "after %7d rows: orchestrator %d KiB, batch %d KiB\n", $1, $2, $3; grown = $2 / o > $3 / b ? $2 / o : $3 / b }
    END {
        printf "resident memory grew by %.1f %% (at most %d %%%s)\n", 100 * grown - 100, max, n < 100000 ? "; not judged below 100000 rows" : ""
        exit n >= 100000 && 100 * grown - 100 > max }'
