"""Trains HiFT on resynthesised speech: decoder by regression of the wave's spectra, then the f0 predictor.

    python3 -m voice_lab.train_hift OUT --minutes CORE_MINUTES [--rendered DIR]
"""
import argparse

import numpy as np
import torch
import torch.nn.functional as F

from . import hift, make_data, mel, vocoder
from .train import Loop, compile_cache

FRAMES, AHEAD, SKIP = 36, 4, 4           # of a segment; look-ahead behind it; frames in front without loss
BATCH = 8
SHAPED, LATE_WAVEFORM = 0.6, 0.1          # share of the budget after which the complex spectrum weighs less, and how much


def load(folder, limit=None):
    """Utterances: (mel [T, 80], audio i16 [480 T], f0 [T], sine [T])."""
    out = []
    for arrays in make_data.load(folder)[:limit]:
        for voice in vocoder.VOICES:
            for audio, f0 in zip(make_data.split(arrays, voice.name + "_audio"), make_data.split(arrays, voice.name + "_f0")):
                if len(f0) >= FRAMES:
                    out.append((mel.log_mel(audio / 32767.0), audio, f0, hift.sines(f0)[:, 0].astype(np.float32)))
    return out


class Losses:
    """Mel at four resolutions; at three: magnitude, its logarithm, and the complex spectrum with its magnitude's root taken.

    Logarithms between 700 and 3200 Hz count three times: there vowels and the ends of consonants are told apart.
    """

    MELS = ((1920, 80), (1024, 60), (512, 40), (256, 20))       # window, bands

    def __init__(self):
        self.banks = {n: torch.from_numpy(mel.filter_bank(24000, n, bands, 0.0, 12000.0)) for n, bands in self.MELS}
        self.windows = {n: torch.hann_window(n) for n in (2048, 1920, 1024, 512, 256, 128)}
        self.weights = {n: self._weights(b @ torch.linspace(0, 12000, n // 2 + 1) / b.sum(1)) for n, b in self.banks.items()}
        self.bin_weights = {n: self._weights(torch.linspace(0, 12000, n // 2 + 1)) for n in (2048, 512, 128)}

    @staticmethod
    def _weights(hz):
        """[bands, 1] with a mean of one: where vowels and consonants differ counts most."""
        w = 1.0 + 2.0 * torch.sigmoid((hz - 700) / 100) * torch.sigmoid((3200 - hz) / 300)
        return (w / w.mean())[:, None]

    def _stft(self, x, size, hop):
        return torch.stft(x, size, hop, size, self.windows[size], center=False, return_complex=True)

    def _mel(self, x, size):
        s = self._stft(x, size, 240 if size == 1920 else size // 4)
        return torch.log(torch.clamp(self.banks[size] @ torch.sqrt(s.real ** 2 + s.imag ** 2 + 1e-9), min=1e-3))

    def __call__(self, got, want, waveform=1.0):
        """waveform: the weight of the complex spectrum."""
        mels = [((self._mel(got, n) - self._mel(want, n)).abs() * self.weights[n]).mean() for n, _ in self.MELS]
        total, shape = sum(mels), 0.0
        for size in (2048, 512, 128):
            a, b = self._stft(got, size, size // 4), self._stft(want, size, size // 4)
            p, q = torch.sqrt(a.real ** 2 + a.imag ** 2 + 1e-7), torch.sqrt(b.real ** 2 + b.imag ** 2 + 1e-7)
            total = total + 0.25 * (p - q).abs().sum() / q.sum()
            total = total + 0.25 * ((torch.log(p + 1e-3) - torch.log(q + 1e-3)).abs() * self.bin_weights[size]).mean()
            rp, rq = p ** -0.5, q ** -0.5
            real, imaginary = a.real * rp - b.real * rq, a.imag * rp - b.imag * rq
            part = torch.sqrt(real ** 2 + imaginary ** 2 + 1e-9).sum() / (q ** 0.5).sum()
            total, shape = total + waveform * part, shape + part / 3
        return total, {"loss": total.detach(), "mel": mels[0].detach(), "mel_short": mels[2].detach(), "complex": shape.detach()}


def batch_of(data, table, generator, weight):
    """mel [B, 80, FRAMES + AHEAD], source [B, 480 FRAMES + 16], audio [B, 480 FRAMES], counted samples [B, 480 FRAMES].

    An utterance's end has zeros for look-ahead, as at inference; its beginning counts from the first sample.
    """
    mels, sources, waves, counted = [], [], [], []
    for k in torch.randint(len(data), (BATCH,), generator=generator).tolist():
        m, audio, f0, sine = data[k]
        first = int(torch.randint(-SKIP, len(m) - FRAMES + SKIP + 1, (1,), generator=generator))
        first = min(max(first, 0), len(m) - FRAMES)
        n = np.arange(first * 480 - 8, (first + FRAMES) * 480 + 8)
        n = np.abs(n)
        n = np.where(n >= len(audio), 2 * (len(audio) - 1) - n, n)
        j = n // 480
        voiced = f0 > 10
        level = np.where(voiced, 0.003, 0.1 / 3)[j]
        source = np.tanh(weight * ((sine * voiced)[j] + level * table[n]))
        m = m[first:first + FRAMES + AHEAD].T
        mels.append(np.pad(m, ((0, 0), (0, FRAMES + AHEAD - m.shape[1]))))
        sources.append(source.astype(np.float32))
        waves.append(audio[first * 480:(first + FRAMES) * 480] / np.float32(32767))
        counted.append(np.repeat([first == 0, True], [SKIP * 480, (FRAMES - SKIP) * 480]))
    return [torch.from_numpy(np.stack(x).astype(np.float32)) for x in (mels, sources, waves, counted)]


def train_decoder(out, folder, minutes, seed, compiled):
    torch.manual_seed(seed)
    model = hift.Hift()
    with torch.no_grad():
        line = model.m_source["l_linear"]
        line.weight.zero_()
        line.weight[0, 0] = vocoder.SOURCE_WEIGHT
        line.bias.zero_()
    for p in list(model.m_source.parameters()) + list(model.f0_predictor.parameters()):
        p.requires_grad_(False)
    data, table, losses = load(folder), vocoder.noise_table(), Losses()
    print(f"hift: {len(data)} utterances, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    loop = Loop(out, "hift", model, minutes, 1e-3, seed, betas=(0.9, 0.99))
    step = torch.compile(model) if compiled else model
    model.train()
    while loop.going():
        mels, sources, waves, counted = batch_of(data, table, loop.generator, vocoder.SOURCE_WEIGHT)
        waveform = 1.0 if loop.share() < SHAPED else LATE_WAVEFORM
        loss, figures = losses(step(mels, sources) * counted, waves * counted, waveform)
        loop.update(loss, figures)
    loop.finish()
    return model, data


def train_f0(out, model, data, minutes, seed):
    """The predictor alone: L1 in Hz, noise on the mel."""
    predictor = model.f0_predictor
    for p in predictor.parameters():
        p.requires_grad_(True)
    loop = Loop(out, "f0", predictor, minutes, 1e-3, seed)
    predictor.train()
    while loop.going():
        mels, wanted = [], []
        for k in torch.randint(len(data), (16,), generator=loop.generator).tolist():
            m, _, f0, _ = data[k]
            first = int(torch.randint(0, len(m) - FRAMES + 1, (1,), generator=loop.generator))
            m = m[first:first + FRAMES + 3].T
            mels.append(np.pad(m, ((0, 0), (0, FRAMES + 3 - m.shape[1]))))
            wanted.append(np.where(f0 > 10, f0, 0)[first:first + FRAMES])
        x = torch.from_numpy(np.stack(mels))
        x = x + torch.randn(x.shape, generator=loop.generator) * 0.15 * torch.rand((16, 1, 1), generator=loop.generator)
        want = torch.from_numpy(np.stack(wanted).astype(np.float32))
        got, want = predictor(x)[:, 8:], want[:, 8:]
        error = (got - want).abs()
        wrong = ((got.detach() > 10) != (want > 10)).float().mean()
        loop.update(error.mean(), {"hz": error.detach().mean(), "voicing": wrong})
    loop.finish()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--rendered", help="default: OUT/data/rendered")
    ap.add_argument("--minutes", type=float, required=True)
    ap.add_argument("--f0-minutes", type=float, default=4.0)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--compile", action="store_true", help="torch.compile (needs g++): faster from some minutes on")
    a = ap.parse_args()
    torch.set_num_threads(1)
    with compile_cache(a.out):
        model, data = train_decoder(a.out, a.rendered or a.out + "/data/rendered", a.minutes, a.seed, a.compile)
        train_f0(a.out, model, data, a.f0_minutes, a.seed)


if __name__ == "__main__":
    main()
