"""The sheet of the worst images: what is drawn where, in which colour, and that it appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.cli.main import main
from unetx_opt.errors import ImageError
from unetx_opt.imaging.contact_sheet import (
    FOUND_COLOR,
    TRUTH_COLOR,
    SheetText,
    Tile,
    draw_contact_sheet,
    write_contact_sheet,
)

TEXT = SheetText("title", "subtitle", "footer")
# Where the first tile lies, and how far the next ones are: read off the sheets that the function draws.
TILE_PX = 400


def make_tile(
    truth: Any, found: Any, name: str = "a.png", spacing_mm: tuple[float, float] | None = None, grey: int = 0
) -> Tile:
    pixels = np.full(truth.shape, grey, dtype=np.uint8)
    pixels[0, 0], pixels[0, -1] = 0, 255
    return Tile(pixels, truth.astype(np.uint8), found.astype(np.uint8), name, "Dice 0.5", spacing_mm)


def box(rows: slice, columns: slice, shape: tuple[int, int] = (200, 200)) -> Any:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def first_tile(sheet: Any) -> Any:
    """The pixels inside the frame of the first tile: the frame is the first long line of one colour."""
    column = np.flatnonzero((sheet[:, :, 0] == 52).sum(axis=0) > TILE_PX)[0] + 1
    row = np.flatnonzero((sheet[:, :, 0] == 52).sum(axis=1) > TILE_PX)[0] + 1
    return sheet[row : row + TILE_PX, column : column + TILE_PX].astype(int)


def near(pixels: Any, color: tuple[int, int, int], slack: int = 12) -> Any:
    return (np.abs(pixels - np.array(color)) <= slack).all(axis=-1)


def test_the_contour_of_the_data_set_is_blue_and_that_of_the_model_orange() -> None:
    truth, found = box(slice(40, 160), slice(20, 90)), box(slice(40, 160), slice(120, 180))
    tile = first_tile(draw_contact_sheet([make_tile(truth, found)], TEXT))
    # Twice as large as the mask: left edges at 40 and 240, right ones at 180 and 360.
    row = tile[200]
    assert near(row[38:43], TRUTH_COLOR).any()
    assert near(row[178:183], TRUTH_COLOR).any()
    assert near(row[238:243], FOUND_COLOR).any()
    assert near(row[358:363], FOUND_COLOR).any()
    assert not near(tile[:, 195:225], TRUTH_COLOR).any()
    assert not near(tile[:, 195:225], FOUND_COLOR).any()


def test_what_was_missed_is_tinted_blue_what_was_added_orange_and_what_agrees_not_at_all() -> None:
    truth, found = box(slice(20, 180), slice(20, 120)), box(slice(20, 180), slice(80, 180))
    tile = first_tile(draw_contact_sheet([make_tile(truth, found)], TEXT))
    missed, agreed, added = tile[200, 100], tile[200, 200], tile[200, 300]
    assert agreed.tolist() == [0, 0, 0]
    assert missed[2] > missed[1] > missed[0] > 0
    assert added[0] > added[1] > added[2] >= 0
    assert added[0] > 50


def test_contours_that_agree_show_both_colours() -> None:
    mask = box(slice(40, 160), slice(40, 160))
    row = first_tile(draw_contact_sheet([make_tile(mask, mask)], TEXT))[200, 70:90]
    assert near(row, FOUND_COLOR, 40).any()
    assert near(row, TRUTH_COLOR, 40).sum() >= 2


def test_the_border_between_two_classes_is_drawn() -> None:
    labels = box(slice(20, 180), slice(20, 100))
    labels[20:180, 100:180] = 2
    row = first_tile(draw_contact_sheet([make_tile(labels, labels * 0)], TEXT))[200]
    assert near(row[197:204], TRUTH_COLOR).any()


def test_a_region_at_the_edge_of_the_image_has_no_line_along_it() -> None:
    everything = box(slice(None), slice(None))
    tile = first_tile(draw_contact_sheet([make_tile(everything, everything)], TEXT))
    assert not near(tile, TRUTH_COLOR, 60).any()


def test_a_known_spacing_gives_an_image_its_proportions() -> None:
    mask = box(slice(None), slice(None), (100, 100))
    wide = first_tile(draw_contact_sheet([make_tile(mask, mask * 0, spacing_mm=(0.1, 0.2))], TEXT))
    tinted = near(wide, (33, 68, 89), 6)
    rows, columns = np.flatnonzero(tinted.any(axis=1)), np.flatnonzero(tinted.any(axis=0))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (TILE_PX // 2, TILE_PX)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 2, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (12, 4, 3)])
def test_tiles_fill_rows_of_up_to_four(count: int, columns: int, rows: int) -> None:
    mask = box(slice(5, 9), slice(5, 9), (32, 32))
    one = draw_contact_sheet([make_tile(mask, mask)] * 4, TEXT)
    sheet = draw_contact_sheet([make_tile(mask, mask)] * count, TEXT)
    step = (one.shape[1] - 24) // 4
    assert sheet.shape[1] == 24 + columns * step
    assert (sheet.shape[0] - one.shape[0]) % (rows - 1 or 1) == 0
    assert (sheet.shape[0] > one.shape[0]) == (rows > 1)


def test_a_long_name_stays_within_its_tile() -> None:
    mask = box(slice(5, 9), slice(5, 9), (32, 32))
    names = ["w" * 150 + ".png", "b.png"]
    sheet = draw_contact_sheet([make_tile(mask, mask, name) for name in names], TEXT)
    gap = sheet[:, 24 + TILE_PX + 2 : 24 + TILE_PX + 22]
    assert len(np.unique(gap[140:].reshape(-1, 3), axis=0)) == 1


def test_images_are_drawn_one_at_a_time() -> None:
    mask, alive = box(slice(5, 9), slice(5, 9), (32, 32)), []

    def tiles() -> Any:
        for index in range(3):
            tile = make_tile(mask, mask, f"{index}")
            alive.append(index)
            yield tile

    assert draw_contact_sheet(tiles(), TEXT).dtype == np.uint8
    assert alive == [0, 1, 2]


def test_masks_of_another_size_and_empty_sheets_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    mask = box(slice(5, 9), slice(5, 9), (32, 32))
    with pytest.raises(ImageError, match=r"b\.png: image and masks are"):
        write_contact_sheet(tmp_path / "x.png", [make_tile(mask, mask), make_tile(mask, mask[:30], "b.png")], TEXT)
    with pytest.raises(ImageError, match="expected at least one"):
        write_contact_sheet(tmp_path / "x.png", [], TEXT)
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_the_worst_images_first(
    phantoms: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from unetx_opt.cli import evaluation_sheet

    drawn: list[tuple[Tile, ...]] = []
    real: Callable[..., None] = evaluation_sheet.write_contact_sheet

    def watch(path: Path, tiles: Any, text: SheetText) -> None:
        drawn.append(tuple(tiles))
        real(path, drawn[-1], text)

    monkeypatch.setattr(evaluation_sheet, "write_contact_sheet", watch)
    sheet, masks = tmp_path / "sheet.png", tmp_path / "masks"
    arguments = ["--checkpoint", checkpoint, "--data", phantoms, "--contact-sheet", sheet, "--worst", "3"]
    assert main(["evaluate", *map(str, arguments), "--save-masks", str(masks), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in document["per_image"]}
    (tiles,) = drawn
    assert [tile.name for tile in tiles] == document["worst_first"][:3]
    for tile in tiles:
        assert np.array_equal(tile.found * 255, np.array(Image.open(masks / tile.name)))
        assert np.array_equal(tile.truth * 255, np.array(Image.open(phantoms / "masks" / tile.name)))
        assert tile.caption == f"Dice {rows[tile.name]['dice']:.4f}   HD95 {rows[tile.name]['hd95_px']:.1f} px"
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert image.width == 24 + 3 * (TILE_PX + 24)
        assert not image.info
