"""Loss plots as SVG, from what the trainings reported.

    python3 -m voice_lab.plot OUT FOLDER       OUT/{hift,f0,flow,llm}.jsonl -> FOLDER/STAGE.svg
"""
import argparse
import json
import math
import os

WIDTH, HEIGHT, MARGIN = 640, 320, 52
FIGURES = {"hift": ("loss", "mel", "complex"), "f0": ("hz", "voicing"), "flow": ("conditional", "mu"), "llm": ("entropy", "accuracy")}
COLOURS = ("#1f5fa8", "#c0561b", "#3a7d34")


def svg(rows, names, title):
    """Lines over core-minutes, logarithmic upwards."""
    minutes = [r["minutes"] for r in rows]
    values = [r[n] for r in rows for n in names if r.get(n, 0) > 0]
    low, high = math.log10(min(values)), math.log10(max(values))
    span, last = max(high - low, 0.1), max(minutes[-1], 1e-9)

    def x(m):
        return MARGIN + (WIDTH - 2 * MARGIN) * m / last

    def y(v):
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (math.log10(v) - low) / span

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{MARGIN}" y="20">{title}</text>',
           f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 14}" text-anchor="end">{last:.0f} core-minutes</text>']
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            v = digit * 10.0 ** exponent
            if low <= math.log10(v) <= high:
                out.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>'
                           f'<text x="{MARGIN - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for i, (name, colour) in enumerate(zip(names, COLOURS)):
        points = " ".join(f"{x(r['minutes']):.1f},{y(r[name]):.1f}" for r in rows if r.get(name, 0) > 0)
        out.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>'
                   f'<text x="{WIDTH - MARGIN - 90}" y="{38 + 16 * i}" fill="{colour}">{name}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("folder")
    a = ap.parse_args()
    os.makedirs(a.folder, exist_ok=True)
    for stage, names in FIGURES.items():
        path = f"{a.out}/{stage}.jsonl"
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows = [r for r in rows if any(n in r for n in names)]
        step = max(1, len(rows) // 300)
        with open(f"{a.folder}/{stage}.svg", "w", encoding="utf-8") as text:
            text.write(svg(rows[::step], names, f"{stage}: {rows[-1]['step']} steps"))


if __name__ == "__main__":
    main()
