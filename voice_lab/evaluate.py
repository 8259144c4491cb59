"""What PocketSphinx understands: word error rates of waves, with a bigram of the test's sentences or a flat word list.

    python3 -m voice_lab.evaluate DIR     DIR holds manifest.jsonl of {"id", "text"} and id.wav

Debian packages pocketsphinx and pocketsphinx-en-us. Nothing of the farm is needed to score waves that are there.
"""
import argparse
import json
import math
import os
import re
import subprocess
import tempfile
import wave
from collections import Counter

import numpy as np

from . import sentences

MODEL = "/usr/share/pocketsphinx/model/en-us"


def words_of(text):
    return re.sub(r"[^a-z' ]", " ", text.lower()).split()


def edits(expected, found):
    """Substitutions + insertions + deletions."""
    row = list(range(len(found) + 1))
    for i, e in enumerate(expected, 1):
        last, row[0] = row[0], i
        for j, f in enumerate(found, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (e != f))
    return row[-1]


def _write_arpa(path, unigrams, bigrams):
    """unigrams {word: (log10 probability, back-off)}, bigrams {(a, b): log10 probability}."""
    with open(path, "w", encoding="utf-8") as out:
        out.write(f"\\data\\\nngram 1={len(unigrams)}\nngram 2={len(bigrams)}\n\n\\1-grams:\n")
        for w, (p, b) in sorted(unigrams.items()):
            out.write(f"{p:.4f} {w} {b:.4f}\n")
        out.write("\n\\2-grams:\n")
        for (a, b), p in sorted(bigrams.items()):
            out.write(f"{p:.4f} {a} {b}\n")
        out.write("\n\\end\\\n")


def bigram_model(path, texts, words):
    """Absolute discounting of 0.5 over the texts; every word of the list is possible everywhere."""
    first, second = Counter(), Counter()
    for text in texts:
        run = ["<s>"] + words_of(text) + ["</s>"]
        first.update(run[:-1])
        second.update(zip(run, run[1:]))
    total = sum(first.values())
    followers = Counter(a for a, _ in second)
    names = sorted(set(words) | {"<s>", "</s>"})
    unigrams = {}
    for w in names:
        p = (first[w] + 0.5) / (total + 0.5 * len(names))
        back = 0.5 * followers[w] / first[w] if first[w] else 1.0
        unigrams[w] = (-99.0 if w == "<s>" else math.log10(p), math.log10(back))
    _write_arpa(path, unigrams, {(a, b): math.log10((n - 0.5) / first[a]) for (a, b), n in second.items()})


def loop_model(path, words):
    p = -math.log10(len(words) + 1)
    _write_arpa(path, {**{w: (p, 0.0) for w in words}, "<s>": (-99.0, 0.0), "</s>": (p, 0.0)}, {("<s>", words[0]): p})


def dictionary(path, words):
    wanted = set(words)
    with open(MODEL + "/cmudict-en-us.dict", encoding="utf-8") as lines, open(path, "w", encoding="utf-8") as out:
        kept = [line for line in lines if re.sub(r"\(\d+\)$", "", line.split(" ", 1)[0]) in wanted]
        out.writelines(kept)
    missing = wanted - {re.sub(r"\(\d+\)$", "", line.split(" ", 1)[0]) for line in kept}
    if missing:
        raise RuntimeError(f"PocketSphinx's dictionary has not: {' '.join(sorted(missing))}")


def read_wave(path):
    with wave.open(path, "rb") as f:
        if f.getsampwidth() != 2 or f.getnchannels() != 1:
            raise RuntimeError(f"{path}: expected 16-bit mono")
        return np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float32) / 32768, f.getframerate()


def write_wave(path, audio, rate_hz=24000):
    with wave.open(path, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate_hz)
        f.writeframes((np.clip(audio, -0.99, 0.99) * 32767).astype("<i2").tobytes())


def to_16k(audio, rate_hz):
    """Windowed-sinc resampling, enough for a recogniser that hears up to 6.8 kHz."""
    if rate_hz == 16000:
        return audio
    step, width = rate_hz / 16000, 24
    at = np.arange(int(len(audio) / step)) * step
    base = np.floor(at).astype(int)
    tap = np.arange(-width, width + 1)
    d = at[:, None] - (base[:, None] + tap)
    kernel = np.sinc(d / step * 0.96) * 0.96 / step * np.cos(np.clip(d / (width + 1), -1, 1) * np.pi / 2) ** 2
    padded = np.pad(audio, width + 1)
    return (padded[base[:, None] + tap + width + 1] * kernel).sum(1)


def recognise(waves, language_model, dictionary_path, folder):
    """[(audio, rate)] -> the words heard in each. One decoder for all: it adapts its cepstral mean as it goes."""
    names = []
    for i, (audio, rate) in enumerate(waves):
        pcm = to_16k(np.concatenate([np.zeros(rate // 4), audio, np.zeros(rate // 4)]), rate)
        noise = np.random.default_rng(i).standard_normal(len(pcm)) * 1e-4
        (np.clip(pcm + noise, -1, 1) * 32767).astype("<i2").tofile(f"{folder}/{i:04d}.raw")
        names.append(f"{i:04d}")
    with open(folder + "/ctl", "w", encoding="utf-8") as out:
        out.write("\n".join(names) + "\n")
    command = ["pocketsphinx_batch", "-adcin", "yes", "-cepdir", folder, "-cepext", ".raw", "-ctl", folder + "/ctl", "-hyp",
               folder + "/hyp", "-hmm", MODEL + "/en-us", "-lm", language_model, "-dict", dictionary_path, "-remove_noise",
               "no", "-cmn", "batch", "-lw", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not os.path.exists(folder + "/hyp"):
        raise RuntimeError("pocketsphinx_batch failed:\n" + done.stderr[-2000:])
    heard = {}
    with open(folder + "/hyp", encoding="utf-8") as lines:
        for line in lines:
            m = re.match(r"(.*?)\s*\((\d{4}) -?\d+\)\s*$", line)
            heard[m.group(2)] = words_of(m.group(1))
    return [heard.get(n, []) for n in names]


def score(waves, texts, words, model_texts, show=0):
    """Word error rates in percent: bigram and loop."""
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        dictionary(folder + "/dict", words)
        bigram_model(folder + "/bigram", model_texts, words)
        loop_model(folder + "/loop", words)
        for name in ("bigram", "loop"):
            heard = recognise(waves, f"{folder}/{name}", folder + "/dict", folder)
            wrong = [edits(words_of(t), h) for t, h in zip(texts, heard)]
            rates[name] = 100 * sum(wrong) / sum(len(words_of(t)) for t in texts)
            if name == "bigram":
                for t, h, n in [x for x in zip(texts, heard, wrong) if x[2]][:show]:
                    print(f"  {n}  {t}  ->  {' '.join(h)}")
    return rates


def periodicity(audio, pitch_hz, rate_hz=24000):
    """Median over loud, voiced 40 ms frames of the autocorrelation at the pitch's lag (best within 4 %)."""
    out, size = [], rate_hz // 25
    lags = np.arange(int(rate_hz / pitch_hz * 0.96), int(rate_hz / pitch_hz * 1.04) + 2)
    loud = np.sqrt(np.mean(audio ** 2)) * 0.7
    for start in range(0, len(audio) - size - lags[-1], size // 2):
        a = audio[start:start + size]
        if np.sqrt(np.mean(a ** 2)) < loud:
            continue
        b = [audio[start + lag:start + lag + size] for lag in lags]
        out.append(max(float((a * x).sum() / np.sqrt((a * a).sum() * (x * x).sum() + 1e-12)) for x in b))
    return float(np.median(out)) if out else 0.0


def template_texts(templates, count=4000, seed=99):
    """Sentences of the templates for the language model of the recogniser (held-out ones are not among them)."""
    import random
    rng = random.Random(seed)
    return [sentences.fill(rng.choice(templates), rng) for _ in range(count)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder")
    ap.add_argument("--shapes", choices=("training", "other"), default="training")
    ap.add_argument("--words", default=os.path.join(os.path.dirname(__file__), "words.txt"))
    ap.add_argument("--pitch", type=float, default=112.5)
    ap.add_argument("--limit", type=float, help="exit with 1 if the bigram error in percent is above it")
    ap.add_argument("--show", type=int, default=5)
    a = ap.parse_args()
    with open(a.folder + "/manifest.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    waves = [read_wave(f"{a.folder}/{r['id']}.wav") for r in rows]
    templates = sentences.TRAINING if a.shapes == "training" else sentences.OTHER_SHAPES
    rates = score(waves, [r["text"] for r in rows], sentences.word_list(a.words), template_texts(templates), a.show)
    periodic = np.mean([periodicity(w, a.pitch, rate) for w, rate in waves])
    print(f"sentences {len(rows)}  bigram {rates['bigram']:.1f} %  loop {rates['loop']:.1f} %  periodicity {periodic:.2f}")
    if a.limit is not None and rates["bigram"] > a.limit:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
