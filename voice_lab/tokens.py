"""Speech codes: k-means over pairs of envelope frames, with variants so that no code repeats within ten.

Repetition-aware sampling (spec llm 7) rejects a code that occurred in the last ten and draws another from the whole
distribution. A held vowel or a pause would be hit by that every time. So every cluster has as many codes as it is
needed within a window, and an utterance takes the first that is free: a right sequence is never rejected.

    python3 -m voice_lab.tokens OUT [--clusters K]     reads OUT/data/features, writes OUT/codes.npz
"""
import argparse
import os

import numpy as np

from . import make_data

FLOOR, VOICING_WEIGHT = -7.5, 2.0
WINDOW = 10                               # win_size of the sampler
VARIANTS_MAX = WINDOW + 1


def prepare(features):
    """[N, 2, 81] -> [N, 162]: what distances are taken in."""
    f = np.asarray(features, np.float32)
    return np.concatenate([np.maximum(f[..., :80], FLOOR), f[..., 80:] * VOICING_WEIGHT * 3], -1).reshape(len(f), -1)


def nearest(points, centres):
    """Index of the nearest centre of each point."""
    out, norms = np.empty(len(points), np.int32), (centres ** 2).sum(1) / 2
    for i in range(0, len(points), 8192):
        out[i:i + 8192] = np.argmin(norms - points[i:i + 8192] @ centres.T, 1)
    return out


def k_means(points, clusters, seed, rounds=14):
    rng = np.random.default_rng(seed)
    centres = points[rng.choice(len(points), clusters, replace=False)].copy()
    for i in range(rounds):
        owner = nearest(points, centres)
        count = np.bincount(owner, minlength=clusters)
        order = np.argsort(owner, kind="stable")
        begin = np.concatenate([[0], np.cumsum(count)[:-1]])
        full = count > 0
        centres[full] = np.add.reduceat(points[order], begin[full], 0) / count[full, None]
        if not full.all() and i < rounds - 2:                # an empty one moves to a random point
            centres[~full] = points[rng.choice(len(points), int((~full).sum()))]
    return centres


def needed(sequences, clusters):
    """How many codes each cluster needs: its count within any WINDOW + 1 codes, in all but 1 of 2000 such places."""
    seen = [[] for _ in range(clusters)]
    for s in sequences:
        for i, c in enumerate(s):
            seen[c].append(int((s[max(0, i - WINDOW):i] == c).sum()) + 1)
    return np.array([min(VARIANTS_MAX, int(np.quantile(x, 0.9995, method="higher"))) if x else 1 for x in seen], np.int32)


class Codes:
    """centres [K, 162]; cluster k owns the codes first[k] .. first[k] + variants[k] - 1."""

    def __init__(self, centres, variants):
        self.centres, self.variants = centres, variants
        self.first = np.concatenate([[0], np.cumsum(variants)[:-1]]).astype(np.int32)
        self.count = int(variants.sum())
        self.cluster_of = np.repeat(np.arange(len(variants), dtype=np.int32), variants)

    def encode(self, features):
        """[N, 2, 81] -> codes [N]."""
        return self.spread(nearest(prepare(features), self.centres))

    def spread(self, clusters):
        """Clusters [N] -> codes [N]: of each cluster the first code that is free within the window."""
        out = []
        for k in clusters:
            codes = range(self.first[k], self.first[k] + self.variants[k])
            recent = out[-WINDOW:]
            free = [c for c in codes if c not in recent]
            out.append(free[0] if free else min(codes, key=lambda c: max(i for i, r in enumerate(recent) if r == c)))
        return np.array(out, np.int32)

    def save(self, path):
        np.savez(path + ".part.npz", centres=self.centres, variants=self.variants)
        os.replace(path + ".part.npz", path)

    @staticmethod
    def load(path):
        with np.load(path) as f:
            return Codes(f["centres"], f["variants"])


def fit(files, clusters, seed, points_max=160000):
    """files: what make_data.features wrote."""
    frames = [f for arrays in files for f in make_data.split(arrays, "mel")]
    points = prepare(np.concatenate(frames))
    rng = np.random.default_rng(seed)
    sample = points if len(points) <= points_max else points[rng.choice(len(points), points_max, replace=False)]
    centres = k_means(sample, clusters, seed)
    owner = nearest(points, centres)
    sequences = np.split(owner, np.cumsum([len(f) for f in frames])[:-1])
    distance = np.sqrt(((points - centres[owner]) ** 2).mean())
    return Codes(centres.astype(np.float32), needed(sequences, clusters)), float(distance)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--clusters", type=int, default=640)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    codes, distance = fit(make_data.load(a.out + "/data/features")[:8], a.clusters, a.seed)
    codes.save(a.out + "/codes.npz")
    print(f"{a.clusters} clusters, {codes.count} codes, root mean square distance {distance:.3f} a value")


if __name__ == "__main__":
    main()
