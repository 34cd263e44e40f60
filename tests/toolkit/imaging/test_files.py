import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetx_opt.errors import ImageError
from unetx_opt.imaging.files import OVERLAY_COLORS, read_image, write_mask_png, write_overlay_png


def gradient(dtype=np.uint8, shape=(24, 40)):
    return np.linspace(0, np.iinfo(dtype).max, shape[0] * shape[1]).astype(dtype).reshape(shape)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bare_png(height, width, bit_depth=8, color_type=0, body=b""):
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pngs_are_read_as_they_are(tmp_path, dtype):
    pixels = gradient(dtype)
    source = read_image(save(tmp_path / "film.01.png", pixels))
    assert source.pixels.dtype == dtype
    assert np.array_equal(source.pixels, pixels)
    assert (source.spacing_mm, source.name, source.kind) == (None, "film.01", "png")
    assert source.pixels.flags.writeable


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "LA"])
def test_grey_stored_as_palette_or_colour_is_read_as_grey(tmp_path, mode):
    pixels = gradient()
    source = read_image(save(tmp_path / "film.png", pixels, mode))
    assert np.array_equal(source.pixels, pixels)


def test_one_bit_pngs_are_read_as_black_and_white(tmp_path):
    mask = gradient() > 100
    source = read_image(save(tmp_path / "mask.png", mask))
    assert np.array_equal(source.pixels, mask * np.uint8(255))


def test_an_interlaced_png_reads_like_a_plain_one(tmp_path):
    # One grey value throughout is the same bytes in every pass.
    rows = b"".join(b"\0" + b"\x80" * width for width, height in adam7(32, 32) for _ in range(height))
    header = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "film.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert (read_image(tmp_path / "film.png").pixels == 128).all()


def adam7(width, height):
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]


def test_colour_and_transparency_are_refused(tmp_path):
    color = np.dstack([gradient(), gradient()[::-1], gradient()])
    with pytest.raises(ImageError, match="in colour"):
        read_image(save(tmp_path / "color.png", color))
    with pytest.raises(ImageError, match="in colour"):
        read_image(save(tmp_path / "palette.png", color, "P"))
    transparent = np.dstack([gradient()] * 3 + [gradient()])
    with pytest.raises(ImageError, match="transparent"):
        read_image(save(tmp_path / "transparent.png", transparent))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PNG"),
        (b"\xff\xd8\xff\xe0 a jpeg", "no PNG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (bare_png(65535, 65535), "65535 x 65535"),
        (bare_png(16384, 16384), "at most"),
        (bare_png(8, 8), "8 x 8"),
        (bare_png(0, 64), "0 x 64"),
        (bare_png(64, 64, 16, 2), "16-bit colour"),
        (bare_png(64, 64), "damaged PNG"),
        (bare_png(64, 64, bit_depth=5), "damaged PNG"),
    ],
    ids=["empty", "jpeg", "signature only", "bomb", "too many pixels", "tiny", "flat", "rgb48", "no rows", "depth"],
)
def test_what_is_no_radiograph_is_refused_before_it_is_decoded(tmp_path, data, message):
    path = tmp_path / "film.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message):
        read_image(path)


def test_a_png_that_is_cut_or_altered_anywhere_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    path = tmp_path / "film.png"
    for cut in range(0, len(whole), 23):
        path.write_bytes(whole[:cut])
        with pytest.raises(ImageError) as cut_error:
            read_image(path)
        assert "\n" not in str(cut_error.value)
    for position in rng.integers(len(whole) - 4, size=150).tolist():
        altered = bytearray(whole)
        altered[position] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        with pytest.raises(ImageError, match=r"PNG|expected"):
            read_image(path)


@pytest.mark.parametrize("path", [Path("/nowhere/film.png"), Path("/dev/zero"), Path("/")], ids=str)
def test_what_is_no_file_is_refused(path):
    with pytest.raises(ImageError, match="no file"):
        read_image(path)


def test_a_binary_mask_is_written_black_and_white(tmp_path):
    mask = (gradient() > 100).astype(np.uint8)
    write_mask_png(tmp_path / "mask.png", mask)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), mask * 255)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.png"]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_mask_of_several_classes_keeps_its_labels(tmp_path, num_classes):
    mask = gradient() % np.uint8(num_classes)
    write_mask_png(tmp_path / "mask.png", mask, num_classes=num_classes)
    assert np.array_equal(read_image(tmp_path / "mask.png").pixels, mask)


def test_a_mask_with_an_unknown_label_or_type_is_refused(tmp_path):
    with pytest.raises(ImageError, match="label 2, expected 0 to 1"):
        write_mask_png(tmp_path / "mask.png", np.full((16, 16), 2, np.uint8))
    with pytest.raises(ImageError, match="float64"):
        write_mask_png(tmp_path / "mask.png", np.zeros((16, 16)))
    assert not list(tmp_path.iterdir())


def test_an_overlay_tints_the_labels_draws_their_contour_and_leaves_the_rest_grey(tmp_path):
    pixels = gradient(np.uint16, (80, 120))
    labels = np.zeros((80, 120), np.uint8)
    labels[10:40, 5:60] = 1
    labels[50:80, 70:110] = 2
    write_overlay_png(tmp_path / "overlay.png", pixels, labels)
    with Image.open(tmp_path / "overlay.png") as image:
        overlay = np.asarray(image)
    assert overlay.shape == (80, 120, 3)
    assert (np.ptp(overlay[labels == 0].astype(int), axis=1) == 0).all()
    assert tuple(overlay[10, 5]) == OVERLAY_COLORS[0]
    assert tuple(overlay[50, 70]) == OVERLAY_COLORS[1]
    # The second region runs out of the image: no contour along the edge.
    assert tuple(overlay[79, 90]) != OVERLAY_COLORS[1]
    tint = overlay[25, 30].astype(int)
    assert tint[0] > tint[2]
    # Same orientation as the source, brighter downwards.
    assert overlay[70, 2, 0] > overlay[5, 2, 0]


def test_an_overlay_of_another_size_is_refused(tmp_path):
    with pytest.raises(ImageError, match="same size"):
        write_overlay_png(tmp_path / "overlay.png", gradient(), np.zeros((24, 41), np.uint8))


def test_a_real_film_is_read_and_its_overlay_written(lungs, tmp_path):
    name = sorted(path.name for path in (lungs / "images").iterdir())[0]
    source = read_image(lungs / "images" / name)
    mask = (read_image(lungs / "masks" / name).pixels > 127).astype(np.uint8)
    write_overlay_png(tmp_path / "overlay.png", source.pixels, mask)
    assert read_image(lungs / "images" / name).pixels.shape == (512, 512)
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
