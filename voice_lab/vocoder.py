"""Analysis of espeak's speech and its resynthesis in step with HiFT's source.

HiFT's source holds one value a frame, 0.1 sin(phase), and a fixed table of uniform noise (spec hift 5). What is
synthesised here follows exactly that: a pulse where the source's phase passes a whole turn, and noise that is the
table's own. So the vocoder's target is a function of its input, and every harmonic can be learned by regression.

The pitch is one constant per voice, 50 (k + 1/4) Hz: the phase advances by a quarter turn a frame (and whole turns), so
this frame's value and the last one are sine and cosine.
"""
from functools import lru_cache

import numpy as np

from . import espeak

RATE_HZ, FRAME, TOKEN = 24000, 480, 960
_SIZE, _BINS = 1024, 513                  # transforms of analysis (22050 Hz) and synthesis (24000 Hz)
_WINDOW = int(3 * espeak.PITCH_PERIOD)
_BANDS_HZ = np.array([0, 900, 1800, 3000, 5000, 11025])
_BAND_CENTRES_HZ = np.array([450, 1350, 2400, 4000, 8000])
_FLOOR = 1e-9                             # of the power per sample
SOURCE_WEIGHT = 2.0                       # of m_source.l_linear: the first sine alone


class Voice:
    def __init__(self, name, pitch_hz, warp, tilt_db):
        self.name, self.pitch_hz, self.warp, self.tilt_db = name, pitch_hz, warp, tilt_db


VOICES = (Voice("arlo", 112.5, 1.0, 0.0), Voice("mira", 162.5, 1.08, 1.0))


def _lifter():
    """Cepstral weights that smooth over one harmonic and undo the smoothing's loss (Morise, CheapTrick, 2015)."""
    quefrency = np.minimum(np.arange(_SIZE), _SIZE - np.arange(_SIZE)) / espeak.PITCH_PERIOD
    return np.sinc(quefrency) * (1.3 - 0.3 * np.cos(2 * np.pi * quefrency))


def analyse(wave, centres):
    """wave [samples, 22050 Hz], centres [F] (samples, fractional): log amplitude [F, 513] and periodicity [F, 5]."""
    half = _WINDOW // 2
    padded = np.pad(wave, (half, half + 1))
    start = np.clip(np.rint(centres).astype(int), 0, len(wave))
    window = np.hanning(_WINDOW + 1)[:-1]
    window /= np.sqrt((window ** 2).sum())
    frames = padded[start[:, None] + np.arange(_WINDOW)]
    frames = (frames - frames.mean(1, keepdims=True)) * window
    power = np.abs(np.fft.rfft(frames, _SIZE)) ** 2 + _FLOOR
    lag = np.cos(2 * np.pi * np.arange(_BINS) * espeak.PITCH_PERIOD / _SIZE)
    period = int(espeak.PITCH_PERIOD)
    own = (window[period:] * window[:-period]).sum()
    edges = np.rint(_BANDS_HZ * _SIZE / espeak.RATE_HZ).astype(int)
    periodicity = np.stack([(power[:, a:b] * lag[a:b]).sum(1) / power[:, a:b].sum(1) for a, b in zip(edges, edges[1:])], 1)
    width = espeak.RATE_HZ / espeak.PITCH_PERIOD * 2 / 3 * _SIZE / espeak.RATE_HZ      # bins
    cumulative = np.concatenate([np.zeros((len(power), 1)), np.cumsum(np.concatenate([power[:, 8:0:-1], power, power[:, -2:-10:-1]], 1), 1)], 1)
    at = np.arange(_BINS) + 8 + 0.5

    def up_to(x):
        low = np.floor(x).astype(int)
        return cumulative[:, low] + (x - low) * (cumulative[:, low + 1] - cumulative[:, low])

    smooth = (up_to(at + width / 2) - up_to(at - width / 2)) / width
    cepstrum = np.fft.irfft(np.log(np.maximum(smooth, _FLOOR)), _SIZE) * _lifter()
    return (np.fft.rfft(cepstrum).real / 2).astype(np.float32), (periodicity / own).astype(np.float32)


def is_voiced(periodicity, log_amplitude):
    """[F, 5], [F, 513] -> [F]: harmonics below 900 Hz, and not silence."""
    low = log_amplitude[:, 3:42].max(1)
    return (periodicity[:, 0] > 0.55) & (low > np.log(3e-3))


def word_grid(words, samples):
    """Knots of the map from output tokens to source samples: every word begins where a token begins.

    words: [(offset, sample)] with the first word's onset as the start; samples: where speech ends. Returns token
    numbers and source samples, both ascending.
    """
    token = espeak.RATE_HZ * TOKEN / RATE_HZ
    tokens, places = [0], [words[0][1]]
    for sample in [w[1] for w in words[1:]] + [samples]:
        if sample - places[-1] < token / 2:
            continue
        tokens.append(tokens[-1] + max(1, round((sample - places[-1]) / token)))
        places.append(sample)
    return np.array(tokens), np.array(places, float)


def speech_end(wave, last_word):
    """The sample after which only silence follows, plus 80 ms."""
    loud = np.nonzero(np.abs(wave) > 0.01)[0]
    end = max(loud[-1] if len(loud) else 0, last_word + espeak.RATE_HZ // 10)
    return min(len(wave), end + espeak.RATE_HZ * 80 // 1000)


@lru_cache(maxsize=1)
def noise_table(samples=960000):
    """U[n, 0] of spec hift 5.3: the first harmonic's column of the fixed noise."""
    random = np.random.RandomState(0)
    random.randint(0, 2 ** 32, 5052970, dtype=np.uint64)
    return ((random.randint(0, 2 ** 32, samples * 9, dtype=np.uint64) & 0xFFFFFF).reshape(-1, 9)[:, 0] / 2.0 ** 24).astype(np.float32)


def phase(f0):
    """Turns at the end of every frame, as the source counts them."""
    return np.cumsum(f0.astype(np.float64) / 50)


def _minimum_phase(log_amplitude):
    """[F, 513] -> spectra [F, 513] of the minimum-phase response."""
    cepstrum = np.fft.irfft(log_amplitude, _SIZE)
    cepstrum[:, 1:_SIZE // 2] *= 2
    cepstrum[:, _SIZE // 2 + 1:] = 0
    return np.exp(np.fft.rfft(cepstrum))


def _to_output(log_amplitude, voice):
    """The envelope on 24000 Hz, its formants moved by the voice's warp."""
    out_hz = np.arange(_BINS) * RATE_HZ / _SIZE
    at = np.minimum(out_hz / voice.warp, espeak.RATE_HZ / 2 - 30) * _SIZE / espeak.RATE_HZ
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)
    out = log_amplitude[:, low] * (1 - part) + log_amplitude[:, np.minimum(low + 1, _BINS - 1)] * part
    tilt = voice.tilt_db / 8.686 * np.clip(np.log2(np.maximum(out_hz, 250) / 1000), -2, 2)
    above = np.where(out_hz > espeak.RATE_HZ / 2 * min(voice.warp, 1.05), -2.0, 0.0)
    return out + (tilt + above).astype(np.float32)


def _share(periodicity):
    """[F, 5] -> the harmonic share of the power per output bin [F, 513]."""
    share = np.clip((periodicity - 0.15) / 0.7, 0.0, 1.0)
    out_hz = np.arange(_BINS) * RATE_HZ / _SIZE
    at = np.interp(out_hz, _BAND_CENTRES_HZ, np.arange(5))
    low = np.minimum(np.floor(at).astype(int), 3)
    part = at - low
    return share[:, low] * (1 - part) + share[:, low + 1] * part


def synthesise(wave, knots, voice, rng):
    """Returns audio [480 F] and f0 [F]. knots: (tokens, samples) of word_grid."""
    frames = int(knots[0][-1]) * 2
    jitter = 1 + rng.uniform(-0.005, 0.005)

    def place(output_samples):
        return np.interp(np.asarray(output_samples) / TOKEN, knots[0], knots[1])

    log_amplitude, periodicity = analyse(wave, place(np.arange(frames) * FRAME + FRAME / 2))
    voiced = is_voiced(periodicity, log_amplitude)
    f0 = np.where(voiced, voice.pitch_hz * jitter, rng.uniform(0, 1.0, frames)).astype(np.float32)
    turns = np.concatenate([[0.0], phase(f0)])
    audio = np.zeros(frames * FRAME + 2 * _SIZE)
    pulses = []
    for j in np.nonzero(voiced)[0]:
        whole = np.arange(np.ceil(turns[j]), turns[j + 1])
        pulses.append(FRAME * (j + (whole - turns[j]) / (turns[j + 1] - turns[j])))
    pulses = np.concatenate(pulses) if pulses else np.zeros(0)
    hop = 120
    centres = np.arange(0, frames * FRAME, hop)
    log_amplitude, periodicity = analyse(wave, place(np.concatenate([pulses, centres])))
    log_amplitude = _to_output(log_amplitude, voice)
    share = _share(periodicity)
    k = len(pulses)
    if k:
        period = RATE_HZ / (voice.pitch_hz * jitter)
        spectra = _minimum_phase(log_amplitude[:k] + 0.5 * np.log(share[:k] + 1e-6) + 0.5 * np.log(period))
        whole = np.floor(pulses).astype(int)
        spectra *= np.exp(-2j * np.pi * np.arange(_BINS) / _SIZE * (pulses - whole)[:, None])
        for n, response in zip(whole, np.fft.irfft(spectra, _SIZE)):
            audio[n:n + _SIZE] += response
    frame_of = np.minimum(centres // FRAME, frames - 1)
    rest = np.where(voiced[frame_of][:, None], 1 - share[k:], 1.0)
    spectra = _minimum_phase(log_amplitude[k:] + 0.5 * np.log(rest + 1e-6))
    noise = (noise_table()[:frames * FRAME + hop] - 0.5) * np.sqrt(12.0)
    padded = np.concatenate([np.zeros(hop), noise])
    window = np.hanning(2 * hop + 1)[:-1]
    pieces = padded[centres[:, None] + np.arange(2 * hop)] * window
    for n, response in zip(centres, np.fft.irfft(np.fft.rfft(pieces, _SIZE) * spectra, _SIZE)):
        audio[max(n - hop, 0):n - hop + _SIZE] += response[max(hop - n, 0):]
    return audio[:frames * FRAME].astype(np.float32), f0


def token_features(wave, knots):
    """What the speech codes are made of: [tokens, 2, 81], log mel of the envelope (free of pitch) and voicing."""
    tokens = int(knots[0][-1])
    at = (np.arange(tokens * 4) + 0.5) / 4
    log_amplitude, periodicity = analyse(wave, np.interp(at, knots[0], knots[1]))
    power = np.exp(2 * _to_output(log_amplitude, VOICES[0])).reshape(tokens * 2, 2, _BINS).mean(1)
    mel = np.log(np.maximum(power @ _mel_of_bins().T, 1e-9)) / 2
    voiced = is_voiced(periodicity, log_amplitude).reshape(tokens * 2, 2).mean(1)
    return np.concatenate([mel, voiced[:, None]], 1).reshape(tokens, 2, 81).astype(np.float32)


@lru_cache(maxsize=1)
def _mel_of_bins():
    from .mel import filter_bank
    return filter_bank(RATE_HZ, _SIZE, 80, 0.0, 12000.0)
