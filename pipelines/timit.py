"""A folder of recordings in TIMIT's layout: `NAME.wav` beside `NAME.PHN`."""

import wave
from pathlib import Path

import numpy as np

from pipelines.features import frame_labels, frame_starts, log_energies


def recordings(folder: Path) -> list[tuple[Path, Path]]:
    """Return (sound, phonemes) pairs below a folder, sorted.

    Raises
    ------
    FileNotFoundError
        The folder holds none.
    """
    sounds = {_stem(path): path for path in folder.rglob("*.[wW][aA][vV]")}
    labels = {_stem(path): path for path in folder.rglob("*.[pP][hH][nN]")}
    pairs = [(sounds[name], labels[name]) for name in sorted(sounds.keys() & labels.keys())]
    if not pairs:
        raise FileNotFoundError(f"{folder} holds no NAME.wav beside NAME.PHN")
    return pairs


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix().lower()


def is_held_out(path: Path, folder: Path) -> bool:
    """Whether a recording is for testing: below TEST, else of every tenth speaker's folder."""
    parts = [part.upper() for part in path.relative_to(folder).parts]
    if "TEST" in parts or "TRAIN" in parts:
        return "TEST" in parts
    return sum(path.parent.as_posix().encode()) % 10 == 0


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Return samples from -1 to 1 and samples a second, of a RIFF or a NIST SPHERE file."""
    content = path.read_bytes()
    if content.startswith(b"NIST_1A"):
        return _read_sphere(content)
    with wave.open(str(path)) as sound:
        if sound.getsampwidth() != 2:
            raise ValueError(f"{path} has {8 * sound.getsampwidth()} bits a sample; 16 are needed")
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        mono = samples.reshape(-1, sound.getnchannels()).mean(axis=1)
        return mono.astype(np.float32) / 32768, sound.getframerate()


def _read_sphere(content: bytes) -> tuple[np.ndarray, int]:
    """Read a NIST SPHERE file: a header of `name -type value` lines, then 16-bit samples."""
    size = int(content.split(b"\n")[1])
    rows = [line.split(None, 2) for line in content[:size].decode("ascii").splitlines()[2:]]
    fields = {row[0]: row[2] for row in rows if len(row) == 3}
    order = ">i2" if fields.get("sample_byte_format") == "10" else "<i2"
    samples = np.frombuffer(content[size:], order)
    return samples.astype(np.float32) / 32768, int(fields["sample_rate"])


def read_phonemes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where each phoneme starts, in samples, and its name."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return np.array([int(row[0]) for row in rows]), np.array([row[2] for row in rows])


def read_recording(sound: Path, phonemes: Path) -> dict[str, np.ndarray]:
    """Return the features and labels of one recording, as `synthesis.render` does."""
    samples, rate = read_sound(sound)
    starts, names = read_phonemes(phonemes)
    features = log_energies(samples, rate)
    labels = frame_labels(frame_starts(len(samples), rate), rate, starts, names)
    return {"log_energy": features, "phoneme": labels, "length": np.array([len(features)])}
