"""The speech pipeline, run as a person runs it, on a little speech."""

import wave

import numpy as np
import pytest
import xarray as xr

import dbdask
from pipelines import timit
from pipelines.features import CHANNELS, frame_labels, frame_starts, log_energies
from pipelines.sentences import sentences
from pipelines.speech import main
from pipelines.synthesis import render, voices


def test_a_tone_is_loudest_in_its_own_channel():
    rate = 16_000
    time = np.arange(rate) / rate
    loudest = [
        np.median(log_energies(np.sin(2 * np.pi * hertz * time), rate).argmax(axis=1))
        for hertz in (200, 800, 2000, 5000)
    ]
    assert loudest == sorted(loudest) and len(set(loudest)) == 4
    assert log_energies(np.zeros(rate), rate).shape == (98, CHANNELS)


def test_a_frame_has_the_phoneme_at_its_middle():
    starts = frame_starts(1600, 16_000)
    labels = frame_labels(starts, 16_000, np.array([0, 760]), np.array(["a", "b"]))
    np.testing.assert_array_equal(labels, np.where(starts + 200 < 760, "a", "b"))


def test_sentences_differ_and_depend_on_the_seed_only():
    drawn = sentences(1500, 3)
    assert len(set(drawn)) == 1500 and drawn == sentences(1500, 3) != sentences(1500, 4)


def test_a_voice_speaks_the_same_every_time():
    voice, texts = voices(1, 0)[0], sentences(2, 0)
    first, second = render(voice, texts), render(voice, texts)
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
    assert first["length"].sum() == len(first["phoneme"]) == len(first["log_energy"])
    assert len(set(first["phoneme"])) > 10


def run(tmp_path, *arguments):
    output = tmp_path / "out"
    assert main(["--output", str(output), "--layers", "1x32", "--epochs", "3", *arguments]) == 0
    return output


def test_from_speech_to_predictions(tmp_path, capsys):
    output = run(tmp_path, "--minutes", "2")
    said = capsys.readouterr().out
    assert "Held-out frame accuracy" in said and "learning_curve.png" in said
    held_out = xr.open_zarr(output / "held_out.zarr", consolidated=False)
    predicted = xr.open_zarr(output / "phonemes.zarr", consolidated=False)["phoneme"]
    xr.align(held_out, predicted, join="exact")
    accuracy = float((predicted == held_out["phoneme"]).mean())
    commonest = held_out["phoneme"].to_series().value_counts(normalize=True).iloc[0]
    assert accuracy > 2 * commonest
    assert dbdask.load(output / "model.zarr").status.ok


def write_recording(folder, name, seed):
    """A made-up recording: two tones, labelled, as 16-bit RIFF beside its phonemes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, parts, position = [], [], 0
    for _ in range(20):
        label, hertz = (("aa", 400), ("iy", 2500))[rng.integers(2)]
        length = int(rng.integers(1600, 4000))
        parts.append(np.sin(2 * np.pi * hertz * np.arange(length) / 16_000))
        lines.append(f"{position} {position + length} {label}")
        position += length
    with wave.open(str(folder / f"{name}.wav"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes((np.concatenate(parts) * 20_000).astype("<i2").tobytes())
    (folder / f"{name}.PHN").write_text("\n".join(lines))


@pytest.mark.slow
def test_a_folder_in_timits_layout(tmp_path):
    for part, count in (("TRAIN", 6), ("TEST", 2)):
        for number in range(count):
            write_recording(tmp_path / "timit" / part / f"S{number}", "SA1", number)
    recordings = ("--timit", str(tmp_path / "timit"))
    output = run(tmp_path, *recordings, "--optimizer", "adagrad:0.1")
    assert accuracy(output) > 0.9
    start = ("--start", str(output / "model.zarr"))
    output = run(
        tmp_path / "b", *recordings, "--method", "sandblaster", "--iterations", "5", *start
    )
    assert accuracy(output) > 0.9
    history = dbdask.load(output / "model.zarr").history
    assert history["iteration"].max() == 5


def accuracy(output):
    predicted = xr.open_zarr(output / "phonemes.zarr", consolidated=False)["phoneme"]
    wanted = xr.open_zarr(output / "held_out.zarr", consolidated=False)["phoneme"]
    return float((predicted == wanted).mean())


def test_a_sphere_file_is_read(tmp_path):
    samples = np.arange(-50, 50, dtype="<i2")
    header = "NIST_1A\n   1024\nsample_rate -i 16000\nsample_byte_format -s2 01\nend_head\n"
    path = tmp_path / "a.wav"
    path.write_bytes(header.encode().ljust(1024) + samples.tobytes())
    values, rate = timit.read_sound(path)
    assert rate == 16_000
    np.testing.assert_allclose(values * 32768, samples)


@pytest.mark.parametrize("arguments", [["--layers", "big"], ["--optimizer", "newton:1"]])
def test_wrong_flags_are_named_before_work_begins(arguments):
    with pytest.raises(SystemExit, match=arguments[0]):
        main(arguments)
