"""The 80-band log mel of spec voice 5, in NumPy for the data and in PyTorch for the losses."""
import numpy as np


def _to_mel(hz):
    hz = np.asarray(hz, float)
    return np.where(hz < 1000, hz / (200 / 3), 15 + np.log(np.maximum(hz, 1e-9) / 1000) / (np.log(6.4) / 27))


def _to_hz(mel):
    mel = np.asarray(mel, float)
    return np.where(mel < 15, mel * (200 / 3), 1000 * np.exp((mel - 15) * (np.log(6.4) / 27)))


def filter_bank(rate_hz, size, bands, low_hz, high_hz):
    """[bands, size/2+1], Slaney's scale and norm, f32."""
    p = _to_hz(np.linspace(_to_mel(low_hz), _to_mel(high_hz), bands + 2))[:, None]
    hz = np.arange(size // 2 + 1) * rate_hz / size
    w = np.maximum(0, np.minimum((hz - p[:-2]) / (p[1:-1] - p[:-2]), (p[2:] - hz) / (p[2:] - p[1:-1])))
    return (w.astype(np.float32) * (2.0 / (p[2:] - p[:-2]))).astype(np.float32)


def log_mel(audio):
    """[480 T] -> [T, 80] natural-log mel: window 1920, hop 480, floor 1e-5."""
    padded = np.pad(np.asarray(audio, np.float32), 720, mode="reflect")
    frames = 1 + (len(padded) - 1920) // 480
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1920) / 1920)).astype(np.float32)
    at = np.arange(frames)[:, None] * 480 + np.arange(1920)
    spectrum = np.fft.rfft(padded[at] * window)
    amplitude = np.sqrt(spectrum.real ** 2 + spectrum.imag ** 2 + 1e-9).astype(np.float32)
    return np.log(np.maximum(amplitude @ filter_bank(24000, 1920, 80, 0.0, 12000.0).T, 1e-5)).astype(np.float32)
