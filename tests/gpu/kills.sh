#!/usr/bin/env bash
# kills.sh - a batch on cuda:0 whose workers and keeper are killed while they work, against an undisturbed one.
#   kills.sh BUILD_DIR     ROWS in the environment: how many rows, default 2000
# Where handles are accepted the mel has to stay on the device, and the keeper's death has to be felt. A card does
# hundreds of such rows a second: there have to be so many that the last of five to be killed finds work.
set -u
command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export TMPDIR=$dir
logs=(--log +worker.memory --log '!exchange.host')
COSYFARM_BIN=$1/bin "$1/tests/gpu/outbox" 2>&1 | grep -q "SKIP exchange memory is the host's" && {
    echo "handles are refused here: exchange memory is the host's"
    logs=(--log exchange.host)
}
victims=llm_worker,flow_worker,exchange_keeper,hift_worker,exchange_keeper
python3 tests/e2e/kill_test.py --bin "$1/bin" --rows "${ROWS:-2000}" --words "${WORDS:-4}" --interval "${INTERVAL:-1.2}" \
    --set device=cuda:0 --set threads=1 --set precision="${PRECISION:-f32}" --victims "$victims" "${logs[@]}"
