#!/usr/bin/env python3
"""soak_test.py - a night of disasters on running batches, until SECONDS are over: `make soak TIME=3600`.

    tests/e2e/soak_test.py --bin build/default/bin --seconds 3600 [--rows 100] [--seed 1] [--interval 1]

Batch after batch on the tiny model. Every INTERVAL seconds in which some row has ended, the next disaster of a shuffled
round meets the running batch; what ended it is undone, and the same command line is started again:

    kill    SIGKILL to a process of its farm            move     its folder is moved away until it ends, and back
    batch   SIGKILL to the batch itself                 delete   its folder is deleted
    stop    SIGSTOP for five seconds to any of them     close    nothing can be put into its folders for a while
    clock   SIGTERM, then a wall clock that jumps       full     its disk is full for a while

After each batch no row may be lost or doubled, the ledger must agree with that of an undisturbed run in id, status, sha256,
samples, seed and tokens, and every file must have its ledger's hash. The last line counts disasters. Exit status: 0 all
equal, 1 not (the folder stays). What this host does not permit (`close` and `full` want root) is named and left out.
"""
import argparse
import collections
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from kill_test import children, differences, name, read_ledger, write_manifest, wrong_files

STOPPED_S = 5
DISK_KIB = 1 << 20
WAIT_S = 120  # for what a disaster has to lead to
CLONE_NEWNS, PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 0x20000, 24, 1
# Deaths are ours here: neither a row nor a worker is to be given up for them. A stopped worker is replaced.
CONFIG = {"precision": "bf16", "deaths_max": 100, "parole_s": 1, "parole_max_s": 2, "silence_s": 3, "utterances_max": 8}


def mount(*words):
    return subprocess.run(["mount", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def apart():
    """Mounts and lost capabilities of ours are nobody else's. False: this user cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    return (os.geteuid() == 0 and libc.unshare(CLONE_NEWNS) == 0 and mount("--make-rprivate", "/")
            and libc.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0)


class Soak:
    def __init__(self, options, work):
        self.options, self.work = options, work
        self.disk, self.dir = f"{work}/disk", f"{work}/disk/out"
        self.draw = random.Random(options.seed)
        self.counts, self.codes = collections.Counter(), collections.Counter()
        self.batch, self.round, self.rows, self.batches = None, [], 0, 0
        os.mkdir(self.disk)
        self.is_apart = apart() and mount("-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", self.disk)
        self.shim = os.path.realpath(f"{options.bin}/../tests/e2e/clock_jump.so")
        self.disasters = [self.kill, self.kill_batch, self.stop, self.move, self.delete]
        self.disasters += [self.clock] if os.path.exists(self.shim) else []
        self.disasters += [self.close, self.full] if self.is_apart else []

    # ---- the batch ----

    def start(self, out_dir, **env):
        return subprocess.Popen([f"{self.options.bin}/cosyfarm", "batch", "-m", f"{self.work}/model", f"{self.work}/rows.jsonl",
                                 "-o", out_dir, "--config", f"{self.work}/config.json", "--seed", "7", "-q"],
                                env=dict(os.environ, COSYFARM_RUN_DIR=f"{self.work}/no-farm-here", **env),
                                stderr=open(f"{self.work}/said", "a"))

    def lines(self):
        try:
            with open(f"{self.dir}/ledger.jsonl", "rb") as f:
                return f.read().count(b"\n")
        except OSError:
            return 0

    def log_has(self, text):
        try:
            with open(f"{self.dir}/farm.log", errors="replace") as f:
                return f.read().count(text)
        except OSError:
            return 0

    def wait(self, condition, seconds=WAIT_S):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.batch.poll() is None:
            if condition():
                return True
            time.sleep(0.02)
        return False

    # ---- what happens in a night ----

    def kill(self):
        victims = children(self.batch.pid)
        if victims:
            send(self.draw.choice(sorted(victims)), signal.SIGKILL)

    def kill_batch(self):
        self.batch.kill()

    def stop(self):
        victim = self.draw.choice(sorted(children(self.batch.pid)) + [self.batch.pid])
        send(victim, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        send(victim, signal.SIGCONT)

    def clock(self):
        self.batch.terminate()
        self.count_end()
        self.batch = self.start(self.dir, LD_PRELOAD=self.shim)

    def move(self):
        os.rename(self.dir, f"{self.disk}/away")
        self.wait_end()
        shutil.rmtree(self.dir, ignore_errors=True)  # what the farm wrote meanwhile
        os.rename(f"{self.disk}/away", self.dir)

    def delete(self):
        while os.path.exists(self.dir):  # the farm may put something new in at any time
            shutil.rmtree(self.dir, ignore_errors=True)
        self.wait_end()

    def until_it_waits(self):
        before = self.log_has("ev=storage.waits")
        return lambda: self.log_has("ev=storage.waits") > before

    def close(self):
        waits = self.until_it_waits()
        os.chmod(f"{self.dir}/audio/r", 0o555)
        self.wait(waits)
        os.chmod(f"{self.dir}/audio/r", 0o755)

    def full(self):
        waits = self.until_it_waits()
        used = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(self.disk) for f in files)
        mount("-o", f"remount,size={used // 1024 + 64}k", self.disk)
        self.wait(waits)
        mount("-o", f"remount,size={DISK_KIB}k", self.disk)

    # ---- rounds ----

    def wait_end(self):
        try:
            return self.batch.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.batch.kill()
            raise SystemExit(f"the batch does not end within {WAIT_S} s; {self.work}")

    def count_end(self):
        """The batch's exit code, which must be one that says: the same command line goes on."""
        code = self.wait_end()
        self.codes[code] += 1
        if code not in (0, 75, -signal.SIGKILL):
            raise SystemExit(f"the batch ended with {code}; see {self.work}/said and {self.dir}")
        return code

    def one_batch(self, end):
        """A batch from its start to its end, over as many starts as it takes."""
        self.batch = self.start(self.dir)
        while True:
            before = self.lines()
            self.wait(lambda: self.lines() > before)
            try:
                self.batch.wait(self.options.interval if time.monotonic() < end else WAIT_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end:
                    self.next_disaster()
            if self.batch.poll() is not None:
                if self.count_end() == 0 and self.lines() > 0:  # it may have been over when its folder was deleted
                    return
                self.batch = self.start(self.dir)

    def next_disaster(self):
        if not self.round:
            self.round = self.draw.sample(self.disasters, len(self.disasters))
        disaster = self.round.pop()
        disaster()
        self.counts[disaster.__name__] += 1

    def judge(self, quiet):
        hurt, doubled = read_ledger(self.dir)
        lost, differ, wrong = sorted(set(quiet) - set(hurt)), differences(quiet, hurt), wrong_files(self.dir, hurt)
        self.rows, self.batches = self.rows + len(hurt), self.batches + 1
        if lost or doubled or differ or wrong:
            raise SystemExit(f"lost {lost[:3]}, doubled {doubled}, differ {differ[:3]}, files unlike their ledger line "
                             f"{wrong[:3]}; {self.dir}")

    def run(self):
        subprocess.run([f"{self.options.bin}/cosyfarm", "model", "make", f"{self.work}/model", "--size", "tiny"], check=True,
                       stdout=subprocess.DEVNULL)
        write_manifest(f"{self.work}/rows.jsonl", self.options.rows, 3, self.draw)
        with open(f"{self.work}/config.json", "w") as f:
            json.dump(CONFIG, f)
        if self.start(f"{self.work}/quiet").wait() != 0:
            raise SystemExit(f"the undisturbed batch failed; {self.work}/said")
        quiet, _ = read_ledger(f"{self.work}/quiet")
        end = time.monotonic() + self.options.seconds
        while time.monotonic() < end:
            self.one_batch(end)
            self.judge(quiet)
            shutil.rmtree(self.dir)

    def report(self):
        def words(counts):
            return ", ".join(f"{k} {v}" for k, v in sorted(counts.items())) or "none"
        if not self.is_apart:
            print("left out: close, full (they want root, mounts and capabilities)")
        print(f"seed {self.options.seed}: {self.batches} batches, {self.rows} rows, each as in an undisturbed run; exit codes "
              f"{words({str(k): v for k, v in self.codes.items()})}; disasters {sum(self.counts.values())}: {words(self.counts)}")


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default="build/default/bin")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, default=1)
    soak = Soak(parser.parse_args(), tempfile.mkdtemp(prefix="cosyfarm-soak-"))
    try:
        soak.run()
    except SystemExit:
        soak.report()
        raise
    finally:
        if soak.batch and soak.batch.poll() is None:
            soak.batch.kill()
    soak.report()
    if soak.is_apart:
        subprocess.run(["umount", soak.disk])
    shutil.rmtree(soak.work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
