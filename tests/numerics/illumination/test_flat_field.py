"""Flat field and dark level against planted ones."""

from __future__ import annotations

import numpy as np
import pytest
from make_phantoms import Camera, make_tile_grid

from kbrain_core.numerics.illumination.fixed_pattern import fixed_pattern, pattern_of_plane
from kbrain_core.numerics.illumination.flat_field import (
    DarkLevel,
    estimate_dark,
    estimate_shading,
    fit_surface,
    full_field,
    is_usable,
    span_percent,
    thumbnail,
)

DARK = DarkLevel(Camera().dark * Camera().white, None, "planted")


def planted_shading(size: int) -> np.ndarray:
    """The phantom camera's vignette without its dust, mean 1."""
    field = Camera(dust=0).flat_field((size, size), 0)
    return np.asarray(field / field.mean())


def thumbnails(kind: str, rows: int, cols: int, size: int, **options: object) -> np.ndarray:
    """Thumbnails of a phantom grid in the shuffled order that the estimate expects."""
    grid = make_tile_grid(rows=rows, cols=cols, size=size, overlap=0.12, kind=kind, **options)
    stack = np.stack([thumbnail(tile.image[0, 0]) for tile in grid.tiles])
    return stack[np.random.default_rng(0).permutation(len(stack))]


@pytest.fixture(scope="module")
def em() -> np.ndarray:
    return thumbnails("em", 6, 6, 1024)


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return thumbnails("nuclei", 6, 6, 512)


def residual_percent(field: np.ndarray, size: int) -> float:
    """What is left of the planted vignette, as the docs state it: (max - min) / mean over the field."""
    return span_percent(field / thumbnail(planted_shading(size)))


def test_vignette_of_35_percent_leaves_less_than_2(em: np.ndarray, nuclei: np.ndarray) -> None:
    # The project's own limit. The planted vignette spans 38.5 % of its mean; 30 % of the nuclei's area is empty.
    for stack, size in ((em, 1024), (nuclei, 512)):
        shading = estimate_shading(stack, DARK)
        assert shading.shading_percent == pytest.approx(38.5, abs=3)
        assert residual_percent(shading.field, size) < 2.0


def test_nine_tiles_of_crowded_content_leave_less_than_five_percent(em: np.ndarray) -> None:
    # Nine tiles hold a quarter of the content of 36, so twice the error is expected.
    shading = estimate_shading(em[:9], DARK)
    assert residual_percent(shading.field, 1024) < 5.0
    assert shading.residual_percent > 2.0  # and the estimate knows that it is not good enough to pass


def test_expected_residual_is_near_the_true_one(em: np.ndarray) -> None:
    for count in (12, 24, 36):
        shading = estimate_shading(em[:count])
        true = residual_percent(shading.field, 1024)
        # Halves differ by chance, and shrinking hides what both lack: a factor of 2.5 is how good it gets.
        assert true / 2.5 < shading.residual_percent < true * 2.5


def test_sections_of_one_site_do_not_count_as_many(em: np.ndarray) -> None:
    # Six copies of six tiles know no more than six tiles; taken for 36 they would seem to agree perfectly.
    copies = np.repeat(em[:6], 6, axis=0)
    sites = np.repeat(np.arange(6), 6)
    assert estimate_shading(copies, DARK, sites).residual_percent > 2.0


def test_even_field_stays_even() -> None:
    stack = thumbnails("em", 4, 4, 512, camera=Camera(vignetting=0.0, dust=0))
    # 16 tiles of 512^2 hold an eighth of the content of the grid above: its 2 % grow by sqrt(8).
    assert span_percent(fit_surface(stack - np.float32(DARK.level))) < 6.0


def test_blank_tiles_give_the_dark_level(nuclei: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    blanks = (DARK.level + rng.normal(0, 0.2, (2, 64, 64))).astype(np.float32)
    found = estimate_dark(nuclei, blanks)
    assert found is not None
    # Noise of 0.2 in 8192 pixels moves their median by 0.003.
    assert found.level == pytest.approx(DARK.level, abs=0.02)


def test_blank_tiles_with_light_are_not_taken_for_dark(nuclei: np.ndarray) -> None:
    glowing = np.repeat((30 * thumbnail(planted_shading(512)))[None], 2, axis=0)
    found = estimate_dark(nuclei, glowing)
    assert found is None or not found.of_blanks


def test_dark_level_that_cannot_be_told_is_not_invented(em: np.ndarray) -> None:
    # Crowded content without background: content and background are the same thing.
    assert estimate_dark(em) is None


def test_bright_content_tells_the_dark_level() -> None:
    # Light of background 40 and of content 0..400, both through the same vignette, above a dark level of 100. Content is
    # the same everywhere in the field but for noise, so the 5 % that the estimate states must hold well.
    rng = np.random.default_rng(2)
    shading = thumbnail(planted_shading(512))
    content = 40 + 400 * (rng.random((60, 64, 64)) < 0.2) * rng.random((60, 64, 64))
    found = estimate_dark((100 + content * shading).astype(np.float32))
    assert found is not None
    assert found.error is not None
    assert found.level == pytest.approx(100, abs=4 * found.error + 0.5)
    assert found.error < 4


def test_error_of_the_dark_level_counts(nuclei: np.ndarray) -> None:
    sure = estimate_shading(nuclei, DARK)
    unsure = estimate_shading(nuclei, DarkLevel(DARK.level, 3.0, "guessed"))
    assert unsure.residual_percent > sure.residual_percent + 5.0  # 3 of a light of 12, times 39 %


def test_too_few_planes_are_refused(em: np.ndarray) -> None:
    with pytest.raises(ValueError, match="5 usable places of the sample, at least 6"):
        estimate_shading(em[:5])


def test_one_stack_is_one_place(em: np.ndarray) -> None:
    # The planes of a single stack all show the same anatomy, which would be taken for shading.
    with pytest.raises(ValueError, match="1 usable places"):
        estimate_shading(em, DARK, np.zeros(len(em), int))


def test_enlarging_a_field_keeps_it() -> None:
    large = planted_shading(700)
    # The exponential of a polynomial of degree 6 follows a parabola to 3e-4, averages over a grid cell to 1e-4.
    assert np.abs(full_field(thumbnail(large), (700, 700)) / large - 1).max() < 5e-4


@pytest.mark.parametrize(
    ("plane", "usable"),
    [
        (np.zeros((64, 64), np.uint8), False),
        (np.full((64, 64), 255, np.uint8), False),
        (np.where(np.arange(4096).reshape(64, 64) % 4096 < 2000, 255, 10).astype(np.uint8), False),
        (np.full((64, 64), np.nan, np.float32), False),
        (np.arange(4096, dtype=np.uint16).reshape(64, 64), True),
    ],
)
def test_planes_that_cannot_teach_are_left_out(plane: np.ndarray, usable: bool) -> None:
    assert is_usable(plane, 255.0 if plane.dtype == np.uint8 else 65535.0) is usable


def test_dust_is_found_and_content_is_not() -> None:
    grid = make_tile_grid(rows=5, cols=5, size=512, overlap=0.12, kind="nuclei", camera=Camera(dust=12))
    smooth = planted_shading(512)
    total = None
    for tile in grid.tiles:
        one = pattern_of_plane((tile.image[0, 0] - np.float32(DARK.level)) / smooth)
        assert one is not None
        total = one if total is None else total + one
    assert total is not None
    pattern = fixed_pattern(total)
    true = grid.flat_field / Camera(dust=0).flat_field((512, 512), 0)
    dusty = true < 0.85
    before, after = np.abs(true[dusty] - 1).mean(), np.abs(true[dusty] / pattern[dusty] - 1).mean()
    assert after < 0.75 * before  # 25 noisy planes: most deep spots are found, faint ones stay
    assert np.mean(np.abs(pattern[true > 0.99] - 1) > 0.02) < 2e-3


def test_few_planes_give_no_dust() -> None:
    rng = np.random.default_rng(0)
    planes = [pattern_of_plane(rng.normal(100, 5, (64, 64)).astype(np.float32)) for _ in range(3)]
    total = planes[0]
    assert total is not None
    for one in planes[1:]:
        assert one is not None
        total = total + one
    assert np.all(fixed_pattern(total) == 1)


def test_planes_without_light_or_texture_say_nothing_of_dust() -> None:
    assert pattern_of_plane(np.zeros((32, 32), np.float32)) is None
    assert pattern_of_plane(np.full((32, 32), 5, np.float32)) is None
