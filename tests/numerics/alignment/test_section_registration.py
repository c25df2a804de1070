"""Pairs of sections that were moved by a known transform."""

from __future__ import annotations

import numpy as np
import pytest
from make_phantoms import SectionStack, make_section_stack

from kbrain_core.errors import InputError
from kbrain_core.numerics.alignment import plane_transforms as pt
from kbrain_core.numerics.alignment.section_features import prepare_section, tissue_mask
from kbrain_core.numerics.alignment.section_keypoints import consensus
from kbrain_core.numerics.alignment.section_linking import chance_threshold
from kbrain_core.numerics.alignment.section_registration import (
    METHODS,
    Method,
    check_method,
    mirrored,
    register_sections,
)


@pytest.fixture(scope="module")
def moved() -> SectionStack:
    """Moved by up to 5 degrees and 30 px, with new contrast; what moves out of the field is lost."""
    return make_section_stack(count=3, size=384, seed=3)


@pytest.fixture(scope="module")
def wafer() -> SectionStack:
    """Round tissue at any angle on a field of resin."""
    return make_section_stack(count=3, size=320, field_size=640, max_angle_deg=180, max_shift_px=150, seed=5)


def error_px(stack: SectionStack, first: int, second: int, found: pt.Floats) -> float:
    """Mean distance over the tissue between a link and the truth."""
    true = pt.compose(stack.transforms[second], pt.invert(stack.transforms[first]))
    points = np.argwhere(stack.tissue)[::331].astype(float)
    return pt.mean_distance(found, true, pt.apply(stack.transforms[first], points))


@pytest.mark.parametrize("method", METHODS)
def test_finds_small_motion(moved: SectionStack, method: Method) -> None:
    one, two = prepare_section(moved.images[0]), prepare_section(moved.images[1])
    link = register_sections(one, two, method=method)
    assert link is not None
    # Neighbours differ by 12 % of new structure, which moves the best correlation by 0.15 px on 768^2 px, and by twice that
    # on the quarter of it that these tests have time for. Key points are localised to about a pixel of their scale.
    assert error_px(moved, 0, 1, link.fixed_to_moving) < (1.0 if method == "sift" else 0.35)
    assert link.significance > 20


@pytest.mark.parametrize("method", METHODS)
def test_finds_any_angle_and_place(wafer: SectionStack, method: Method) -> None:
    sections = [prepare_section(image) for image in wafer.images]
    for first in (0, 1):
        link = register_sections(sections[first], sections[first + 1], method=method)
        assert link is not None
        assert error_px(wafer, first, first + 1, link.fixed_to_moving) < (4.0 if method == "sift" else 0.4)


@pytest.mark.parametrize("model", ["similarity", "affine"])
def test_wider_models_find_a_swollen_section(moved: SectionStack, model: pt.Model) -> None:
    import cv2

    grow = np.column_stack([pt.rotation(0.03, 1.02), [-3.0, 4.0]])
    if model == "affine":
        grow[0, 0] *= 1.015
    shown = pt.invert(grow)[::-1][:, [1, 0, 2]].copy()
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    grown = cv2.warpAffine(moved.images[0], shown, moved.images[0].shape[::-1], flags=flags)
    link = register_sections(prepare_section(moved.images[0]), prepare_section(grown), model=model)
    assert link is not None
    # The same section: only interpolation is between them.
    assert pt.mean_distance(link.fixed_to_moving, grow, pt.box_points((384, 384))) < 0.05


def test_translation_does_not_turn(moved: SectionStack) -> None:
    one = prepare_section(moved.images[0][:300, :300])
    two = prepare_section(moved.images[0][40:340, 25:325])
    link = register_sections(one, two, model="translation")
    assert link is not None
    np.testing.assert_allclose(link.fixed_to_moving, [[1, 0, -40], [0, 1, -25]], atol=0.05)


def test_a_right_start_gives_the_same_answer(moved: SectionStack) -> None:
    one, two = prepare_section(moved.images[0]), prepare_section(moved.images[1])
    searched = register_sections(one, two)
    assert searched is not None
    start = pt.compose(pt.rigid(0.01, (2.0, -3.0), (192, 192)), searched.fixed_to_moving)
    started = register_sections(one, two, start=start)
    wrong = register_sections(one, two, start=pt.rigid(2.0, (100.0, 90.0)))
    assert started is not None and wrong is not None
    # Both end where a step moves no corner by more than 0.01 px.
    for found in (started, wrong):
        assert (
            pt.mean_distance(found.fixed_to_moving, searched.fixed_to_moving, pt.box_points((384, 384)))
            < 0.03
        )


def test_chance_is_told_from_truth(moved: SectionStack) -> None:
    sections = [prepare_section(image) for image in moved.images]
    chances = []
    for one, two in ((0, 1), (1, 2)):
        false = register_sections(sections[one], mirrored(sections[two]))
        chances.append(0.0 if false is None else false.significance)
    true = register_sections(sections[0], sections[1])
    assert true is not None
    assert chance_threshold(chances) < true.significance / 2


def test_blank_sections_are_not_registered(moved: SectionStack) -> None:
    section = prepare_section(moved.images[0])
    for empty in (
        np.zeros((384, 384), np.uint8),
        np.full((384, 384), 255, np.uint8),
        np.full((384, 384), 90.0),
    ):
        blank = prepare_section(empty)
        assert blank.blank
        assert register_sections(section, blank) is None


def test_canvas_borders_are_masked_and_dark_tissue_is_not(moved: SectionStack) -> None:
    image = np.zeros((500, 520), np.uint8)
    tissue = np.maximum(moved.images[0], 1)
    tissue[100:110, 0:20] = 0  # a dark vessel at the tissue's edge, as black as the canvas but inside
    tissue[200, 200] = 0
    image[60:444, 70:454] = tissue
    mask = tissue_mask(image)
    assert not mask[:60].any() and not mask[:, :70].any()
    assert mask[260, 270] == 1
    assert mask[60:444, 70:454].mean() > 0.99


def test_borders_do_not_hold_a_section_in_place(moved: SectionStack) -> None:
    """Two sections pasted at one place of a black canvas: the border's agreement must not win over the tissue's."""
    sections = []
    for image in moved.images[:2]:
        canvas = np.zeros((600, 600), np.uint8)
        canvas[100:484, 100:484] = np.maximum(image, 1)
        sections.append(prepare_section(canvas))
    link = register_sections(*sections)
    assert link is not None
    back = np.array([[1.0, 0, -100], [0, 1, -100]])
    found = pt.compose(back, pt.compose(link.fixed_to_moving, pt.invert(back)))
    assert error_px(moved, 0, 1, found) < 0.35


def test_consensus_finds_one_match_in_ten() -> None:
    rng = np.random.default_rng(1)
    source = rng.uniform(0, 400, (300, 2))
    true = pt.rigid(2.0, (30.0, -50.0), (200, 200))
    target = rng.uniform(0, 400, (300, 2))
    target[:30] = pt.apply(true, source[:30]) + rng.normal(0, 0.5, (30, 2))
    found = consensus(source, target, "rigid", tolerance_px=4)
    assert found is not None
    # Thirty matches of 0.5 px each leave 0.1 px of shift and a little of turn.
    assert pt.mean_distance(found, true, pt.box_points((400, 400))) < 0.5
    assert consensus(source[30:], target[30:], "rigid", tolerance_px=1.0) is None


def test_fourier_refuses_models_it_cannot_find() -> None:
    with pytest.raises(InputError, match="fourier finds translation or rigid, not affine"):
        check_method("fourier", "affine")
