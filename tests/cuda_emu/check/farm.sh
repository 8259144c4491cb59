#!/usr/bin/env bash
# farm.sh - batches through the real worker programs on emulated devices: the CPU's audio up to rounding; the same bytes
# with workers and keeper killed (kills), when exchange memory cannot be the device's, and on two devices (exchange).
#   farm.sh EMU_BUILD CPU_BUILD kills|exchange
set -u
command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }
emu=$1/bin cpu=$2/bin
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
# With these seeds the model soon stops.
row() { echo "{\"id\": \"$1\", \"text\": \"$2\", \"voice\": \"echo\", \"seed\": $3}"; }
if [[ $3 == kills ]]; then # each program while it works
    { row a Hi. 38; row b "It rained." 18; row c Yes. 7; } >"$dir/rows.jsonl"
    python3 tests/e2e/kill_test.py --bin "$emu" --manifest "$dir/rows.jsonl" --interval 0.3 --set device=cuda:0 --set threads=1 \
        --victims flow_worker,exchange_keeper,hift_worker,exchange_keeper,llm_worker --log '!exchange.host' --log +worker.memory
    exit
fi
export COSYFARM_RUN_DIR=$dir/run
mkdir -m 700 "$dir/run"
"$emu/cosyfarm" model make "$dir/tiny" >/dev/null || exit 1
row row Hi. 38 >"$dir/rows.jsonl"

# What became of one row, in $dir/NAME.   batch PROGRAMS NAME options...
batch() {
    timeout 100 "$1/cosyfarm" batch -m "$dir/tiny" "$dir/rows.jsonl" -o "$dir/$2" --threads 1 --seed 7 -q "${@:3}" && return
    echo "$2: batch failed"
    tail -n 5 "$dir/$2/farm.log"
    exit 1
}
equal() {
    cmp "$dir/cuda/audio/row.wav" "$dir/$1/audio/row.wav" || { echo "$1: other bytes than undisturbed"; exit 1; }
}
# Whether farm.log tells that exchange memory is the host's.   told NAME yes|no TEXT
told() {
    local found=no
    grep "ev=exchange.host .*$3" "$dir/$1/farm.log" >/dev/null && found=yes
    [[ $found == "$2" ]] || { echo "$1: exchange.host ($3) in its log: $found, expected $2"; exit 1; }
}

batch "$emu" cuda --device cuda:0
told cuda no ""
grep 'backend="cuda:0 emulated device sm_80 attention=mma.m16n8k16' "$dir/cuda/farm.log" >/dev/null ||
    { echo "cuda: its log does not tell which attention runs"; exit 1; }
batch "$cpu" cpu
python3 - "$dir/cuda/audio/row.wav" "$dir/cpu/audio/row.wav" <<'PYTHON' || exit 1
import array, math, sys, wave

def samples(path):
    with wave.open(path) as file:
        return array.array("h", file.readframes(file.getnframes()))

got, want = samples(sys.argv[1]), samples(sys.argv[2])
assert len(got) == len(want) > 4800, (len(got), len(want))
error = sum((a - b) ** 2 for a, b in zip(got, want)) / len(want)
power = sum(b * b for b in want) / len(want)
snr = 10 * math.log10(power / error) if error else 999.0
print("%d samples, %.1f dB" % (len(want), snr))
assert snr > 50, "f32 on both: what differs is rounding, to 16 bits as well"
PYTHON

COSYFARM_EMU_IPC=0 batch "$emu" refused --device cuda:0
equal refused
told refused yes "operation not supported"

COSYFARM_FAULT='outbox.open#2=fail' batch "$emu" unreadable --device cuda:0
equal unreadable
told unreadable yes "fault point outbox.open"

echo '{"llm_device": "cuda:1", "flow_device": "cuda:0", "hift_device": "cuda:1"}' >"$dir/two.json"
export COSYFARM_EMU_DEVICES=2
batch "$emu" two --config "$dir/two.json"
equal two
told two no ""
COSYFARM_EMU_PEER=0 batch "$emu" apart --config "$dir/two.json"
equal apart
told apart yes "cuda:1 cannot read memory of cuda:0"
unset COSYFARM_EMU_DEVICES

# The keeper dies while a hift reads: what that one makes of it is not believed.
child() { pgrep -P "$1" -x "$2" | head -n 1; } # of at most 15 characters
COSYFARM_FAULT='hift.step=stop' XDG_RUNTIME_DIR="" TMPDIR=$dir batch "$emu" lost --device cuda:0 & shell=$!
stopped=""
for _ in {1..600}; do
    running=$(pgrep -f "$dir/lost" | while read -r pid; do child "$pid" hift_worker; done | head -n 1)
    [[ -n $running ]] && stopped=$(awk '$3 == "T"' "/proc/$running/stat" 2>/dev/null)
    [[ -n $stopped ]] && break
    read -rt 0.1 <> <(:) || true
done
[[ -n $stopped ]] || { echo "lost: no hift_worker stopped in its step"; exit 1; }
# By now the llm has decoded the row: the status of this farm says that it did so by replays.
"$emu/cosyfarm" status --run-dir "$(echo "$dir"/cosyfarm-*)" >"$dir/status" && cat "$dir/status" &&
    grep -qE 'decoding: [1-9][0-9]* replayed, [1-9][0-9]* recorded, 0 eager' "$dir/status" ||
    { echo "lost: its status does not say that steps were replayed"; exit 1; }
grep -cE '^(llm|flow|hift) .* cuda:0 [1-9][0-9]* ' "$dir/status" | grep -qx 3 ||
    { echo "lost: its status does not say what each worker holds on the device"; exit 1; }
kill -KILL "$(child "$(ps -o ppid= -p "$running" | tr -d ' ')" exchange_keeper)"
kill -CONT "$running"
wait "$shell" || exit 1
equal lost
grep "code=stale\|worker.memory" "$dir/lost/farm.log" >/dev/null || { echo "lost: nobody noticed"; exit 1; }
