#!/usr/bin/env bash
# plan_test.sh - what `cosyfarm plan` prints is a configuration that a farm serves with.   plan_test.sh BUILD_DIR [DEVICES]
# DEVICES: of an emulated build
set -u
bin=$1/bin
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export COSYFARM_RUN_DIR=$dir/run
mkdir -m 700 "$dir/run"
[[ -n ${2:-} ]] && export COSYFARM_EMU_DEVICES=$2
"$bin/cosyfarm" model make "$dir/tiny" >/dev/null || exit 1
failed() { echo "$1"; cat "$dir"/*.err 2>/dev/null; exit 1; }

if [[ -z ${2:-} ]]; then # measured here
    "$bin/cosyfarm" plan -m "$dir/tiny" --device cpu --threads 1 --rows 2 --seconds 1 >"$dir/cpu.json" 2>"$dir/cpu.err" || failed "plan"
    grep -E "^(llm|flow|hift) +[0-9.]+ +[0-9.]+ GiB \(weights" "$dir/cpu.err" | wc -l | grep -x 3 >/dev/null || failed "plan: its table"
    "$bin/cosyfarm" say -m "$dir/tiny" --config "$dir/cpu.json" --threads 1 -o "$dir/a.wav" -q "Hi." 2>"$dir/say.err" || failed "say with the plan"
fi

# From the rates of a bench, which need not be this machine's.
for rate in "llm 4000" "flow 500" "hift 2000" "flow 300"; do
    set -- $rate
    echo "{\"bench\":\"$1\",\"precision\":\"f32\",\"rows\":16,\"audio_per_s\":$2,\"units\":1,\"seconds\":1}"
done >"$dir/rates.jsonl"
list=cpu,cpu wanted='"flow_device":"cpu,cpu"'
[[ -n ${COSYFARM_EMU_DEVICES:-} ]] && list="" wanted='"flow_device":"cuda:0,cuda:1"'
"$bin/cosyfarm" plan -m "$dir/tiny" ${list:+--device $list} --rates "$dir/rates.jsonl" --json >"$dir/plan.json" 2>"$dir/plan.err" || failed "plan --rates"
grep -F "$wanted" "$dir/plan.json" >/dev/null || { cat "$dir/plan.json"; failed "expected $wanted"; }
grep -F '"audio_per_s":727.27' "$dir/plan.json" >/dev/null || { cat "$dir/plan.json"; failed "expected 727.27 audio-s/s"; }
if [[ -n ${COSYFARM_EMU_DEVICES:-} ]]; then
    "$bin/cosyfarm" plan -m "$dir/tiny" --rates "$dir/rates.jsonl" >"$dir/two.json" 2>"$dir/two.err" || failed "plan"
    "$bin/cosyfarm" say -m "$dir/tiny" --config "$dir/two.json" --threads 1 -v echo -o "$dir/b.wav" -q "Hi." 2>"$dir/say.err" || failed "say with the plan"
    COSYFARM_EMU_MEMORY_MIB=700 "$bin/cosyfarm" plan -m "$dir/tiny" --rates "$dir/rates.jsonl" >/dev/null 2>"$dir/small.err"
    [[ $? == 78 ]] || failed "a plan that does not fit: expected exit code 78"
    grep "device 0 of the list: needs .* GiB (.*), 0.68 free" "$dir/small.err" >/dev/null || failed "a plan that does not fit: its words"
fi

refused() { # code text command...
    "$bin/cosyfarm" plan "${@:3}" >"$dir/out" 2>"$dir/refused.err"
    [[ $? == "$1" ]] || failed "expected exit code $1: plan ${*:3}"
    grep -F "$2" "$dir/refused.err" >/dev/null || failed "expected \"$2\""
    [[ ! -s $dir/out ]] || failed "output beside a refusal"
}
echo '{"bench":"flow","precision":"bf16","audio_per_s":5}' >"$dir/other.jsonl"
echo '{"bench":"flow","precision":"f32","audio_per_s":5}' >"$dir/alone.jsonl"
refused 78 "other.jsonl:1: rate of flow: expected precision f32, found bf16" -m "$dir/tiny" --rates "$dir/other.jsonl"
refused 78 "found none of llm" -m "$dir/tiny" --rates "$dir/alone.jsonl"
refused 78 "no such" -m "$dir/nowhere" --rates "$dir/rates.jsonl"
refused 64 "abacus" -m "$dir/tiny" --device abacus
refused 64 'rows: expected 1..256, found "0"' -m "$dir/tiny" --rows 0
refused 64 'seconds: expected 1..60, found "0"' -m "$dir/tiny" --seconds 0
refused 64 "unexpected argument" -m "$dir/tiny" farm
echo "as planned"
