"""The whole pipeline, from nothing to a model directory, on two cores and a budget of hours.

    python3 -m voice_lab.run --hours 2.5 --out DIR

One process a core: sound on one and codes on the other first, then one core trains HiFT and Flow while the other
trains the LLM; then export and the gates. Everything is resumable: the same command goes on where it stopped. Ends with
OUT/demo (the model directory), OUT/gates*.log (error rates) and OUT/*.svg.
"""
import argparse
import os
import signal
import subprocess
import sys
import time

# Shares of the wall time: data before anything else, gates behind everything.
DATA, GATES = 0.14, 0.08
HIFT, F0, FLOW = 0.63, 0.03, 0.34         # of one core's training time; the LLM has the other core


def wait(out, **processes):
    """Until all have ended; when one fails the others are ended, since a second run would write the same files."""
    def failed():
        return next((name for name, p in processes.items() if p.poll()), None)

    try:
        while any(p.poll() is None for p in processes.values()) and not failed():
            time.sleep(0.5)
        name = failed()
    finally:
        for p in processes.values():
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGTERM)
                p.wait()
    if name:
        raise SystemExit(f"{name} failed: see {out}/{name}.log")


def start(out, name, *commands):
    """Modules of voice_lab one after the other, on one thread, as one process; what they print goes to OUT/name.log."""
    script = ("import subprocess, sys\nfor c in " + repr([list(c) for c in commands]) +
              ":\n    print('#', *c, flush=True)\n    subprocess.run([sys.executable, '-m', *c], check=True)\n")
    environment = {**os.environ, **{f"{p}_NUM_THREADS": "1" for p in ("OMP", "OPENBLAS", "MKL")},
                   "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    print(f"{time.strftime('%H:%M:%S')} {name}: " + "; ".join(" ".join(c) for c in commands), flush=True)
    with open(f"{out}/{name}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, "-c", script], stdout=log, stderr=log, env=environment,
                                start_new_session=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--hours", type=float, default=2.5)
    ap.add_argument("--out", required=True)
    ap.add_argument("--rendered", type=int, default=2000, help="sentences with sound, each in both voices")
    ap.add_argument("--features", type=int, default=20000, help="sentences of codes alone, for the LLM")
    ap.add_argument("--clusters", type=int, default=640)
    ap.add_argument("--judged", type=int, default=40, help="sentences for each error rate")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--no-compile", action="store_true", help="without g++")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    minutes = a.hours * 60 * (1 - DATA - GATES)
    seed, data = ["--seed", str(a.seed)], a.out + "/data"

    sound = start(a.out, "rendered", ["voice_lab.make_data", data, "--rendered", str(a.rendered), *seed])
    words = start(a.out, "features", ["voice_lab.make_data", data, "--features", str(a.features), *seed],
                  *([] if os.path.exists(a.out + "/codes.npz") else
                    [["voice_lab.tokens", a.out, "--clusters", str(a.clusters), *seed]]))
    wait(a.out, rendered=sound, features=words)
    compiled = [] if a.no_compile else ["--compile"]
    sound = start(
        a.out, "sound",
        ["voice_lab.train_hift", a.out, "--minutes", f"{minutes * HIFT:.2f}", "--f0-minutes", f"{minutes * F0:.2f}", *seed] +
        compiled,
        ["voice_lab.train_flow", a.out, "--minutes", f"{minutes * FLOW:.2f}", *seed])
    words = start(a.out, "words", ["voice_lab.train_llm", a.out, "--minutes", f"{minutes:.2f}", *seed] + compiled)
    wait(a.out, sound=sound, words=words)
    wait(a.out, export=start(a.out, "export", ["voice_lab.export", a.out, a.out + "/demo"]))
    wait(a.out, plot=start(a.out, "plot", ["voice_lab.plot", a.out, a.out]))
    arlo = start(a.out, "gates", ["voice_lab.gate", a.out, "--sentences", str(a.judged)])
    mira = start(a.out, "gates-mira", ["voice_lab.gate", a.out, "--sentences", str(a.judged), "--voice", "mira", "--stages",
                                       "hift,flow,chain"])
    wait(a.out, gates=arlo, **{"gates-mira": mira})
    for name in ("gates", "gates-mira"):
        with open(f"{a.out}/{name}.log", encoding="utf-8") as log:
            print(log.read())


if __name__ == "__main__":
    main()
