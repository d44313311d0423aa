"""Folders of sounds, and their features from the command line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from unrolled import cli
from unrolled.data.sounds import open_sounds
from unrolled.errors import CorruptFile, MissingData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "sounds/b").mkdir(parents=True)
    for name, rate, channels in (("b/2.wav", 8000, 1), ("1.wav", 16_000, 2), ("3.WAV", 8000, 1)):
        samples = generator.integers(-9000, 9000, (rate // 4, channels)).astype(np.int16)
        wavfile.write(tmp_path / "sounds" / name, rate, samples.squeeze())
    return tmp_path / "sounds"


def test_sounds_come_in_the_order_of_their_names(folder: Path) -> None:
    sounds = open_sounds(folder)
    assert sounds.ids == ["1.wav", "3.WAV", "b/2.wav"]
    samples, rate = sounds.load(0)
    assert (samples.shape, rate) == ((4000, 2), 16_000)


def test_bad_sounds_are_named(folder: Path) -> None:
    (folder / "0.wav").write_bytes((folder / "1.wav").read_bytes()[:30])
    with pytest.raises(CorruptFile, match=r"0\.wav"):
        open_sounds(folder).load(0)
    whole = bytearray((folder / "1.wav").read_bytes())
    for place in range(20, 36):  # of the header: channels, rates, sizes
        (folder / "0.wav").write_bytes(bytes(whole[:place]) + b"\0\0" + bytes(whole[place + 2 :]))
        with contextlib.suppress(CorruptFile):
            open_sounds(folder).load(0)
    with pytest.raises(MissingData, match="no folder"):
        open_sounds(folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(MissingData, match=r"no \.wav"):
        open_sounds(folder / "empty")


def test_sounds_become_features(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / "wave")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path / "wave")
    flags = ["extract", f"hf:{tmp_path / 'wave'}", "--sounds", str(folder), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.run([*flags, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["samples"] == 3
    assert cli.run([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"] is True
    assert cli.run([*flags, "--data", "digits"]) == 2
    assert "--sounds" in capsys.readouterr().err
