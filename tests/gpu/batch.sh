#!/usr/bin/env bash
# batch.sh - one batch on cuda:0 with 1, 3 and as many rows at once as the stages take, its order reversed in the last:
# every row has the same samples.
#   batch.sh BUILD_DIR PRECISION [MODEL]     ROWS in the environment: how many rows, default 24
set -u
bin=$1/bin precision=$2 model=${3:-} rows=${ROWS:-24}
command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export COSYFARM_RUN_DIR=$dir/run
mkdir -m 700 "$dir/run"
if [[ -z $model ]]; then
    model=$dir/tiny
    "$bin/cosyfarm" model make "$model" >/dev/null || exit 1
fi
voice=$("$bin/cosyfarm" voice ls -m "$model" | awk 'NR == 1 { print $1 }')
[[ -n $voice ]] || { echo "$model: expected at least one voice, found none"; exit 1; }
texts=("The tide is low." "Rain." "Nobody knew when the last boat would come back." "Nine lamps.")
for ((i = 0; i < rows; i++)); do
    printf '{"id": "row%03d", "text": "%s", "voice": "%s", "seed": %d}\n' "$i" "${texts[i % 4]}" "$voice" "$i"
done >"$dir/forward.jsonl"
tac "$dir/forward.jsonl" >"$dir/backward.jsonl"
batch() { # name manifest rows
    printf '{"llm_rows": %d, "flow_rows": %d, "hift_rows": %d}\n' "$3" "$3" "$3" >"$dir/$1.json"
    "$bin/cosyfarm" batch -m "$model" "$dir/$2.jsonl" -o "$dir/$1" --config "$dir/$1.json" --device cuda:0 \
        --precision "$precision" -q && return
    echo "$1: batch failed"
    tail -n 5 "$dir/$1/farm.log"
    exit 1
}
batch alone forward 1
batch three forward 3
batch all backward 64
python3 - "$dir" alone three all <<'PYTHON'
import json
import sys

folder, names = sys.argv[1], sys.argv[2:]
ledgers = []
for name in names:
    with open(f"{folder}/{name}/ledger.jsonl") as lines:
        rows = [json.loads(line) for line in lines]
    ledgers.append({row["id"]: (row["status"], row["tokens"], row["sha256"]) for row in rows})
differ = sorted(i for i in ledgers[0] if any(other.get(i) != ledgers[0][i] for other in ledgers))
good = sum(row[0] == "done" for row in ledgers[0].values())
print(f"{good} rows at 1, 3 and 64 at once: {len(differ)} differ {differ[:5]}")
sys.exit(1 if differ or good != len(ledgers[0]) or not good else 0)
PYTHON
