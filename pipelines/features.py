"""Speech features: 40 log energies of 25 ms windows every 10 ms, as the paper's net takes."""

from functools import lru_cache

import numpy as np

CHANNELS = 40
WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.010
LOWEST_HZ, HIGHEST_HZ = 64.0, 8000.0
FLOOR = 1e-8  # energy of silence, so that its logarithm is finite


def frame_starts(samples: int, rate: int) -> np.ndarray:
    """Return the first sample of every whole window."""
    window = round(WINDOW_SECONDS * rate)
    count = max(0, int((samples - window) / (HOP_SECONDS * rate)) + 1)
    return np.round(np.arange(count) * HOP_SECONDS * rate).astype(np.int64)


def log_energies(signal: np.ndarray, rate: int) -> np.ndarray:
    """Return log mel energies.

    Parameters
    ----------
    signal
        Samples from -1 to 1.
    rate
        Samples a second.

    Returns
    -------
    float32 array of shape (frames, 40)
    """
    window = round(WINDOW_SECONDS * rate)
    starts = frame_starts(len(signal), rate)
    emphasised = np.append(signal[:1], signal[1:] - 0.97 * signal[:-1])
    frames = emphasised[starts[:, None] + np.arange(window)] * np.hamming(window)
    size = 1 << (window - 1).bit_length()
    power = np.abs(np.fft.rfft(frames, size)) ** 2 / size
    energies: np.ndarray = np.log(power @ mel_filters(rate, size).T + FLOOR)
    return energies.astype(np.float32)


@lru_cache
def mel_filters(rate: int, size: int) -> np.ndarray:
    """Return triangular filters, evenly spaced on the mel scale: (40, size // 2 + 1)."""
    top = min(HIGHEST_HZ, rate / 2)
    edges = np.linspace(_mel(LOWEST_HZ), _mel(top), CHANNELS + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = np.arange(size // 2 + 1) * rate / size
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None)


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def frame_labels(
    starts: np.ndarray, rate: int, phoneme_starts: np.ndarray, phonemes: np.ndarray
) -> np.ndarray:
    """Return the phoneme at the middle of every window; a phoneme lasts until the next one."""
    middles = starts + round(WINDOW_SECONDS * rate) // 2
    position = np.searchsorted(phoneme_starts, middles, side="right") - 1
    return phonemes[np.clip(position, 0, None)]
