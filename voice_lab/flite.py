"""Speech of libflite (Debian package libflite1): wave, pitch, phones and the places where words begin.

Two of its voices are used, statistical models of a man's and of a woman's recordings. Both share one front end, so a
text has the same phones in both, and one recording can be laid over the other phone by phone. Its noise comes from the
C library's generator, which is set for each text: the same text is the same wave.
"""
import ctypes
import zlib

import numpy as np

RATE_HZ = 16000
FRAME = 80                                # samples of a frame of the pitch track: 5 ms
VOICES = ("rms", "slt")
_LEVEL = {"rms": 1.2, "slt": 0.65}        # brings both to one loudness


class _Wave(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("sample_rate", ctypes.c_int), ("num_samples", ctypes.c_int),
                ("num_channels", ctypes.c_int), ("samples", ctypes.POINTER(ctypes.c_short))]


class _Track(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("num_frames", ctypes.c_int), ("num_channels", ctypes.c_int),
                ("times", ctypes.POINTER(ctypes.c_float)), ("frames", ctypes.POINTER(ctypes.POINTER(ctypes.c_float)))]


_FUNCTIONS = {"flite_synth_text": (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
              "delete_utterance": (None, ctypes.c_void_p),
              "utt_wave": (ctypes.POINTER(_Wave), ctypes.c_void_p),
              "utt_relation": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
              "relation_head": (ctypes.c_void_p, ctypes.c_void_p),
              "item_next": (ctypes.c_void_p, ctypes.c_void_p),
              "ffeature_string": (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p),
              "ffeature_float": (ctypes.c_float, ctypes.c_void_p, ctypes.c_char_p),
              "feat_val": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
              "val_track": (ctypes.POINTER(_Track), ctypes.c_void_p)}


class Speech:
    """wave [samples] f32, about [-1, 1]; pitch_hz [frames], 0 where there is none; words [(character offset, sample)];
    phones [(name, sample where it ends)]; end, the sample where the last sounding phone ends."""

    def __init__(self, wave, pitch_hz, words, phones):
        if not (pitch_hz > 0).any():
            raise RuntimeError("a recording without pitch")
        self.wave, self.pitch_hz, self.words, self.phones = wave, pitch_hz, words, phones
        self.end = max((end for name, end in phones if name != "pau"), default=len(wave))


class Speaker:
    """The library has one global state."""

    def __init__(self):
        self._libc = ctypes.CDLL(None)
        self._library = ctypes.CDLL("libflite.so.1", ctypes.RTLD_GLOBAL)
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._library.flite_init()
        self._voices = {}
        for name in VOICES:
            library = ctypes.CDLL(f"libflite_cmu_us_{name}.so.1", ctypes.RTLD_GLOBAL)
            register = getattr(library, f"register_cmu_us_{name}")
            register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
            self._voices[name] = register(None)

    def _items(self, utterance, relation):
        item = self._library.relation_head(self._library.utt_relation(utterance, relation))
        while item:
            yield item
            item = self._library.item_next(item)

    def _words(self, utterance, text):
        """A token of the text may be read as several words, and begins with the first of them."""
        out, at = [], 0
        for item in self._items(utterance, b"Token"):
            token = self._library.ffeature_string(item, b"name").decode()
            start = self._library.ffeature_float(item, b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end")
            offset = text.find(token, at)
            if offset < 0:
                raise RuntimeError(f"libflite reads {token!r}, which is not in {text!r} behind character {at}")
            out.append((offset, int(start * RATE_HZ)))
            at = offset + len(token)
        return out

    def say(self, text, voice):
        self._libc.srand(ctypes.c_uint(zlib.crc32(text.encode())))
        utterance = self._library.flite_synth_text(text.encode(), self._voices[voice])
        if not utterance:
            raise RuntimeError(f"libflite said nothing for {text!r}")
        sound = self._library.utt_wave(utterance).contents
        if sound.sample_rate != RATE_HZ:
            raise RuntimeError(f"libflite's voice {voice} has {sound.sample_rate} Hz, expected {RATE_HZ}")
        wave = np.ctypeslib.as_array(sound.samples, (sound.num_samples,)).astype(np.float32) / 32768 * _LEVEL[voice]
        features = ctypes.cast(utterance, ctypes.POINTER(ctypes.c_void_p))[0]     # an utterance's first member
        track = self._library.val_track(self._library.feat_val(features, b"param_track")).contents
        pitch_hz = np.array([track.frames[i][0] for i in range(track.num_frames)], np.float32)
        phones = [(self._library.ffeature_string(item, b"name").decode(),
                   int(self._library.ffeature_float(item, b"end") * RATE_HZ))
                  for item in self._items(utterance, b"Segment")]
        words = self._words(utterance, text)
        self._library.delete_utterance(utterance)
        if not words:
            raise RuntimeError(f"libflite found no word in {text!r}")
        noise = np.random.default_rng(zlib.crc32(text.encode()))     # a floor below the least step: no exact zeros
        return Speech(wave + noise.standard_normal(len(wave)).astype(np.float32) * 1e-5, pitch_hz, words, phones)
