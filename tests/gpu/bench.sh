#!/usr/bin/env bash
# bench.sh - what a card gives: rates of ops, stages and farm on cuda:0, as JSON lines; needs no make.
#   tests/gpu/bench.sh BUILD_DIR MODEL [PRECISION] [COSYVOICE]
#     COSYVOICE   a clone of the original with its requirements installed: its rates beside ours, on the same weights
#     OPS_ROWS OPS_SECONDS STAGE_ROWS STAGE_SECONDS PROMPT FARM_ROWS HANDOVER_ROWS   in the environment: sizes
#     AT_ONCE FRAMES   in the environment: what a worker of the farm takes at once; a card of 80 GB has room for it
#     STEPS       in the environment: which of "ops stages farm upstream", default all
# Line by line: op; llm.prefill, llm, flow, hift; then for each number of rows say (one sentence on a warm farm, from the
# request to its file: what stands for the first chunk while the farm hands out whole files), farm, member; handover.
set -u
build=$(cd "$1" && pwd) && model=$(realpath "$2") && cosyvoice=${4:+$(realpath "$4")} || exit 64
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
precision=${3:-bf16} libraries=${LD_LIBRARY_PATH:-} failed=0
stage_rows=${STAGE_ROWS:-1,16,64,256} stage_seconds=${STAGE_SECONDS:-8} prompt=${PROMPT:-125} at_once=${AT_ONCE:-256} frames=${FRAMES:-65536}
farm=$(mktemp --suffix=.json) || exit 1
trap 'rm -f "$farm"' EXIT
printf '{"llm_rows": %d, "flow_rows": %d, "hift_rows": %d, "flow_frames": %d, "hift_frames": %d}\n' \
    "$at_once" "$at_once" "$at_once" "$frames" "$frames" >"$farm"
bench() {
    tests/gpu/need_gpu.sh "$build/bin/cosyfarm" bench "$@" -m "$model" --device cuda:0 --precision "$precision" --json
    local status=$?
    ((status == 0)) || failed=$status
}
for step in ${STEPS:-ops stages farm upstream}; do
    case $step in
    ops) bench ops --rows "${OPS_ROWS:-64}" --seconds "${OPS_SECONDS:-8}" ;;
    stages) bench llm flow hift --rows "$stage_rows" --seconds "$stage_seconds" --prompt "$prompt" ;;
    farm)
        for rows in ${FARM_ROWS:-1 16 64 256}; do bench farm --count "$rows" --config "$farm"; done
        bench handover --config "$farm" --count "${HANDOVER_ROWS:-48}"
        ;;
    upstream)
        [[ -n $cosyvoice ]] || continue
        # Without the libraries of the offline bundle: PyTorch needs the host's.
        LD_LIBRARY_PATH=${libraries//"${build%/*}/lib"/} tests/gpu/need_gpu.sh python3 tools/bench_upstream.py --cosyvoice "$cosyvoice" -m "$model" --device cuda \
            --precision "$precision" --rows "$stage_rows" --seconds "$stage_seconds" --prompt "$prompt" || failed=$?
        ;;
    *) echo "STEPS: expected ops, stages, farm or upstream, found $step"; exit 64 ;;
    esac
    ((failed != 77)) || exit 77
done
exit $failed
