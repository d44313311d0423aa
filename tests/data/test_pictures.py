"""Pictures from strangers: what comes out, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.files import encoded
from unrolled.data.pictures import find_pictures, fit_size, read_frames, read_picture
from unrolled.errors import CorruptFile, MissingData


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def half(mode: str, left: object, right: object) -> Image.Image:
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def test_a_photo_is_turned_the_way_it_was_taken() -> None:
    record = Image.Exif()
    record[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    picture = read_picture(encoded(half("RGB", "red", "blue"), exif=record))
    assert picture.size == (4, 8)
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.getpixel((3, 7)) == (0, 0, 255)
    assert 0x0112 not in picture.getexif()


def test_transparency_is_white() -> None:
    clear = half("RGBA", (255, 0, 0, 255), (0, 0, 0, 0))
    assert read_picture(encoded(clear)).getpixel((7, 0)) == (255, 255, 255)
    assert read_picture(encoded(clear)).getpixel((0, 0)) == (255, 0, 0)
    grey = half("LA", (40, 255), (0, 0))
    assert read_picture(encoded(grey)).getpixel((7, 0)) == (255, 255, 255)
    palette = half("P", 0, 1)
    palette.putpalette([10, 20, 30, 0, 0, 0])
    assert read_picture(encoded(palette, transparency=1)).getpixel((7, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_shades() -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    out = np.asarray(read_picture(encoded(Image.fromarray(values))))
    assert out.shape == (8, 8, 3)
    assert np.array_equal(out[..., 0], values >> 8)


def test_floating_point_is_scaled_or_refused() -> None:
    ramp = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)
    out = np.asarray(read_picture(encoded(Image.fromarray(ramp), "TIFF")))
    assert (out.min(), out.max()) == (0, 255)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        read_picture(encoded(Image.fromarray(ramp * 900), "TIFF"))


def test_other_colours_become_rgb() -> None:
    for mode in ("CMYK", "L", "1", "P", "YCbCr"):
        kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        picture = read_picture(encoded(Image.new("RGB", (9, 7), "white").convert(mode), kind))
        assert (picture.mode, picture.size) == ("RGB", (9, 7))
        assert min(picture.getpixel((4, 3))) > 250  # type: ignore[type-var, arg-type]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=20)
        red, green, blue = read_picture(data).getpixel((3, 3))  # type: ignore[misc]
        assert red > 200 > 40 > max(green, blue), kind


@pytest.mark.parametrize("size", [(20_000, 20_000), (200_000, 200_000)])
def test_a_decompression_bomb_is_not_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"picture: has (\d+ x \d+|too many) pixels; at most 50,000,000"):
        read_picture(bomb(*size))


def test_limits_are_the_callers(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (50, 40)))
    assert read_picture(data, max_pixels=2000).size == (50, 40)
    with pytest.raises(ValueError, match="50 x 40 pixels; at most 1,999"):
        read_picture(data, max_pixels=1999)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: is 0\.0 MiB, more than"):
        read_picture(tmp_path / "a.png", max_bytes=20)
    with pytest.raises(ValueError, match="upload: is"):
        read_picture(data, max_bytes=20, name="upload")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    photo = encoded(Image.effect_noise((64, 64), 60), "JPEG")
    broken = {"empty.png": b"", "text.png": b"not a picture", "cut.jpg": photo[: len(photo) // 2]}
    broken["header.png"] = encoded(Image.new("RGB", (5, 5)))[:20]
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptFile, match=name):
            read_picture(tmp_path / name)
    with pytest.raises(CorruptFile, match="known format"):  # PostScript would start a program
        read_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


@given(st.binary(max_size=64), st.integers(0, 500))
def test_bytes_of_any_kind_give_a_picture_or_a_named_error(noise: bytes, at: int) -> None:
    good = encoded(Image.linear_gradient("L").resize((16, 16)))
    for data in (noise, good[:at] + noise + good[at + len(noise) :]):
        assert said(data).startswith(("RGB", "the picture: "))


def said(data: bytes) -> str:
    """The mode of the picture, or what is wrong with it."""
    try:
        return read_picture(data).mode
    except ValueError as error:
        return str(error)


def test_places(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "none").mkdir()
    assert [path.name for path in find_pictures([tmp_path])] == ["a.JPG", "b.png"]
    assert find_pictures([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]  # named: judged by its content
    with pytest.raises(MissingData, match="no pictures"):
        find_pictures([tmp_path / "none"])
    with pytest.raises(MissingData, match="does not exist"):
        find_pictures([tmp_path / "gone.png"])
    with pytest.raises(MissingData, match="does not exist"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="folder"):
        read_picture(tmp_path)
    with pytest.raises(ValueError, match="not a file"):
        read_picture("/dev/zero")


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([4, 8, 14, 16]), st.integers(16, 512))
def test_pictures_keep_their_shape_up_to_a_patch(height: int, width: int, patch: int, side: int) -> None:
    rows, columns = fit_size((height, width), side, (patch, patch))
    assert rows % patch == columns % patch == 0
    assert min(rows, columns) >= patch
    assert abs(min(rows, columns) - side) <= patch / 2 or side < patch
    ratio = min(max(height, width) / min(height, width), 2)
    assert abs(max(rows, columns) - ratio * side) <= patch / 2


def animation(count: int, kind: str) -> bytes:
    """Frames that grow redder, each of one colour."""
    frames = [Image.new("RGB", (8, 8), (20 * i, 0, 90)) for i in range(count)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_come_in_order_and_are_drawn_evenly(kind: str) -> None:
    data = animation(9, kind)
    reds = [frame.getpixel((0, 0))[0] for frame in read_frames(data)]  # type: ignore[index]
    assert reds == [20 * i for i in range(9)]
    assert [frame.getpixel((0, 0))[0] for frame in read_frames(data, most=3)] == [0, 80, 160]  # type: ignore[index]
    assert read_picture(data).getpixel((0, 0)) == (0, 0, 90)
    assert len(list(read_frames(encoded(Image.new("RGB", (3, 3)))))) == 1


def test_a_damaged_animation_is_refused() -> None:
    data = animation(9, "WEBP")
    with pytest.raises(CorruptFile):
        list(read_frames(data[: len(data) // 2]))
    with pytest.raises(ValueError, match="pixels"):
        list(read_frames(data, max_pixels=10))
    with pytest.raises(ValueError, match="most=0"):
        next(read_frames(data, most=0))


def test_numbered_frames_keep_their_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.new("RGB", (2, 2)).save(tmp_path / f"frame{number}.png")
    assert [path.stem for path in find_pictures([tmp_path])] == ["frame1", "frame2", "frame10"]
