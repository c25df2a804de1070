"""Draw the icons of the Galaxy tools: `python docs/make_icons.py` writes tools/<tool>/icon.png."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

TOOLS = Path(__file__).parents[1] / "tools"
SIZE, SCALE = 128, 4  # drawn four times as large, then shrunk: smooth edges
COLOURS = {"ingest": "#00796b", "storage": "#5e35b1", "processing": "#1565c0", "visualization": "#c0570c"}
WHITE, PALE = "#ffffff", "#ffffff70"

Draw = ImageDraw.ImageDraw


def box(
    draw: Draw, x: float, y: float, width: float, height: float, fill: str | None, outline: str | None = None
) -> None:
    """A box in percent of the icon."""
    unit = SIZE * SCALE / 100
    corners = (x * unit, y * unit, (x + width) * unit, (y + height) * unit)
    draw.rounded_rectangle(corners, 2 * unit, fill, outline, round(3 * unit))


def line(draw: Draw, *points: float, fill: str = WHITE, width: float = 4) -> None:
    """A line through points (x, y, x, y, ...) in percent of the icon."""
    unit = SIZE * SCALE / 100
    draw.line([value * unit for value in points], fill, round(width * unit), joint="curve")


def sort_tiles(draw: Draw) -> None:
    """A grid of tiles, of which one is missing."""
    for row in range(3):
        for col in range(3):
            x, y = 20 + 21 * col, 20 + 21 * row
            box(draw, x, y, 18, 18, None if (row, col) == (1, 2) else WHITE, WHITE)


def convert_image(draw: Draw) -> None:
    """A picture that becomes a stack."""
    box(draw, 16, 36, 26, 28, WHITE)
    line(draw, 46, 50, 58, 50)
    line(draw, 53, 44, 59, 50, 53, 56)
    for step in (12, 6, 0):
        box(draw, 62 + step / 2, 30 + step, 20, 28, WHITE if step == 12 else PALE, WHITE)


def correct_illumination(draw: Draw) -> None:
    """A lamp: a disk with rays."""
    unit = SIZE * SCALE / 100
    draw.ellipse([35 * unit, 35 * unit, 65 * unit, 65 * unit], WHITE)
    for points in ((50, 16, 50, 27), (50, 73, 50, 84), (16, 50, 27, 50), (73, 50, 84, 50)):
        line(draw, *points, width=5)
    for points in ((26, 26, 34, 34), (74, 26, 66, 34), (26, 74, 34, 66), (74, 74, 66, 66)):
        line(draw, *points, width=5)


def stitch_tiles(draw: Draw) -> None:
    """Tiles that overlap."""
    for x, y in ((18, 22), (46, 18), (21, 50), (49, 47)):
        box(draw, x, y, 33, 33, PALE, WHITE)


def align_sections(draw: Draw) -> None:
    """Sections, one above the other, and the axis through them."""
    unit = SIZE * SCALE / 100
    for y in (62, 44, 26):
        corners = [(18, y + 8), (40, y - 4), (82, y + 2), (60, y + 16)]
        draw.polygon([(a * unit, b * unit) for a, b in corners], PALE, WHITE)
        line(draw, *[value for corner in (*corners, corners[0]) for value in corner], width=3)
    line(draw, 50, 12, 50, 88, width=3)


def precompute_volume(draw: Draw) -> None:
    """A pyramid of resolution levels."""
    for x, y, side, cells in ((18, 60, 64, 4), (30, 37, 40, 2), (41, 18, 18, 1)):
        for cell in range(cells):
            box(draw, x + cell * side / cells, y, side / cells - 2, 20 if cells > 1 else 16, WHITE)


def export_image(draw: Draw) -> None:
    """A plane that leaves a box."""
    line(draw, 20, 50, 20, 80, 80, 80, 80, 50, width=5)
    line(draw, 50, 66, 50, 22, width=5)
    line(draw, 36, 36, 50, 21, 64, 36, width=5)


def view_volume(draw: Draw) -> None:
    """An eye."""
    unit = SIZE * SCALE / 100
    draw.ellipse([10 * unit, 27 * unit, 90 * unit, 73 * unit], WHITE)
    draw.ellipse([36 * unit, 36 * unit, 64 * unit, 64 * unit], COLOURS["visualization"])
    draw.ellipse([45 * unit, 45 * unit, 55 * unit, 55 * unit], WHITE)


ICONS: dict[str, tuple[Callable[[Draw], None], ...]] = {
    "ingest": (sort_tiles, convert_image),
    "storage": (precompute_volume, export_image),
    "processing": (correct_illumination, stitch_tiles, align_sections),
    "visualization": (view_volume,),
}


def main() -> None:
    """Draw all icons."""
    for step, glyphs in ICONS.items():
        for glyph in glyphs:
            image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), COLOURS[step])
            glyph(ImageDraw.Draw(image, "RGBA"))
            shape = Image.new("L", image.size, 0)
            corners = (0, 0, SIZE * SCALE - 1, SIZE * SCALE - 1)
            ImageDraw.Draw(shape).rounded_rectangle(corners, 20 * SCALE, 255)
            image.putalpha(shape)
            small = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            small.save(TOOLS / glyph.__name__ / "icon.png", optimize=True)


if __name__ == "__main__":
    main()
