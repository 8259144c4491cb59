"""Speech of libespeak-ng (Debian package libespeak-ng1), with the places where words begin.

The Klatt voice with pitch range 0 is used: its pitch is one constant, so the vocoder needs no pitch tracker.
"""
import ctypes
import zlib

import numpy as np

RATE_HZ = 22050
PITCH = 50                   # espeak's number; the constant pitch that it gives:
PITCH_PERIOD = 248.0         # samples at 22050 Hz: 88.9 Hz
WORDS_PER_MINUTE = 150

_AUDIO_SYNCHRONOUS = 2
_EVENT_END, _EVENT_WORD = 0, 1
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4
_CHARACTERS_UTF8 = 1


class _Identity(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
                ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
                ("user_data", ctypes.c_void_p), ("id", _Identity)]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """The library has one global state: make one Speaker in a process."""

    def __init__(self, voice="en-us+klatt"):
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        rate = self._library.espeak_Initialize(_AUDIO_SYNCHRONOUS, 0, None, 0)
        if rate != RATE_HZ:
            raise RuntimeError(f"libespeak-ng starts at {rate} Hz, expected {RATE_HZ}: is espeak-ng-data installed?")
        self._chunks, self._words = [], []
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"libespeak-ng has no voice {voice}")

    def _collect(self, wave, samples, events):
        if wave and samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (samples,)).copy())
        i = 0
        while events[i].type != _EVENT_END:
            if events[i].type == _EVENT_WORD:
                self._words.append((events[i].text_position - 1, events[i].sample))
            i += 1
        return 0

    def say(self, text):
        """Returns the wave (f32, [-1, 1), 22050 Hz) and [(character offset, sample)] of its words."""
        self._chunks, self._words = [], []
        for parameter, value in ((_PARAMETER_RATE, WORDS_PER_MINUTE), (_PARAMETER_PITCH, PITCH), (_PARAMETER_RANGE, 0)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _CHARACTERS_UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise RuntimeError(f"libespeak-ng said nothing for {text!r}")
        wave = np.concatenate(self._chunks).astype(np.float32) / 32768
        noise = np.random.default_rng(zlib.crc32(data))          # a floor below the least step: no exact zeros
        return wave + noise.standard_normal(len(wave)).astype(np.float32) * 1e-5, self._words
