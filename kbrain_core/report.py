"""Reports a microscopist would show in a lab meeting: one HTML file, the same as Markdown, and the pictures as PNG."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .store import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Paragraph:
    """A heading and a text below it."""

    heading: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    heading: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    name: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as text for an HTML page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass
class Report:
    """A report under construction: title first, then the parts in the order they are added."""

    title: str
    summary: str = ""
    passed: bool | None = None
    verdict_line: str = ""
    key_figures: dict[str, str] = field(default_factory=dict)
    parts: list[Paragraph | Table | Picture] = field(default_factory=list)

    def verdict(self, passed: bool, line: str) -> None:
        """Set the one line that says whether the result can be trusted, and why."""
        self.passed, self.verdict_line = passed, line

    def figures(self, values: dict[str, str]) -> None:
        """Add key figures, label and value with its unit."""
        self.key_figures.update(values)

    def text(self, heading: str, paragraph: str) -> None:
        """Add a paragraph."""
        self.parts.append(Paragraph(heading, paragraph))

    def table(self, heading: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; cells are shown as text."""
        cells = tuple(tuple("" if cell is None else str(cell) for cell in row) for row in rows)
        self.parts.append(Table(heading, tuple(header), cells))

    def picture(self, name: str, caption: str, picture: Figure | NDArray[np.uint8] | bytes) -> None:
        """Add a picture: a matplotlib figure, an uint8 array (Y, X) or (Y, X, 3), or the bytes of a PNG.

        Parameters
        ----------
        name : str
            File name without ending; letters, digits and '-' are kept.
        caption : str
            What the picture shows and what to look for.
        picture : Figure, ndarray of uint8 or bytes
            The picture.
        """
        slug = re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-").lower()
        self.parts.append(Picture(slug, caption, _png(picture)))

    def write(self, html_path: Path) -> None:
        """Write `<name>.html`, `<name>.md` and `<name>_files/*.png`, each whole or not at all."""
        html_path.parent.mkdir(parents=True, exist_ok=True)
        files = html_path.with_name(html_path.stem + "_files")
        files.mkdir(exist_ok=True)
        for part in self.parts:
            if isinstance(part, Picture):
                _write(files / f"{part.name}.png", part.png)
        _write(html_path.with_suffix(".md"), self._markdown(files.name).encode())
        _write(html_path, self._html().encode())

    def _html(self) -> str:
        import jinja2

        loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        kinds = [(type(part).__name__, part) for part in self.parts]
        return environment.get_template("report.html").render(report=self, parts=kinds)

    def _markdown(self, files: str) -> str:
        lines = [f"# {_plain(self.title)}", "", _plain(self.summary), ""]
        if self.passed is not None:
            lines += [f"**{'PASS' if self.passed else 'FAIL'}**: {_plain(self.verdict_line)}", ""]
        if self.key_figures:
            lines += _markdown_table(("figure", "value"), list(self.key_figures.items()))
        for part in self.parts:
            if isinstance(part, Picture):
                lines += [f"![{_plain(part.caption)}]({files}/{part.name}.png)", "", _plain(part.caption), ""]
            else:
                lines += [f"## {_plain(part.heading)}", ""]
                lines += (
                    [_plain(part.text), ""]
                    if isinstance(part, Paragraph)
                    else _markdown_table(part.header, part.rows)
                )
        return "\n".join(lines)


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _plain(text: str) -> str:
    """Text from users as Markdown that shows it and does nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_plain, header)) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in rows), ""]


def _png(picture: Figure | NDArray[np.uint8] | bytes) -> bytes:
    if isinstance(picture, bytes):
        return picture
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
    import imagecodecs
    import numpy as np

    contiguous = np.ascontiguousarray(picture)
    # room for pictures so narrow and noisy that PNG makes them larger
    return bytes(imagecodecs.png_encode(contiguous, out=2 * contiguous.nbytes + 65536))


def new_figure(width_in: float = 8.0, height_in: float = 4.5) -> Figure:
    """A figure to draw into, without a window system; `figure.subplots()` gives axes.

    Parameters
    ----------
    width_in, height_in : float
        Size in inches; 8 x 4.5 fills the width of a report.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def overview_picture(image: NDArray[Any], max_px: int = 1200) -> NDArray[np.uint8]:
    """Grey picture of a 2D array: thinned to at most `max_px` a side, stretched between its 0.5th and 99.5th percentile.

    Parameters
    ----------
    image : (Y, X) ndarray
        Any numeric type; NaN is black.
    max_px : int
        Longest side of the picture.
    """
    import numpy as np

    step = max(1, -(-max(image.shape) // max_px))
    thinned = np.nan_to_num(np.asarray(image[::step, ::step], np.float32))
    low, high = np.percentile(thinned, (0.5, 99.5))
    stretched = (thinned - low) * (255.0 / max(float(high - low), 1e-9))
    picture: NDArray[np.uint8] = np.clip(np.rint(stretched), 0, 255).astype(np.uint8)
    return picture
