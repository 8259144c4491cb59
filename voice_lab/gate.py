"""Error rates stage by stage, by PyTorch: where the chain loses what it loses.

    python3 -m voice_lab.gate OUT [--stages source,hift,flow,chain] [--sentences N] [--voice NAME]

source: the resynthesised speech; hift: its mel through HiFT; flow: its codes through Flow and HiFT; chain: text through
all three, sampled as the farm does.
"""
import argparse
import os

import numpy as np
import torch

from . import evaluate, export, flite, flow, hift, llm, make_data, mel, sentences, vocoder
from .tokenizer import PREFIX


class Gate:
    def __init__(self, out, words, voice, streaming=False):
        self.tokenizer, self.codes, self.hift, self.flow, self.llm = export.models(out, words)
        self.voice = next(v for v in vocoder.VOICES if v.name == voice)
        values, meta = export.voices(self.codes)[voice]
        self.prompt, self.prompt_text = values, self.tokenizer.encode(meta["prompt_text"])[0]
        self.noise = torch.from_numpy(flow.noise_table()).float()
        self.table, self.speaker, self.streaming = hift.uniform_table(480 * 500), flite.Speaker(), streaming

    def _vocode(self, m):
        return hift.speak(self.hift, m.astype(np.float32), self.table)[0]

    def _render(self, codes):
        m = flow.solve(self.flow, torch.tensor(codes).long(), torch.from_numpy(self.prompt["prompt_token"]).long(),
                       torch.from_numpy(self.prompt["prompt_feat"]), torch.from_numpy(self.prompt["embedding"]), self.noise,
                       self.streaming)
        return self._vocode(m.numpy())

    def say(self, stage, text, seed):
        first = make_data.speak(self.speaker, text)
        if stage in ("source", "hift"):
            audio, _ = vocoder.synthesise(*make_data.recorded(self.speaker, text, self.voice, *first), self.voice,
                                          np.random.default_rng(seed))
            return audio if stage == "source" else self._vocode(mel.log_mel(audio))
        if stage == "flow":
            return self._render(self.codes.encode(vocoder.token_features(*first)))
        codes = llm.generate(self.llm, self.prompt_text, self.tokenizer.encode(text)[0],
                             self.prompt["prompt_token"].tolist(), torch.Generator().manual_seed(seed))
        return self._render(codes) if codes else np.zeros(480, np.float32)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--stages", default="source,hift,flow,chain")
    ap.add_argument("--sentences", type=int, default=40)
    ap.add_argument("--shapes", choices=("training", "other"), default="training")
    ap.add_argument("--voice", default="arlo", choices=[v.name for v in vocoder.VOICES])
    ap.add_argument("--streaming", action="store_true", help="Flow's block-causal mask")
    ap.add_argument("--words", default=os.path.join(os.path.dirname(__file__), "words.txt"))
    ap.add_argument("--keep", help="folder for the waves")
    a = ap.parse_args()
    torch.set_num_threads(1)
    gate = Gate(a.out, a.words, a.voice, a.streaming)
    templates = sentences.TRAINING if a.shapes == "training" else sentences.OTHER_SHAPES
    texts, words = sentences.test(a.sentences, templates, 1), sentences.word_list(a.words)
    for stage in a.stages.split(","):
        waves = [(gate.say(stage, t, i + 1).tolist(), 24000) for i, t in enumerate(texts)]
        if a.keep:
            os.makedirs(a.keep, exist_ok=True)
            for i, (w, _) in enumerate(waves[:10]):
                evaluate.write_wave(f"{a.keep}/{stage}-{i}.wav", w)
        rates = evaluate.score(waves, texts, words, evaluate.template_texts(templates), 4)
        periodic = np.mean([evaluate.periodicity(w, gate.voice.pitch_hz) for w, _ in waves[:20]])
        print(f"{a.voice} {stage}: bigram {rates['bigram']:.1f} % loop {rates['loop']:.1f} % periodicity {periodic:.2f}", flush=True)


if __name__ == "__main__":
    main()
