"""Makes the training data: resynthesised speech in both voices, and code features of many more sentences.

    python3 -m voice_lab.make_data OUT [--rendered N] [--features N] [--seed S]

OUT/rendered/NNNN.npz   of `per_file` sentences: texts; per sentence and voice audio (i16), f0; the code features
OUT/features/NNNN.npz   texts and code features alone (for the LLM)
Both are resumable: a file that is there is not made again.
"""
import argparse
import os

import numpy as np

from . import flite, sentences, vocoder

PER_FILE = 50
SOURCE = "flite " + " ".join(v.source for v in vocoder.VOICES) + ", one noise for each text\n"


def claim(out):
    """OUT/source.txt says what the data were made from: two sources in one folder would be one training's."""
    path = out + "/source.txt"
    os.makedirs(out, exist_ok=True)
    if not any(os.path.exists(f"{out}/{name}") for name in ("source.txt", "rendered", "features")):
        with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as text:
            text.write(SOURCE)
        os.replace(f"{path}.{os.getpid()}", path)
    found = open(path, encoding="utf-8").read() if os.path.exists(path) else "no source.txt, of an older version"
    if found != SOURCE:
        raise SystemExit(f"{out}: data of another source, {found.strip()!r}, expected {SOURCE.strip()!r}: take another OUT")


def _save(path, **arrays):
    np.savez(path + ".part.npz", **arrays)
    os.replace(path + ".part.npz", path)


def _ragged(name, items):
    return {name: np.concatenate(items), name + "_lengths": np.array([len(x) for x in items], np.int32)}


def split(arrays, name):
    """The list that _ragged stored."""
    return np.split(arrays[name], np.cumsum(arrays[name + "_lengths"])[:-1])


def speak(speaker, text):
    """The first voice's recording, which sets the time and the codes of all, and the knots of its word grid."""
    speech = speaker.say(text, vocoder.VOICES[0].source)
    return speech, vocoder.word_grid(speech)


def recorded(speaker, text, voice, speech, knots):
    """A voice's recording and its knots, in the time of the first voice's recording, which is given."""
    if voice.source == vocoder.VOICES[0].source:
        return speech, knots
    other = speaker.say(text, voice.source)
    return other, vocoder.laid_over(knots, speech, other)


def render(out, count, words, seed, log=print):
    speaker = flite.Speaker()
    texts = sentences.training(count, words, seed, 0.3)
    os.makedirs(out + "/rendered", exist_ok=True)
    for first in range(0, count, PER_FILE):
        path = f"{out}/rendered/{first // PER_FILE:04d}.npz"
        if os.path.exists(path):
            continue
        rng = np.random.default_rng(seed * 100003 + first)
        chosen, arrays, features = texts[first:first + PER_FILE], {}, []
        sound = {v.name: ([], []) for v in vocoder.VOICES}
        for text in chosen:
            spoken = speak(speaker, text)
            for voice in vocoder.VOICES:
                audio, f0 = vocoder.synthesise(*recorded(speaker, text, voice, *spoken), voice, rng)
                sound[voice.name][0].append(np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16))
                sound[voice.name][1].append(f0)
            features.append(vocoder.token_features(*spoken))
        for name, (audio, f0) in sound.items():
            arrays.update(_ragged(name + "_audio", audio))
            arrays.update(_ragged(name + "_f0", f0))
        arrays.update(_ragged("mel", [f.astype(np.float16) for f in features]))
        _save(path, texts=np.array(chosen), **arrays)
        log(f"rendered {first + len(chosen)} of {count}", flush=True)


def word_spans(words, knots):
    """Which characters each token stands for: [tokens] character offsets of the word that begins there or before."""
    tokens = int(knots[0][-1])
    starts = np.interp([sample for _, sample in words], knots[1], knots[0])
    out = np.zeros(tokens, np.int16)
    for (offset, _), start in zip(words, starts):
        out[int(round(start)):] = offset
    return out


def features(out, count, words, seed, log=print):
    speaker = flite.Speaker()
    texts = sentences.training(count, words, seed + 1)
    os.makedirs(out + "/features", exist_ok=True)
    per_file = 20 * PER_FILE
    for first in range(0, count, per_file):
        path = f"{out}/features/{first // per_file:04d}.npz"
        if os.path.exists(path):
            continue
        chosen, mels, spans = texts[first:first + per_file], [], []
        for text in chosen:
            speech, knots = speak(speaker, text)
            mels.append(vocoder.token_features(speech, knots).astype(np.float16))
            spans.append(word_spans(speech.words, knots))
        _save(path, texts=np.array(chosen), **_ragged("mel", mels), **_ragged("span", spans))
        log(f"features {first + len(chosen)} of {count}", flush=True)


def load(folder):
    """Every .npz of a folder, in order, as dictionaries."""
    out = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".npz") and ".part" not in name:
            with np.load(f"{folder}/{name}") as f:
                out.append({k: f[k] for k in f.files})
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--rendered", type=int, default=0)
    ap.add_argument("--features", type=int, default=0)
    ap.add_argument("--words", default=os.path.join(os.path.dirname(__file__), "words.txt"))
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    words = sentences.word_list(a.words)
    claim(a.out)
    render(a.out, a.rendered, words, a.seed)
    features(a.out, a.features, words, a.seed)


if __name__ == "__main__":
    main()
