"""Reports: whole, readable, and harmless whatever the labels say."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import imagecodecs
import numpy as np

from kbrain_core.report import Report, new_figure, overview_picture


def make_report() -> Report:
    report = Report("Stitch <script>alert(1)</script>", "Two & two.")
    report.verdict(False, "3 seams are off")
    report.figures({"error": "0.02 px"})
    report.text("How", "By *correlation*.")
    report.table("Tiles", ("name", "z"), [("a|b.tif", 1), (None, 2)])
    report.picture("Link map!", "Links <b>coloured</b>", np.arange(64, dtype=np.uint8).reshape(8, 8))
    figure = new_figure(3, 2)
    figure.subplots().plot([1, 3, 2])
    report.picture("curve", "A curve", figure)
    return report


def test_html_markdown_and_pictures(tmp_path: Path) -> None:
    make_report().write(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script>" not in html
    assert "FAIL" in html
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", html)]
    assert np.array_equal(imagecodecs.png_decode(pictures[0]), np.arange(64).reshape(8, 8))
    assert (tmp_path / "r_files" / "link-map.png").read_bytes() == pictures[0]
    markdown = (tmp_path / "r.md").read_text()
    assert "<script>" not in markdown.replace("\\<", "")
    assert "| error | 0.02 px |" in markdown
    assert "(r_files/curve.png)" in markdown


def test_overview_is_stretched_and_thinned() -> None:
    image = np.linspace(100, 200, 3000 * 10).reshape(3000, 10)
    picture = overview_picture(image, max_px=1000)
    assert picture.shape == (1000, 4)
    assert picture.min() == 0
    assert picture.max() == 255
    assert not overview_picture(np.full((5, 5), np.nan)).any()


def test_narrow_noisy_pictures_are_written(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4000, 3), dtype=np.uint8)
    report = Report("Narrow")
    report.picture("noise", "Noise", noise[:, ::2])
    report.write(tmp_path / "r.html")
    assert np.array_equal(
        imagecodecs.png_decode((tmp_path / "r_files" / "noise.png").read_bytes()), noise[:, ::2]
    )
