"""Speech made by espeak-ng, with the true time of every phoneme.

espeak-ng keeps state from call to call and in global variables, so each voice is rendered by a
process of its own, in a fixed order: `render` starts it, and the module run as a program is it.
"""

import ctypes
import io
import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np

from pipelines.features import frame_labels, frame_starts, log_energies

SYNCHRONOUS, PHONEME_EVENTS, UTF8 = 2, 1, 1
PHONEME = 7
RATE, PITCH, RANGE = 1, 3, 4
SILENCE = "_"
LANGUAGES = ("gmw/en-US", "gmw/en", "gmw/en-GB-x-rp", "gmw/en-GB-scotland", "gmw/en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt1")


@dataclass(frozen=True)
class Voice:
    """One speaker: a language variant, a timbre, and how it speaks."""

    name: str
    rate: int
    pitch: int
    range: int


def voices(count: int, seed: int) -> list[Voice]:
    """Return `count` different speakers, the same for the same seed."""
    names = [f"{language}+{variant}" for language in LANGUAGES for variant in VARIANTS]
    if count > len(names):
        raise ValueError(f"there are {len(names)} voices, got count={count}")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(names))[:count]
    spans = (135, 200), (30, 70), (35, 65)  # words a minute, pitch, range of pitch
    drawn = [[int(rng.integers(low, high)) for low, high in spans] for _ in chosen]
    return [Voice(names[index], *numbers) for index, numbers in zip(chosen, drawn, strict=True)]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Synthesiser:
    """espeak-ng in this process; made once in its life."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(SYNCHRONOUS, 500, data, PHONEME_EVENTS)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng could not be initialised with data at {data!r}")
        self._samples: list[np.ndarray] = []
        self._phonemes: list[tuple[int, str]] = []
        self._callback = _Callback(self._collect)  # espeak-ng keeps a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, wave, count, events) -> int:  # type: ignore[no-untyped-def]
        if wave and count:
            self._samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        position = 0
        while events[position].type:
            if events[position].type == PHONEME:
                label = events[position].string.decode("utf8", "replace")
                self._phonemes.append((events[position].sample, plain(label)))
            position += 1
        return 0

    def speak(self, voice: Voice, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples (-1 to 1), the sample at which each phoneme starts, and its name."""
        self._samples, self._phonemes = [], []
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        raw = text.encode()
        self._library.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, UTF8, None, None)
        samples = np.concatenate(self._samples).astype(np.float32) / 32768
        starts = np.array([start for start, _ in self._phonemes])
        return samples, starts, np.array([name for _, name in self._phonemes])


def plain(label: str) -> str:
    """Strip stress marks from a phoneme's label, and name every silence alike.

    Examples
    --------
    >>> plain("'aI"), plain("_:"), plain("")
    ('aI', '_', '_')
    """
    stripped = label.strip("',%=|").replace("'", "").replace(",", "")
    return SILENCE if stripped in ("", "_", "_:", ";") else stripped


def render(voice: Voice, texts: list[str]) -> dict[str, np.ndarray]:
    """Let one voice speak sentences in a fresh process; returns features and labels.

    Returns
    -------
    dict
        `log_energy` (frames, 40) float32, `phoneme` (frames,) names, `length` frames of each
        sentence.
    """
    job = json.dumps({"voice": vars(voice), "texts": texts})
    command = [sys.executable, "-m", "pipelines.synthesis"]
    done = subprocess.run(command, input=job.encode(), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"espeak-ng failed for {voice.name}: {done.stderr.decode()[-500:]}")
    with np.load(io.BytesIO(done.stdout)) as arrays:
        return dict(arrays)


def main() -> None:
    """Render what standard input asks for, as one .npz on standard output."""
    job = json.load(sys.stdin)
    voice, synthesiser = Voice(**job["voice"]), Synthesiser()
    features, labels = [], []
    for text in job["texts"]:
        samples, starts, names = synthesiser.speak(voice, text)
        rate = synthesiser.sample_rate
        features.append(log_energies(samples, rate))
        labels.append(frame_labels(frame_starts(len(samples), rate), rate, starts, names))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        log_energy=np.concatenate(features),
        phoneme=np.concatenate(labels),
        length=np.array([len(part) for part in features]),
    )
    sys.stdout.buffer.write(buffer.getvalue())


if __name__ == "__main__":
    main()
