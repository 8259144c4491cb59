"""What PocketSphinx understands: word error rates of waves, with a bigram of the test's sentences or a flat word list.

    python3 -m voice_lab.evaluate DIR                          DIR holds manifest.jsonl of {"id", "text"} and audio/ID.wav
    python3 -m voice_lab.evaluate DIR --farm cosyfarm -m MODEL [-v VOICE] [--sentences N]    ... made by the farm first

Debian packages pocketsphinx and pocketsphinx-en-us; nothing but Python's own library. Exit 77: no recogniser; 1: an
error rate above --limit or a periodicity below --periodicity.
"""
import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from array import array
from collections import Counter
from fractions import Fraction
from operator import mul

from . import sentences

MODEL = "/usr/share/pocketsphinx/model/en-us"
PITCHES = {"arlo": 112.5, "mira": 162.5}


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
    """The words' entries of PocketSphinx's dictionary, all pronunciations."""
    wanted, kept = set(words), []
    with open(MODEL + "/cmudict-en-us.dict", encoding="utf-8") as lines:
        for line in lines:
            if re.sub(r"\(\d+\)$", "", line.split(" ", 1)[0]) in wanted:
                kept.append(line)
    missing = wanted - {re.sub(r"\(\d+\)$", "", line.split(" ", 1)[0]) for line in kept}
    if missing:
        raise RuntimeError(f"PocketSphinx's dictionary has not: {' '.join(sorted(missing))}")
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(kept)


def read_wave(path):
    """Samples in [-1, 1) and the rate."""
    with wave.open(path, "rb") as f:
        if f.getsampwidth() != 2 or f.getnchannels() != 1:
            raise RuntimeError(f"{path}: expected 16-bit mono")
        data, rate = f.readframes(f.getnframes()), f.getframerate()
        return [s / 32768 for s in array("h", data)], rate


def _pcm(samples):
    return array("h", (int(max(-0.99, min(0.99, s)) * 32767) for s in samples))


def write_wave(path, audio, rate_hz=24000):
    with wave.open(path, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate_hz)
        f.writeframes(_pcm(audio).tobytes())


def to_16k(audio, rate_hz):
    """Windowed-sinc resampling, one kernel per phase."""
    if rate_hz == 16000:
        return list(audio)
    step, width, kernels = Fraction(rate_hz, 16000), 24, {}
    scale = min(1.0, 16000 / rate_hz) * 0.96
    padded, out = [0.0] * (width + 1) + [float(a) for a in audio] + [0.0] * (width + 1), []
    for n in range(int(len(audio) / step)):
        at = n * step
        base, phase = int(at), at - int(at)
        if phase not in kernels:
            d = [float(phase) - t for t in range(-width, width + 1)]
            kernels[phase] = [scale * (math.sin(math.pi * x * scale) / (math.pi * x * scale) if x else 1.0) *
                              math.cos(max(-1.0, min(1.0, x / (width + 1))) * math.pi / 2) ** 2 for x in d]
        out.append(sum(map(mul, padded[base + 1:base + 2 * width + 2], kernels[phase])))
    return out


def recognise(waves, language_model, folder):
    """16 kHz waves -> the words heard in each."""
    names = [f"{i:04d}" for i in range(len(waves))]
    for i, (name, pcm) in enumerate(zip(names, waves)):
        rng, quiet = random.Random(i), [0.0] * 4000
        with open(f"{folder}/{name}.raw", "wb") as out:
            out.write(_pcm(s + rng.uniform(-2e-4, 2e-4) for s in quiet + pcm + quiet).tobytes())
    with open(folder + "/ctl", "w", encoding="utf-8") as out:
        out.write("\n".join(names) + "\n")
    done = subprocess.run(
        ["pocketsphinx_batch", "-adcin", "yes", "-cepdir", folder, "-cepext", ".raw", "-ctl", folder + "/ctl", "-hyp",
         folder + "/hyp", "-hmm", MODEL + "/en-us", "-lm", language_model, "-dict", folder + "/dict", "-remove_noise", "no",
         "-cmn", "batch"], capture_output=True, text=True)
    if done.returncode != 0 or not os.path.exists(folder + "/hyp"):
        raise RuntimeError("pocketsphinx_batch failed:\n" + done.stderr[-2000:])
    heard = {}
    with open(folder + "/hyp", encoding="utf-8") as lines:
        for line in lines:
            m = re.match(r"(.*?)\s*\((\d{4}) -?\d+\)\s*$", line)
            heard[m.group(2)] = words_of(m.group(1))
    os.remove(folder + "/hyp")
    return [heard.get(n, []) for n in names]


def score(waves, texts, words, model_texts, show=0, loop=True):
    """[(samples, rate)] -> word error rates in percent."""
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        dictionary(folder + "/dict", words)
        bigram_model(folder + "/bigram", model_texts, words)
        loop_model(folder + "/loop", words)
        pcm = [to_16k(audio, rate) for audio, rate in waves]
        for name in ("bigram", "loop") if loop else ("bigram",):
            heard = recognise(pcm, f"{folder}/{name}", folder)
            wrong = [edits(words_of(t), h) for t, h in zip(texts, heard)]
            rates[name] = 100 * sum(wrong) / sum(len(words_of(t)) for t in texts)
            if name == "bigram":
                for t, h, n in [x for x in zip(texts, heard, wrong) if x[2]][:show]:
                    print(f"  {n}  {t}  ->  {' '.join(h)}")
    return rates


def periodicity(audio, pitch_hz, rate_hz=24000):
    """Median over loud 40 ms stretches of the autocorrelation at the pitch's lag, the best within 4 %."""
    audio, out, size = [float(a) for a in audio], [], rate_hz // 25
    drift = sum(audio[:240])                                 # less a running mean over 10 ms: a slow wave is no pitch
    for i in range(len(audio) - 240):
        drift, audio[i] = drift + audio[i + 240] - audio[i], audio[i] - drift / 240
    lags = range(int(rate_hz / pitch_hz * 0.96), int(rate_hz / pitch_hz * 1.04) + 2, 1)
    loud = 0.5 * sum(map(mul, audio, audio)) / max(1, len(audio)) * size
    for start in range(0, len(audio) - size - lags[-1], size):
        a = audio[start:start + size]
        own = sum(map(mul, a, a))
        if own < loud:
            continue
        best = 0.0
        for lag in lags:
            b = audio[start + lag:start + lag + size]
            best = max(best, sum(map(mul, a, b)) / math.sqrt(own * sum(map(mul, b, b)) + 1e-12))
        out.append(best)
    return sorted(out)[len(out) // 2] if out else 0.0


def joined(texts, each):
    """Texts of `each` sentences."""
    return [" ".join(texts[i:i + each]) for i in range(0, len(texts), each)]


def template_texts(templates, each=1, count=4000, seed=99):
    """What the recogniser's bigram is made of: sentences of the templates."""
    rng = random.Random(seed)
    return joined([sentences.fill(rng.choice(templates), rng) for _ in range(count)], each)


def _run(command):
    done = subprocess.run(command, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr.decode()[-3000:]}")


def speak_by_farm(folder, program, model, voice, texts, options, streaming):
    """Has `cosyfarm batch` say the texts into folder/audio; streaming: with Flow's block-causal mask."""
    if os.path.exists(folder + "/ledger.jsonl"):
        raise RuntimeError(f"{folder} holds a batch already: another model's waves would be heard again")
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/manifest.jsonl", "w", encoding="utf-8") as out:
        for i, text in enumerate(texts):
            out.write(json.dumps({"id": f"s{i:03d}", "text": text, "seed": i + 1, **options}) + "\n")
    with open(folder + "/farm.json", "w", encoding="utf-8") as out:
        json.dump({"streaming_mask": streaming}, out)
    _run([program, "batch", "-q", "-m", model, "-v", voice, "--config", folder + "/farm.json", folder + "/manifest.jsonl", "-o",
          folder])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder")
    ap.add_argument("--farm", metavar="PROGRAM", help="cosyfarm: say the sentences first")
    ap.add_argument("-m", "--model")
    ap.add_argument("-v", "--voice", default="arlo", choices=PITCHES)
    ap.add_argument("--streaming", action="store_true", help="Flow's block-causal mask")
    ap.add_argument("--sentences", type=int, default=100)
    ap.add_argument("--each", type=int, default=1, help="sentences of a text")
    ap.add_argument("--shapes", choices=("training", "other"), default="training")
    ap.add_argument("--row", type=json.loads, default={}, help='fields of every row, as {"mode": "instruct"}')
    ap.add_argument("--words", default=os.path.join(os.path.dirname(__file__), "words.txt"))
    ap.add_argument("--no-loop", action="store_true")
    ap.add_argument("--limit", type=float, help="of the bigram error, percent")
    ap.add_argument("--periodicity", type=float, help="least")
    ap.add_argument("--show", type=int, default=5)
    a = ap.parse_args()
    if not shutil.which("pocketsphinx_batch") or not os.path.isdir(MODEL):
        print("pocketsphinx is not installed: apt-get install pocketsphinx pocketsphinx-en-us")
        sys.exit(77)
    templates = sentences.TRAINING if a.shapes == "training" else sentences.OTHER_SHAPES
    if a.farm:
        speak_by_farm(a.folder, a.farm, a.model, a.voice, joined(sentences.test(a.sentences, templates, 1), a.each), a.row, a.streaming)
    with open(a.folder + "/manifest.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    waves = [read_wave(f"{a.folder}/audio/{r['id']}.wav") for r in rows]
    rates = score(waves, [r["text"] for r in rows], sentences.word_list(a.words), template_texts(templates, a.each), a.show, not a.no_loop)
    periodic = sum(periodicity(w, PITCHES[a.voice], rate) for w, rate in waves) / len(waves)
    print(f"{a.voice}, {a.shapes} shapes: {len(rows)} texts of {a.each}, " +
          ", ".join(f"{k} {v:.1f} %" for k, v in rates.items()) + f", periodicity {periodic:.2f}")
    if (a.limit is not None and rates["bigram"] > a.limit) or (a.periodicity is not None and periodic < a.periodicity):
        print(f"beyond the bound: error {a.limit} %, periodicity {a.periodicity}")
        sys.exit(1)


if __name__ == "__main__":
    main()
