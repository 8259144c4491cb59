"""Trains the LLM: text to speech codes, with prompts as at inference, one attention head taught where it is in the text.

    python3 -m voice_lab.train_llm OUT --minutes CORE_MINUTES

Words' places in the speech are known from flite, so in GUIDED layers the first head is asked to look at the word that
is being spoken. It is a loss of training alone: the model stays an ordinary one. A few input codes are replaced by
others, so that one wrongly drawn code does not lose the place.
"""
import argparse
import copy
import os

import numpy as np
import torch
import torch.nn.functional as F

from . import llm, make_data, sentences, tokens
from .tokenizer import PREFIX, Tokenizer
from .train import Loop, compile_cache

GUIDED, GUIDE_WEIGHT, WRONG_INPUT = (1, 2), 0.2, 0.04
PROMPTS = {"arlo": "Hello, my name is David.", "mira": "Hello, my name is Anna."}
BATCH = 24
SENTENCES, CODES_MAX = (0.5, 0.3, 0.15, 0.05), 200     # shares of texts of 1, 2, 3, 4 sentences; of such a text


class Utterance:
    """text ids, and the word (index) each belongs to; codes, and the word each belongs to."""

    def __init__(self, text, codes, spans, tokenizer):
        self.text, self.codes = str(text), codes
        ids, places = tokenizer.encode(self.text)
        begins = [i for i, c in enumerate(self.text) if c not in " ,.?!" and (i == 0 or self.text[i - 1] == " ")]
        self.ids = ids
        self.id_word = np.array([max(np.searchsorted(begins, p + (self.text[p] == " "), "right") - 1, 0) for p in places])
        self.code_word = np.maximum(np.searchsorted(begins, spans, "right") - 1, 0)


    @staticmethod
    def joined(parts, space, codes):
        """Sentences as one text, the token `space` between them."""
        out = copy.copy(parts[0])
        for p in parts[1:]:
            shift = out.id_word.max() + 1
            out.text += " " + p.text
            out.ids = [*out.ids, space, *p.ids]
            out.id_word = np.concatenate([out.id_word, [shift], p.id_word + shift])
            out.codes = np.concatenate([out.codes, p.codes])
            out.code_word = np.concatenate([out.code_word, p.code_word + shift])
        if len(parts) > 1:
            out.codes = codes.spread(codes.cluster_of[out.codes])
        return out


def load(out, tokenizer, codes):
    """Utterances of OUT/data/features; their codes are kept beside it."""
    cached = out + "/data/features.codes.npz"
    files = make_data.load(out + "/data/features")
    lengths = sum(len(f["texts"]) for f in files)
    stored = dict(np.load(cached)) if os.path.exists(cached) else {}
    if stored.get("texts", np.zeros(0)).shape[0] != lengths or int(stored["count"]) != codes.count:
        all_codes = [codes.encode(m) for f in files for m in make_data.split(f, "mel")]
        spans = [s for f in files for s in make_data.split(f, "span")]
        stored = {"texts": np.concatenate([f["texts"] for f in files]), "codes": np.concatenate(all_codes),
                  "spans": np.concatenate(spans), "lengths": np.array([len(c) for c in all_codes]), "count": codes.count}
        np.savez(cached, **stored)
    cut = np.cumsum(stored["lengths"])[:-1]
    return [Utterance(t, c, s, tokenizer)
            for t, c, s in zip(stored["texts"], np.split(stored["codes"], cut), np.split(stored["spans"], cut))]


def own_text(data, space, codes, rng):
    """One sentence, or some: an end of speech must follow the text's last word, not its first full stop."""
    parts = [data[rng.integers(len(data))] for _ in range(rng.choice(4, p=SENTENCES) + 1)]
    while len(parts) > 1 and sum(len(p.codes) for p in parts) > CODES_MAX:
        parts.pop()
    return Utterance.joined(parts, space, codes)


def example(data, prompts, prefix, space, codes, rng):
    """One training sequence: inputs [L], targets [L] (-100: none) and the word asked for [L] (-1: none); id words [L]."""
    own, kind, n = own_text(data, space, codes, rng), rng.random(), codes.count
    prompt = None
    if kind < 0.3:
        prompt = prompts[rng.integers(len(prompts))]
    elif kind < 0.65:
        prompt = data[rng.integers(len(data))]
        if len(prompt.codes) > 60:
            prompt = None
    before = list(prefix) + (list(prompt.ids) if prompt else [])
    ids = llm.sequence(n, before, own.ids, [])
    words = np.full(len(ids), -2)
    shift = prompt.id_word.max() + 1 if prompt else 0
    if prompt:
        words[1 + len(prefix):1 + len(before)] = prompt.id_word
    words[1 + len(before):1 + len(before) + len(own.ids)] = own.id_word + shift
    codes = np.concatenate([prompt.codes, own.codes]) if prompt else own.codes
    code_words = np.concatenate([prompt.code_word, own.code_word + shift]) if prompt else own.code_word
    fed = np.where(rng.random(len(codes)) < WRONG_INPUT, rng.integers(0, n, len(codes)), codes)
    start = len(ids) - 1
    inputs = np.concatenate([ids, -1 - fed])
    targets = np.concatenate([np.full(start, -100), codes, [n + llm.EOS]])
    if prompt is not None and kind < 0.3:
        targets[start:start + len(prompt.codes)] = -100
    asked = np.concatenate([np.full(start, -1), code_words, [-1]])
    return inputs, targets, asked, np.concatenate([words, np.full(len(codes), -2)])


def batch_of(make, rng, pool):
    """Examples of like lengths: `pool` are made, sorted, and one run of BATCH of them is taken at a time."""
    if len(pool) < BATCH:
        made = sorted((make() for _ in range(8 * BATCH)), key=lambda e: len(e[0]))
        runs = [made[i:i + BATCH] for i in range(0, len(made), BATCH)]
        rng.shuffle(runs)
        pool.extend(e for run in runs for e in run)
    chosen = [pool.pop() for _ in range(BATCH)]
    length = max(len(e[0]) for e in chosen)

    def padded(k, value):
        return torch.from_numpy(np.stack([np.pad(e[k], (0, length - len(e[k])), constant_values=value) for e in chosen]))

    return padded(0, 0).long(), padded(1, -100).long(), padded(2, -1), padded(3, -2)


def loss_of(model, hidden_states, inputs, targets, asked, words):
    """hidden_states: the model's, compiled or not."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden, attention = hidden_states(model.embed(inputs))
        place = (targets >= 0).nonzero(as_tuple=True)
        logits = model.llm_decoder(hidden[place])
    logits, wanted = logits.float(), targets[place]
    entropy = F.cross_entropy(logits, wanted)
    rows = (asked >= 0).nonzero(as_tuple=True)
    hit = words[rows[0]] == asked[rows][:, None]
    mass = [torch.where(hit, attention[k][rows[0], 0, rows[1]], 0.0).sum(-1) for k in GUIDED]
    guide = sum(-torch.log(m + 1e-3).mean() for m in mass) / len(mass)
    right = (logits.argmax(-1) == wanted).float().mean()
    figures = {"entropy": entropy.detach(), "accuracy": right, "look": sum(m.detach().mean() for m in mass) / len(mass)}
    return entropy + GUIDE_WEIGHT * guide, figures


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--minutes", type=float, required=True)
    ap.add_argument("--words", default=os.path.join(os.path.dirname(__file__), "words.txt"))
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--compile", action="store_true", help="torch.compile (needs g++): faster from some minutes on")
    a = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    with compile_cache(a.out):
        train(a)


def train(a):
    tokenizer, codes = Tokenizer.of_words(sentences.word_list(a.words)), tokens.Codes.load(a.out + "/codes.npz")
    data = load(a.out, tokenizer, codes)
    prompts = prompt_utterances(tokenizer, codes)
    prefix, space = tokenizer.encode(PREFIX)[0], tokenizer.encode(" ")[0][0]
    model = llm.Llm(codes.count, tokenizer.rows)
    print(f"llm: {len(data)} utterances, {codes.count} codes, {tokenizer.rows} text rows, "
          f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    loop = Loop(a.out, "llm", model, a.minutes, 1e-3, a.seed, betas=(0.9, 0.98), warmup=300)
    hidden_states = torch.compile(model.hidden_states, dynamic=True) if a.compile else model.hidden_states
    rng, pool = np.random.default_rng(a.seed * 1000003 + loop.step), []
    model.train()
    while loop.going():
        batch = batch_of(lambda: example(data, prompts, prefix, space, codes, rng), rng, pool)
        loss, figures = loss_of(model, hidden_states, *batch)
        loop.update(loss, figures)
    loop.finish()


def prompt_utterances(tokenizer, codes):
    """The voices' prompts as they will stand in the voice files."""
    from . import flite, vocoder
    speaker, out = flite.Speaker(), []
    for text in PROMPTS.values():
        speech, knots = make_data.speak(speaker, text)
        out.append(Utterance(text, codes.encode(vocoder.token_features(speech, knots)),
                             make_data.word_spans(speech.words, knots), tokenizer))
    return out


if __name__ == "__main__":
    main()
