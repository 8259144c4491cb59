#!/usr/bin/env python3
"""kill_test.py - a batch whose processes are killed at random, one every INTERVAL seconds, against an undisturbed one.

    tests/e2e/kill_test.py --bin build/default/bin --rows 2000 [--interval 0.5] [--seed 1] [--also-batch]
        [--set KEY=VALUE...] [--victims NAME,NAME...] [--manifest FILE] [--log TEXT]

--set puts keys into the farm's configuration. --victims: these programs in turn, each once, instead of a draw, each while
a worker of every stage serves, and at shorter intervals where the work of the undisturbed run is short, so that they die at
work however fast or slow the machine is; the run fails when the batch ended before all were killed. --manifest: these rows
instead of drawn ones. --log: the farm's logs have to contain TEXT, that of the disturbed run
alone with "+" before it; with "!" they may not.
Orchestrator, keeper and workers of the batch's private farm are killed with SIGKILL, whichever the seed draws; with
--also-batch the batch itself now and then too, and the same command line is started again. In the end no row may be lost
or doubled, ledgers must agree in id, status, sha256, samples, seed and tokens, and every file must have its ledger's hash.
Exit status: 0 equal, 1 not. Deaths are ours here: neither a row nor a worker is to be given up for them.
"""
import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

STAGES = ("llm", "flow", "hift")
EVENT = r"^t=([0-9.]+) \S+ ev=(member\.serving|member\.lost|row\.done) .*?(?:role=(\w+)|$)"
# In a storm a row is not given up, and a barred worker, the only one of its stage, is tried soon.
STORM = {"deaths_max": 100, "parole_s": 1}
WORDS = "lamp boat tide bay rain hour night door stone river bell glass wind field paper road".split()


def write_manifest(path, rows, words, draw):
    with open(path, "w") as out:
        for i in range(rows):
            text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, words))).capitalize() + "."
            out.write(json.dumps({"id": f"r/{i:06d}", "text": text, "voice": draw.choice(["echo", "vale"])}) + "\n")


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(word) for word in f.read().split()]
    except OSError:
        return []


def name(pid):
    try:
        with open(f"/proc/{pid}/comm") as f:
            return f.read().strip()
    except OSError:
        return ""


def member_events(out_dir):
    """(seconds, event, role) of members that came and went, and of rows that were done."""
    try:
        with open(f"{out_dir}/farm.log", errors="replace") as f:
            found = re.findall(EVENT, f.read(), re.M)
    except OSError:
        return []
    return [(float(t), event, role) for t, event, role in found]


def all_serve(events):
    """Since when a worker of every stage serves (one of each was started); None: not now."""
    serving = {}
    for t, event, role in events:
        if event == "member.serving":
            serving[role] = t
        elif event == "member.lost":
            serving.pop(role, None)
    return max(serving[stage] for stage in STAGES) if all(stage in serving for stage in STAGES) else None


def work_s(out_dir):
    """From the farm's standing complete to its last row, in an undisturbed run."""
    events = member_events(out_dir)
    begin = all_serve([e for e in events if e[1] == "member.serving"])
    done = [t for t, event, _ in events if event == "row.done"]
    return max(0.0, done[-1] - begin) if done and begin is not None else 0.0


class Runner:
    def __init__(self, options, work):
        self.options, self.work = options, work
        self.env = dict(os.environ, COSYFARM_RUN_DIR=f"{work}/no-farm-here")
        self.kills = collections.Counter()
        self.victims = options.victims.split(",") if options.victims else []
        self.interval = options.interval

    def command(self, out_dir):
        return [f"{self.options.bin}/cosyfarm", "batch", "-m", f"{self.work}/model", f"{self.work}/rows.jsonl", "-o",
                out_dir, "--config", f"{self.work}/config.json", "--seed", "7", "-q"]

    def undisturbed(self, out_dir):
        return subprocess.run(self.command(out_dir), env=self.env, timeout=self.options.limit).returncode

    def hurt_one(self, batch, draw, out_dir):
        """Kills one of the farm's processes, or the batch. True: the batch."""
        if self.options.also_batch and draw.random() < 0.05:
            os.kill(batch.pid, signal.SIGKILL)
            self.kills["batch"] += 1
            return True
        if self.options.victims and all_serve(member_events(out_dir)) is None:
            return False
        victims = children(batch.pid)
        if self.options.victims:
            victims = [pid for pid in victims if self.victims and self.victims[0].startswith(name(pid) or "?")]
        if victims:
            self.victims = self.victims[1:]
            pid = draw.choice(sorted(victims))
            self.kills[name(pid)] += 1
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return False

    def disturbed(self, out_dir, draw):
        deadline = time.monotonic() + self.options.limit
        while time.monotonic() < deadline:
            batch = subprocess.Popen(self.command(out_dir), env=self.env)
            killed = False
            while not killed:
                try:
                    return batch.wait(self.interval)
                except subprocess.TimeoutExpired:
                    killed = self.hurt_one(batch, draw, out_dir)
                if time.monotonic() > deadline:
                    batch.send_signal(signal.SIGTERM)
                    batch.wait()
                    return 124
            batch.wait()
        return 124


def read_ledger(out_dir):
    rows, doubled = {}, 0
    with open(f"{out_dir}/ledger.jsonl") as f:
        for line in f:
            row = json.loads(line)
            doubled += row["id"] in rows
            rows[row["id"]] = row
    return rows, doubled


def wrong_files(out_dir, rows):
    wrong = []
    for row in rows.values():
        if row["status"] != "done":
            continue
        with open(f"{out_dir}/{row['file']}", "rb") as f:
            if hashlib.sha256(f.read()).hexdigest() != row["sha256"]:
                wrong.append(row["id"])
    return wrong


def strange_files(out_dir, rows):
    """Files under audio/ that no row of the ledger has: what a killed writer left."""
    found = {os.path.relpath(os.path.join(folder, file), out_dir)
             for folder, _, files in os.walk(f"{out_dir}/audio") for file in files}
    return sorted(found - {row["file"] for row in rows.values()})


def differences(quiet, hurt):
    keys = ("status", "sha256", "samples", "seed", "tokens")
    return [i for i in quiet if i in hurt and any(quiet[i][k] != hurt[i][k] for k in keys)]


def configured(pair):
    key, value = pair.split("=", 1)
    return key, int(value) if value.isdigit() else value


def says(out_dir, text):
    with open(f"{out_dir}/farm.log", errors="replace") as f:
        return (text.lstrip("+!") in f.read()) != text.startswith("!")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default="build/default/bin")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--interval", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600, help="seconds for each of the two runs")
    parser.add_argument("--also-batch", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--victims")
    parser.add_argument("--manifest")
    parser.add_argument("--words", type=int, default=4, help="of a row, at most")
    parser.add_argument("--log", action="append", default=[])
    options = parser.parse_args()
    draw = random.Random(options.seed)
    work = tempfile.mkdtemp(prefix="cosyfarm-kill-")
    runner = Runner(options, work)
    try:
        subprocess.run([f"{options.bin}/cosyfarm", "model", "make", f"{work}/model", "--size", "tiny"], check=True,
                       stdout=subprocess.DEVNULL)
        if options.manifest:
            shutil.copy(options.manifest, f"{work}/rows.jsonl")
            with open(options.manifest) as f:
                options.rows = len(f.readlines())
        else:
            write_manifest(f"{work}/rows.jsonl", options.rows, options.words, draw)
        with open(f"{work}/config.json", "w") as f:
            json.dump({**STORM, **dict(configured(pair) for pair in options.set)}, f)
        started = time.monotonic()
        quiet_code = runner.undisturbed(f"{work}/quiet")
        quiet_s, started = time.monotonic() - started, time.monotonic()
        if options.victims:
            share_s = work_s(f"{work}/quiet") / (3 * len(runner.victims))
            runner.interval = max(0.05, min(options.interval, share_s))
        hurt_code = runner.disturbed(f"{work}/hurt", draw)
        hurt_s = time.monotonic() - started
        quiet, _ = read_ledger(f"{work}/quiet")
        hurt, doubled = read_ledger(f"{work}/hurt")
        lost = sorted(set(quiet) - set(hurt))
        differ, wrong = differences(quiet, hurt), wrong_files(f"{work}/hurt", hurt)
        left = strange_files(f"{work}/quiet", quiet) + strange_files(f"{work}/hurt", hurt)
        kills = ", ".join(f"{k} {v}" for k, v in sorted(runner.kills.items()))
        print(f"{options.rows} rows, seed {options.seed}: {sum(runner.kills.values())} kills ({kills}); undisturbed "
              f"{quiet_s:.1f} s, disturbed {hurt_s:.1f} s; exit codes {quiet_code} and {hurt_code}")
        print(f"{len(lost)} lost, {doubled} doubled, {len(differ)} differ, {len(wrong)} files unlike their ledger line, "
              f"{len(left)} of no row")
        strange = [text for text in options.log for run in ("quiet", "hurt")
                   if not says(f"{work}/{run}", text) and (run == "hurt" or text[0] != "+")]
        for text in strange:
            print("farm.log:", text)
        if runner.victims:
            print("not killed, the batch was over:", ", ".join(runner.victims))
        good = (not strange and not runner.victims and quiet_code == hurt_code == 0 and len(quiet) == options.rows and not lost and not doubled and not differ
                and not wrong and not left)
        if not good:
            print("examples:", lost[:3], differ[:3], wrong[:3], left[:3])
        return 0 if good else 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
