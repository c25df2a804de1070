"""Chains of links with planted errors, and the canvas they need."""

from __future__ import annotations

import numpy as np
import pytest

from kbrain_core.errors import InputError
from kbrain_core.numerics.alignment import plane_transforms as pt
from kbrain_core.numerics.alignment.section_canvas import Canvas, fit_canvas, interpolate_missing
from kbrain_core.numerics.alignment.section_chain import Chain, SectionLink, solve_chain
from kbrain_core.numerics.alignment.section_reference import hold_to_reference

COUNT = 40
POINTS = [pt.box_points((512, 512), 3)] * COUNT
ERROR_PX = 0.2


def planted(seed: int = 0) -> list[pt.Floats]:
    """Transforms from tissue to sections at any angle."""
    rng = np.random.default_rng(seed)
    return [pt.rigid(rng.uniform(-3, 3), (y, x), (256, 256)) for y, x in rng.uniform(-400, 400, (COUNT, 2))]


def make_links(
    truth: list[pt.Floats], bad: tuple[int, ...] = (), cut: int | None = None
) -> list[SectionLink]:
    """Links over one to three sections with 0.2 px of error; those of bad sections are anywhere; none cross the cut."""
    rng = np.random.default_rng(1)
    links = []
    for first in range(COUNT):
        for second in range(first + 1, min(first + 4, COUNT)):
            if cut is not None and first < cut <= second:
                continue
            transform = pt.compose(truth[second], pt.invert(truth[first]))
            noise = pt.rigid(rng.normal(0, ERROR_PX / 256), tuple(rng.normal(0, ERROR_PX, 2)), (256, 256))
            transform = pt.compose(noise, transform)
            if first in bad or second in bad:
                transform = pt.rigid(rng.uniform(-3, 3), tuple(rng.uniform(-300, 300, 2)), (256, 256))
            links.append(SectionLink(first, second, transform, 0.5))
    return links


def pair_error_px(truth: list[pt.Floats], chain: Chain, first: int, second: int) -> float:
    one, two = chain.to_aligned[first], chain.to_aligned[second]
    assert one is not None and two is not None
    found = pt.compose(pt.invert(two), one)
    return pt.mean_distance(found, pt.compose(truth[second], pt.invert(truth[first])), POINTS[0])


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine"])
def test_one_bad_section_does_not_break_the_chain(model: pt.Model) -> None:
    truth = planted()
    chain = solve_chain(POINTS, make_links(truth, bad=(12,)), model, link_error_px=ERROR_PX)
    # A link errs by 0.2 px in y, in x and at the rim, 0.3 px in all on average and 1 px at worst of 114; six links a section
    # leave less.
    assert pair_error_px(truth, chain, 11, 13) < 1.0
    errors = [pair_error_px(truth, chain, z, z + 1) for z in range(COUNT - 1) if z not in (11, 12)]
    assert np.median(errors) < 0.3
    assert max(errors) < 1.0
    # Errors add up like a random walk over the 38 sections, no faster.
    assert pair_error_px(truth, chain, 0, COUNT - 1) < 6


def test_bad_links_are_named() -> None:
    links = make_links(planted(), bad=(12,))
    chain = solve_chain(POINTS, links, "rigid", link_error_px=ERROR_PX)
    bad = np.array([12 in (link.first, link.second) for link in links])
    assert chain.kept[~bad].all()
    # A bad section is placed by one of its links, which then seems right; another may agree by chance.
    assert chain.kept[bad].sum() <= 2


def test_the_order_of_links_does_not_matter() -> None:
    links = make_links(planted(), bad=(12, 20))
    one = solve_chain(POINTS, links, "rigid", link_error_px=ERROR_PX)
    other = solve_chain(POINTS, links[::-1], "rigid", link_error_px=ERROR_PX)
    for first, second in zip(one.to_aligned, other.to_aligned, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(one.kept, other.kept[::-1])


def test_pieces_without_a_link_lie_as_they_were_imaged() -> None:
    truth = planted()
    chain = solve_chain(POINTS, make_links(truth, cut=20), "rigid", link_error_px=ERROR_PX)
    assert set(chain.component[:20]) == {0} and set(chain.component[20:]) == {1}
    np.testing.assert_allclose(chain.to_aligned[20], chain.to_aligned[19], atol=1e-9)
    assert pair_error_px(truth, chain, 20, 21) < 1.0


def test_a_section_no_link_reaches_has_no_place() -> None:
    links = [link for link in make_links(planted()) if 5 not in (link.first, link.second)]
    chain = solve_chain(POINTS, links, "rigid", link_error_px=ERROR_PX)
    assert chain.to_aligned[5] is None and chain.component[5] == -1
    assert solve_chain(POINTS, [], "rigid", link_error_px=ERROR_PX).to_aligned == [None] * COUNT


def test_a_reference_takes_out_drift_and_keeps_precision() -> None:
    """Sections in an arc of 60 px: the chain straightens it, a reference with errors of 2 px brings it back."""
    rng = np.random.default_rng(4)
    arc = [60 * (z / COUNT - 0.5) ** 2 * 4 for z in range(COUNT)]
    straight = [pt.rigid(0.3, (0.0, 7.0), (256, 256)) for _ in range(COUNT)]
    chain = Chain(list(straight), np.zeros(0), np.zeros(0, bool), [0] * COUNT)
    to_reference = {
        z: pt.rigid(0.1 + rng.normal(0, 0.004), (arc[z] + rng.normal(0, 2), rng.normal(0, 2)), (256, 256))
        for z in range(COUNT)
        if z not in (3, 30)
    }
    to_reference[17] = pt.rigid(2.0, (300.0, 100.0), (256, 256))  # a wrong one
    held = hold_to_reference(chain, POINTS, to_reference)
    centre = np.array([256.0, 256.0])
    places = np.array([pt.apply(transform, centre) for transform in held if transform is not None]) - centre
    assert len(places) == COUNT
    # Smoothing over about sixteen sections leaves under half of the reference's error ...
    assert np.abs(places[:, 0] - arc).max() < 2.0
    # ... and hardly any of it between neighbours, where the arc itself moves by up to 6 px.
    steps = np.diff(places[:, 0]) - np.diff(arc)
    assert np.abs(steps).mean() < 0.3


def test_missing_sections_lie_between_their_neighbours() -> None:
    centre = np.array([50.0, 50.0])
    before, after = (
        pt.rigid(np.deg2rad(170), (0.0, 0.0), (50, 50)),
        pt.rigid(np.deg2rad(-170), (10.0, 20.0), (50, 50)),
    )
    found = interpolate_missing([None, before, None, after, None], [centre] * 5)
    np.testing.assert_allclose(np.rad2deg(abs(pt.angle_of(found[2]))), 180, atol=1e-9)
    np.testing.assert_allclose(pt.apply(found[2], centre), [55, 60])
    np.testing.assert_allclose(found[0], before, atol=1e-9)
    np.testing.assert_allclose(found[4], after, atol=1e-9)


def test_the_canvas_holds_every_corner() -> None:
    transforms = [pt.identity(), pt.rigid(np.pi / 4, (10.0, -20.0), (49.5, 49.5))]
    canvas = fit_canvas(transforms, [(0, 0, 100, 100)] * 2)
    shift = -np.array(canvas.origin_yx)
    for transform in transforms:
        corners = pt.apply(transform, pt.box_points((100, 100), 2)) + shift
        assert (corners >= -1e-2).all() and (corners <= np.array(canvas.shape_yx) - 1 + 1e-2).all()
    assert fit_canvas([pt.identity()], [(0, 0, 100, 80)]) == Canvas((100, 80), (0, 0))


def test_a_section_far_off_is_named_instead_of_a_huge_canvas() -> None:
    far = np.array([[1.0, 0, 9000], [0, 1, 9000]])
    with pytest.raises(InputError, match=r"section 2 lies far off. Exclude it \(--exclude-section 2\)"):
        fit_canvas([pt.identity(), pt.identity(), far], [(0, 0, 100, 100)] * 3)


def test_nothing_to_align_is_an_error() -> None:
    with pytest.raises(InputError, match="No section is left"):
        fit_canvas([pt.identity()], [None])
