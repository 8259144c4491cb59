"""A byte-level BPE of the word list in CosyVoice3's files (spec text 1): one token a word, spaces are tokens of their own.

Merges are learned by counting pairs until every wanted word is one token; no merge crosses a space, so "bear" is the
same token at the start of a text and inside. Words outside the list fall into pieces, in the end into bytes.
"""
import json
import os
from collections import Counter

import regex

PREFIX = "You are a helpful assistant.<|endofprompt|>"
BASE_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL_COUNT = 281                       # with the table of spec text 1.5
END_OF_PROMPT = 3                         # its place in that table
_PIECES = regex.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                        r"\s+(?!\S)|\s+")


def alphabet():
    """GPT-2's map of bytes to printable characters."""
    kept = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    out, extra = {b: chr(b) for b in kept}, 0
    for b in range(256):
        if b not in out:
            out[b] = chr(0x100 + extra)
            extra += 1
    return out


def learn(words):
    """The merges, in order, that make every word one token."""
    state = {w: list(w) for w in sorted(words)}
    merges = []
    while True:
        pairs = Counter(pair for parts in state.values() for pair in zip(parts, parts[1:]))
        if not pairs:
            return merges
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for w, parts in state.items():
            state[w] = _merged(parts, best)


def _merged(parts, pair):
    out, i = [], 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


class Tokenizer:
    def __init__(self, merges):
        self.merges = merges
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.bytes = alphabet()
        symbols = [self.bytes[b] for b in range(256)]
        for a, b in merges:
            if a + b not in symbols:
                symbols.append(a + b)
        self.ids = {s: i for i, s in enumerate(symbols)}
        self.end_of_prompt = len(symbols) + END_OF_PROMPT
        self.rows = (len(symbols) + SPECIAL_COUNT + 63) // 64 * 64

    @staticmethod
    def of_words(words, capitals=True):
        wanted = set(words) | set("You are a helpful assistant".split())
        if capitals:
            wanted |= {w[0].upper() + w[1:] for w in words}
        return Tokenizer(learn(wanted))

    def piece(self, text):
        parts = [self.bytes[b] for b in text.encode()]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda p: self.rank.get(p, 1 << 30))
            if best not in self.rank:
                break
            parts = _merged(parts, best)
        return parts

    def encode(self, text):
        """Ids, and the character each begins at. <|endofprompt|> is the one special token that is known here."""
        ids, places, at = [], [], 0
        for k, run in enumerate(text.split("<|endofprompt|>")):
            if k:
                ids.append(self.end_of_prompt)
                places.append(at)
                at += len("<|endofprompt|>")
            for m in _PIECES.finditer(run):
                offset = m.start()
                for part in self.piece(m.group()):
                    ids.append(self.ids[part])
                    places.append(at + offset)
                    offset += len(part)                      # exact for ASCII, which is what is trained on
            at += len(run)
        return ids, places

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        with open(folder + "/vocab.json", "w", encoding="utf-8") as out:
            json.dump(self.ids, out, ensure_ascii=False)
        with open(folder + "/merges.txt", "w", encoding="utf-8") as out:
            out.writelines(f"{a} {b}\n" for a, b in self.merges)
        n = len(self.ids)
        added = {str(n + i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                              "special": True} for i, t in enumerate(BASE_SPECIAL)}
        with open(folder + "/tokenizer_config.json", "w", encoding="utf-8") as out:
            json.dump({"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 32768, "add_prefix_space": False,
                       "errors": "replace", "added_tokens_decoder": added,
                       "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
                       "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": None}, out, indent=1)
