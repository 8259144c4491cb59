#!/usr/bin/env bash
# farm.sh - a batch through the real worker programs on the emulated device, one worker killed by a device error on the
# way; the same audio as the CPU's up to rounding.   farm.sh EMU_BUILD CPU_BUILD
set -u
command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }
emu=$1/bin cpu=$2/bin
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export COSYFARM_RUN_DIR=$dir/run
mkdir -m 700 "$dir/run"
"$emu/cosyfarm" model make "$dir/tiny" >/dev/null || exit 1
say() { # program name options...
    "$1/cosyfarm" say -m "$dir/tiny" --threads 1 "${@:3}" -o "$dir/$2.wav" "Hello." || exit 1
}
say "$emu" cuda --device cuda:0
say "$cpu" cpu
python3 - "$dir/cuda.wav" "$dir/cpu.wav" <<'PYTHON'
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
