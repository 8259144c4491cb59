"""Analysis of the recorded voices and their resynthesis in step with HiFT's source.

HiFT's source holds one value a frame, 0.1 sin(phase), and a fixed table of uniform noise (spec hift 5). What is
synthesised here follows exactly that: a pulse where the source's phase passes a whole turn, and noise that is the
table's own. So the vocoder's target is a function of its input, and every harmonic can be learned by regression.

The pitch is one constant per voice, 50 (k + 1/4) Hz: the phase advances by a quarter turn a frame (and whole turns), so
this frame's value and the last one are sine and cosine.
"""
from functools import lru_cache

import numpy as np

from . import flite

RATE_HZ, FRAME, TOKEN = 24000, 480, 960
_SIZE, _BINS = 1024, 513                  # transforms of analysis (16000 Hz) and synthesis (24000 Hz)
_PERIODS = (256, 984)                     # shortest and longest, in quarters of a sample: 250 and 65 Hz
_HALF = 372                               # of the longest window, three periods
_BANDS_HZ = np.array([0, 900, 1800, 3000, 5000, 8000])
_BAND_CENTRES_HZ = np.array([450, 1350, 2400, 4000, 6500])
_FLOOR = 1e-9                             # of the power per sample
SOURCE_WEIGHT = 2.0                       # of m_source.l_linear: the first sine alone


class Voice:
    def __init__(self, name, pitch_hz, source):
        self.name, self.pitch_hz, self.source = name, pitch_hz, source


VOICES = (Voice("arlo", 112.5, "rms"), Voice("mira", 162.5, "slt"))


@lru_cache(maxsize=1)
def _by_period():
    """For each period in quarters of a sample, from the shortest: the window of three periods [745], the cosine of one
    period's lag [513] and CheapTrick's lifter [513] (Morise, 2015: smooths over one harmonic, undoes the smoothing's loss)."""
    period = np.arange(_PERIODS[0], _PERIODS[1] + 1)[:, None] / 4
    at = np.arange(-_HALF, _HALF + 1)
    window = np.where(np.abs(at) < 1.5 * period, 0.5 + 0.5 * np.cos(2 * np.pi * at / (3 * period)), 0.0)
    window /= np.sqrt((window ** 2).sum(1, keepdims=True))
    quefrency = np.arange(_BINS) / period
    tables = (window, np.cos(2 * np.pi / _SIZE * np.arange(_BINS) * period),
              np.sinc(quefrency) * (1.3 - 0.3 * np.cos(2 * np.pi * quefrency)))
    hann = np.hanning(3001)
    at_lag = (hann[1000:] * hann[:-1000]).sum() / (hann ** 2).sum()
    return tuple(t.astype(np.float32) for t in tables), at_lag


def _smoothed(power, width):
    """[F, 513] -> the mean over width [F, 1] bins about each bin."""
    mirrored = np.concatenate([power[:, 8:0:-1], power, power[:, -2:-10:-1]], 1)
    cumulative = np.concatenate([np.zeros((len(power), 1)), np.cumsum(mirrored, 1, dtype=np.float64)], 1)
    below = np.arange(_BINS) + 8.5

    def up_to(x):
        low = x.astype(np.int64)
        value = np.take_along_axis(cumulative, low, 1)
        return value + (x - low) * (np.take_along_axis(cumulative, low + 1, 1) - value)

    return (up_to(below + width / 2) - up_to(below - width / 2)) / width


def analyse(speech, centres):
    """centres [F] (samples, fractional): log amplitude of the envelope [F, 513] and periodicity [F, 5]."""
    start = np.clip(np.rint(centres).astype(int), 0, len(speech.wave))
    pitch = speech.pitch_hz[np.minimum(start // flite.FRAME, len(speech.pitch_hz) - 1)]
    pitch = np.where(pitch > 0, pitch, np.median(speech.pitch_hz[speech.pitch_hz > 0]))
    quarters = np.clip(np.rint(4 * flite.RATE_HZ / pitch).astype(int), *_PERIODS)
    tables, at_lag = _by_period()
    window, lag, lifter = (t[quarters - _PERIODS[0]] for t in tables)
    frames = np.pad(speech.wave, (_HALF, _HALF + 1))[start[:, None] + np.arange(2 * _HALF + 1)]
    frames = (frames - (frames * window).sum(1, keepdims=True) / window.sum(1, keepdims=True)) * window
    power = np.abs(np.fft.rfft(frames, _SIZE)).astype(np.float32) ** 2 + np.float32(_FLOOR)
    edges = np.rint(_BANDS_HZ * _SIZE / flite.RATE_HZ).astype(int)
    lag *= power
    periodicity = np.stack([lag[:, a:b].sum(1) / power[:, a:b].sum(1) for a, b in zip(edges, edges[1:])], 1)
    smooth = _smoothed(power, 2 / 3 * 4 * _SIZE / quarters[:, None])
    cepstrum = np.fft.irfft(np.log(np.maximum(smooth, _FLOOR)), _SIZE)[:, :_BINS] * lifter
    return (np.fft.hfft(cepstrum)[:, :_BINS] / 2).astype(np.float32), (periodicity / at_lag).astype(np.float32)


def is_voiced(periodicity, log_amplitude):
    """[F, 5], [F, 513] -> [F]: harmonics below 900 Hz, and not silence."""
    low = log_amplitude[:, 4:58].max(1)
    return (periodicity[:, 0] > 0.55) & (low > np.log(3e-3))


def word_grid(speech):
    """Knots of the map from output tokens to source samples: every word begins where a token begins.

    Speech is kept from the first word's onset to 80 ms behind its last sound. Returns token numbers and source samples,
    both ascending.
    """
    token = flite.RATE_HZ * TOKEN / RATE_HZ
    tokens, places = [0], [speech.words[0][1]]
    for sample in [w[1] for w in speech.words[1:]] + [_last(speech)]:
        if sample - places[-1] < token / 2:
            continue
        tokens.append(tokens[-1] + max(1, round((sample - places[-1]) / token)))
        places.append(sample)
    return np.array(tokens), np.array(places, float)


def _last(speech):
    return min(len(speech.wave), speech.end + flite.RATE_HZ * 80 // 1000)


def laid_over(knots, speech, other):
    """The knots by which another speaker's recording of the text keeps time with the first, phone by phone."""
    if [name for name, _ in speech.phones] != [name for name, _ in other.phones]:
        raise RuntimeError("two recordings of a text have different phones")
    tokens, places = [0.0], [float(other.words[0][1])]
    for (_, sample), (_, own) in zip(speech.phones, other.phones):
        at = float(np.interp(sample, knots[1], knots[0]))
        if tokens[-1] < at < knots[0][-1] and own > places[-1]:
            tokens.append(at)
            places.append(float(own))
    return np.array(tokens + [float(knots[0][-1])]), np.array(places + [max(places[-1] + 1, float(_last(other)))])


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


def _to_output(log_amplitude):
    """The envelope on 24000 Hz; above the recording's band it falls by 4 dB a kHz."""
    out_hz = np.arange(_BINS) * RATE_HZ / _SIZE
    at = np.minimum(out_hz, flite.RATE_HZ / 2 - 30) * _SIZE / flite.RATE_HZ
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)
    out = log_amplitude[:, low] * (1 - part) + log_amplitude[:, np.minimum(low + 1, _BINS - 1)] * part
    return out - (np.maximum(out_hz - flite.RATE_HZ / 2, 0) * 4 / 1000 / 8.686).astype(np.float32)


def _share(periodicity):
    """[F, 5] -> the harmonic share of the power per output bin [F, 513]."""
    share = np.clip((periodicity - 0.15) / 0.7, 0.0, 1.0)
    out_hz = np.arange(_BINS) * RATE_HZ / _SIZE
    at = np.interp(out_hz, _BAND_CENTRES_HZ, np.arange(5))
    low = np.minimum(np.floor(at).astype(int), 3)
    part = at - low
    return share[:, low] * (1 - part) + share[:, low + 1] * part


def synthesise(speech, knots, voice, rng):
    """Returns audio [480 F] and f0 [F]. knots: (tokens, samples) of word_grid or laid_over, speech its recording."""
    frames = int(round(knots[0][-1])) * 2
    jitter = 1 + rng.uniform(-0.005, 0.005)

    def place(output_samples):
        return np.interp(np.asarray(output_samples) / TOKEN, knots[0], knots[1])

    log_amplitude, periodicity = analyse(speech, place(np.arange(frames) * FRAME + FRAME / 2))
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
    log_amplitude, periodicity = analyse(speech, place(np.concatenate([pulses, centres])))
    log_amplitude = _to_output(log_amplitude)
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


def token_features(speech, knots):
    """What the speech codes are made of: [tokens, 2, 81], log mel of the envelope (free of pitch) and voicing."""
    tokens = int(knots[0][-1])
    at = (np.arange(tokens * 4) + 0.5) / 4
    log_amplitude, periodicity = analyse(speech, np.interp(at, knots[0], knots[1]))
    power = np.exp(2 * _to_output(log_amplitude)).reshape(tokens * 2, 2, _BINS).mean(1)
    mel = np.log(np.maximum(power @ _mel_of_bins().T, 1e-9)) / 2
    voiced = is_voiced(periodicity, log_amplitude).reshape(tokens * 2, 2).mean(1)
    return np.concatenate([mel, voiced[:, None]], 1).reshape(tokens, 2, 81).astype(np.float32)


@lru_cache(maxsize=1)
def _mel_of_bins():
    from .mel import filter_bank
    return filter_bank(RATE_HZ, _SIZE, 80, 0.0, 12000.0)
