"""Sounds: a folder of .wav files behind a small interface."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unrolled.data.listing import files_below
from unrolled.errors import CorruptFile, MissingData


@dataclass(frozen=True)
class SoundFolder:
    """The .wav files below a folder, in the order of their names."""

    folder: Path
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Samples [samples] or [samples, channels] as the file has them, and how many there are in a second.

        Raises:
            CorruptFile: it is truncated, empty or of another format.
        """
        from scipy.io import wavfile

        path = self.folder / self.ids[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of notes and cover pictures
                rate, samples = wavfile.read(path)
        except (ValueError, EOFError, OSError, UnboundLocalError, ArithmeticError, struct.error) as error:
            raise CorruptFile(f"{path} is truncated or not a .wav file: {error}") from error
        if not len(samples):
            raise CorruptFile(f"{path} holds no samples")
        return samples, int(rate)


def open_sounds(folder: str | Path) -> SoundFolder:
    """The sounds of a folder and the folders below it.

    Raises:
        MissingData: no such folder, or no .wav file in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise MissingData(f"sounds: there is no folder {folder}")
    ids = [str(path.relative_to(folder)) for path in files_below(folder, {".wav"})]
    if not ids:
        raise MissingData(f"sounds: {folder} holds no .wav files; convert others, e.g. with ffmpeg")
    return SoundFolder(folder, ids)
