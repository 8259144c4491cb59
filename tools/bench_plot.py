#!/usr/bin/env python3
"""Pictures of what `cosyfarm bench` measured; needs matplotlib.

    cosyfarm bench farm -m DIR --trace trace.json
    bench_plot.py timeline trace.json -o timeline.svg     which stage works on which row when
    cosyfarm bench llm flow hift -m DIR --json > rates.jsonl
    bench_plot.py rates rates.jsonl... -o rates.svg       audio seconds a second against rows at once

A timeline has a band per worker: a dark line where it computes, and below it a bar per job from its arrival in the stage
to its result, one colour per row. The trace is also what chrome://tracing and Perfetto read.
"""
import argparse
import json
import sys
from collections import defaultdict

STAGES = ("llm", "flow", "hift")


def worker_order(name):
    stage, _, instance = name.partition("/")
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), instance)


def read_trace(path):
    """Returns {worker: (steps, jobs)}: steps [(start, seconds)], jobs [(row, start, end)], in seconds from the first."""
    with open(path, encoding="utf-8") as f:
        events = json.load(f)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    timed = [e for e in events if e["ph"] in "Xbe"]
    if not timed:
        sys.exit(f"{path}: no event with a time")
    first = min(e["ts"] for e in timed)
    workers = defaultdict(lambda: ([], []))
    open_jobs = {}
    for e in timed:
        at = (e["ts"] - first) / 1e6
        steps, jobs = workers[names[e["pid"]]]
        if e["ph"] == "X":
            steps.append((at, e["dur"] / 1e6))
        elif e["ph"] == "b":
            open_jobs[e["pid"], e["id"]] = at
        else:
            jobs.append((e["name"], open_jobs.pop((e["pid"], e["id"])), at))
    return dict(workers)


def lanes_of(jobs):
    """Each job with the first lane that is free when it begins: [(row, start, end, lane)]."""
    free_from, placed = [], []
    for row, start, end in sorted(jobs, key=lambda j: j[1]):
        lane = next((i for i, until in enumerate(free_from) if until <= start), len(free_from))
        free_from[lane:lane + 1] = [end]
        placed.append((row, start, end, lane))
    return placed


def draw_timeline(plt, paths):
    workers = {}
    for path in paths:
        workers.update(read_trace(path))
    rows = sorted({row for _, jobs in workers.values() for row, _, _ in jobs})
    colours = {row: plt.get_cmap("turbo")((i * 7 % len(rows)) / len(rows)) for i, row in enumerate(rows)}
    fig, ax = plt.subplots(figsize=(12, 6))
    top, ticks = 0.0, []
    for worker in sorted(workers, key=worker_order):
        steps, jobs = workers[worker]
        placed = lanes_of(jobs)
        lanes = 1 + max((lane for *_, lane in placed), default=0)
        ax.broken_barh(steps, (top - 0.8, 0.6), color="black")
        for row, start, end, lane in placed:
            ax.broken_barh([(start, end - start)], (top - 2 - lane, 0.9), color=colours[row])
        busy = sum(seconds for _, seconds in steps)
        ticks.append((top - 0.5, f"{worker}, {busy:.1f} s"))
        top -= lanes + 2
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    ax.set_xlabel("seconds")
    ax.set_ylim(top, 0)
    ax.set_title("black: computing; bars: jobs in the stage, a colour a row")
    return fig


def draw_rates(plt, paths):
    lines = defaultdict(list)
    for path in paths:
        with open(path, encoding="utf-8") as f:
            for one in map(json.loads, filter(str.strip, f)):
                if one["bench"] in STAGES:
                    lines[one["bench"], one["precision"]].append((one["rows"], one["audio_per_s"]))
    if not lines:
        sys.exit(f"{', '.join(paths)}: no rate of a stage")
    fig, ax = plt.subplots(figsize=(8, 5))
    for (stage, precision), points in sorted(lines.items()):
        points.sort()
        ax.plot(*zip(*points), marker="o", label=f"{stage} {precision}")
    ax.axhline(1, color="grey", linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("rows at once")
    ax.set_ylabel("audio seconds a second")
    ax.legend()
    return fig


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=("timeline", "rates"))
    parser.add_argument("files", nargs="+")
    parser.add_argument("-o", "--output", required=True, help="picture; its extension says the format")
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit("bench_plot.py needs matplotlib (Debian: python3-matplotlib)")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig = (draw_timeline if args.picture == "timeline" else draw_rates)(plt, args.files)
    fig.tight_layout()
    fig.savefig(args.output)


if __name__ == "__main__":
    main()
