"""A corpus in Zarr: features and phonemes, frame by frame, made in parallel by Dask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client

from pipelines.features import CHANNELS
from pipelines.sentences import sentences
from pipelines.synthesis import render, voices
from pipelines.timit import is_held_out, read_recording, recordings

CHUNK = 8192  # frames
FRAMES_A_SENTENCE = 330  # about
HELD_OUT_SHARE = 8  # one voice, and one sentence, in so many is held out

Part = dict[str, np.ndarray]
Maker = tuple[Callable[..., Part], tuple[Any, ...]]


@dataclass(frozen=True)
class Corpus:
    """Paths of the two stores, and the names of the phonemes."""

    train: Path
    held_out: Path
    phonemes: tuple[str, ...]


def synthesised(minutes: float, seed: int) -> tuple[list[Maker], list[Maker]]:
    """What makes the parts of a synthesised corpus: held-out sentences by held-out voices."""
    wanted = max(2, round(minutes * 6000 / FRAMES_A_SENTENCE))
    speakers = voices(min(64, max(4, wanted // 10)), seed)
    count = max(1, len(speakers) // HELD_OUT_SHARE)
    texts = sentences(2 * wanted // 3 + 8, seed)
    split = max(1, len(texts) // HELD_OUT_SHARE)
    rng = np.random.default_rng(seed)
    each = max(1, -(-wanted // (len(speakers) - count)))

    def makers(voices_of: Sequence[Any], texts_of: list[str]) -> list[Maker]:
        size = min(each, len(texts_of))
        return [
            (render, (voice, [texts_of[i] for i in rng.choice(len(texts_of), size, replace=False)]))
            for voice in voices_of
        ]

    return makers(speakers[count:], texts[split:]), makers(speakers[:count], texts[:split])


def recorded(folder: Path) -> tuple[list[Maker], list[Maker]]:
    """What reads the parts of a folder in TIMIT's layout."""
    train: list[Maker] = []
    held_out: list[Maker] = []
    for sound, phonemes in recordings(folder):
        into = held_out if is_held_out(sound, folder) else train
        into.append((read_recording, (sound, phonemes)))
    if not train or not held_out:
        raise ValueError(f"{folder} has no recordings {'to train on' if held_out else 'held out'}")
    return train, held_out


def build(client: Client, train: list[Maker], held_out: list[Maker], folder: Path) -> Corpus:
    """Make every part on the cluster, and write the two stores chunk by chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        name: [client.submit(make, *given, pure=False) for make, given in makers]
        for name, makers in (("train", train), ("held_out", held_out))
    }
    sizes = {name: client.gather(client.map(_summary, futures)) for name, futures in parts.items()}
    names = sorted(set().union(*(found for rows in sizes.values() for _, _, found in rows)))
    for name, futures in parts.items():
        _write(client, futures, sizes[name], tuple(names), folder / f"{name}.zarr")
    return Corpus(folder / "train.zarr", folder / "held_out.zarr", tuple(names))


def _summary(part: Part) -> tuple[int, int, set[str]]:
    return len(part["phoneme"]), len(part["length"]), set(part["phoneme"].tolist())


def _write(
    client: Client,
    futures: list[Any],
    sizes: list[tuple[int, int, set[str]]],
    names: tuple[str, ...],
    path: Path,
) -> None:
    frames = np.concatenate([[0], np.cumsum([size for size, _, _ in sizes])])
    utterances = np.concatenate([[0], np.cumsum([count for _, count, _ in sizes])])
    _create(path, int(frames[-1]), names)
    writes = []
    for start in range(0, int(frames[-1]), CHUNK):
        stop = min(start + CHUNK, int(frames[-1]))
        first = int(np.searchsorted(frames, start, side="right")) - 1
        last = int(np.searchsorted(frames, stop, side="left"))
        writes.append(
            client.submit(
                _write_chunk,
                futures[first:last],
                frames[first:last].tolist(),
                utterances[first:last].tolist(),
                (start, stop),
                names,
                str(path.absolute()),
                pure=False,
            )
        )
    client.gather(writes)


def _create(path: Path, frames: int, names: tuple[str, ...]) -> None:
    group = zarr.open_group(path, mode="w", attributes={"title": "phonemes of speech, by frame"})
    common: dict[str, Any] = {"dimension_names": ["frame"], "shape": (frames,), "chunks": (CHUNK,)}
    group.create_array(
        "log_energy",
        shape=(frames, CHANNELS),
        chunks=(CHUNK, CHANNELS),
        dtype="float32",
        dimension_names=["frame", "channel"],
        attributes={"long_name": "log mel energy", "window": "25 ms", "hop": "10 ms"},
    )
    meanings: dict[str, Any] = {
        "flag_values": list(range(len(names))),
        "flag_meanings": " ".join(names),
    }
    group.create_array("phoneme", dtype="int16", attributes=meanings, **common)
    group.create_array("utterance", dtype="int32", **common)


def _write_chunk(
    parts: list[Part],
    starts: list[int],
    utterances: list[int],
    span: tuple[int, int],
    names: tuple[str, ...],
    path: str,
) -> None:
    """Write the frames of one chunk, out of the parts that overlap it."""
    columns: dict[str, list[np.ndarray]] = {"log_energy": [], "phoneme": [], "utterance": []}
    for part, start, utterance in zip(parts, starts, utterances, strict=True):
        cut = slice(max(0, span[0] - start), span[1] - start)
        columns["log_energy"].append(part["log_energy"][cut])
        codes = np.searchsorted(np.array(names), part["phoneme"][cut])
        columns["phoneme"].append(codes.astype(np.int16))
        numbers = utterance + np.repeat(np.arange(len(part["length"])), part["length"])
        columns["utterance"].append(numbers[cut].astype(np.int32))
    group = zarr.open_group(path, mode="r+")
    for name, values in columns.items():
        group[name][slice(*span)] = np.concatenate(values)  # type: ignore[index]
