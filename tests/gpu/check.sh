#!/usr/bin/env bash
# check.sh - all that only a card can prove, with programs that are there already: no compiler, no make, so that a host
# without development packages runs it out of the offline bundle.
#   tests/gpu/check.sh BUILD_DIR [MODEL]
#     STEPS    in the environment: an expression that labels have to match; "op suite|parity" where time is short
# The last line is `N passed, M failed, K skipped`; without a card every step is skipped, and counted. What each step
# wrote is in BUILD_DIR/check/gpu-logs.
set -u
build=$(cd "$1" && pwd) && model=${2:+$(realpath "$2")} || exit 64
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
need=tests/gpu/need_gpu.sh
export COSYFARM_ROOT=$PWD COSYFARM_BIN=$build/bin
mkdir -p "$build/check"
export COSYFARM_OPS_SUBJECT=cuda
ops=$build/tests/ops/test_ops
# What CUDA's calls return is judged by the op suite: cuBLASLt asks the driver for what may be absent. Races are looked
# for in our kernels, whose names end so.
memcheck="$need compute-sanitizer --error-exitcode 1 --tool memcheck --report-api-errors no"
racecheck="$need compute-sanitizer --error-exitcode 1 --tool racecheck --kernel-name kns=_kernel"
grep -E "^[a-z]+\|gpu (${STEPS:-.*})\|" >"$build/check/gpu-plan" <<PLAN
tap|gpu op suite|900|$need $ops
tap|gpu transport with kills|300|$need $build/tests/gpu/outbox
step|gpu farm with kills|600|$need tests/gpu/kills.sh $build
step|gpu parity f32|900|$need tests/gpu/parity.sh $build f32
step|gpu parity bf16|900|$need tests/gpu/parity.sh $build bf16
step|gpu parity fp16|900|$need tests/gpu/parity.sh $build fp16
step|gpu batch sizes f32|600|$need tests/gpu/batch.sh $build f32 $model
step|gpu batch sizes bf16|600|$need tests/gpu/batch.sh $build bf16 $model
step|gpu memcheck|900|$memcheck $ops
step|gpu racecheck|900|$racecheck $ops
step|gpu probes|600|$need $build/tests/bench/probe_gpu
PLAN
[[ -s $build/check/gpu-plan ]] || { echo "no step's label matches \"$STEPS\""; exit 64; }
tests/run.sh "$build/check/gpu-logs" 1 "$build/check/gpu-plan"
status=$?
$need true >/dev/null || exit 0 # all were skipped, which tests/run.sh takes for a failure
exit $status
