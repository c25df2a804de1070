from __future__ import annotations

import numpy as np
import pytest

from kbrain_core.numerics.stitching.tile_graph import fit_stage, neighbour_pairs, solve_positions


def grid(rows: int, cols: int, step: float = 450.0) -> tuple[np.ndarray, np.ndarray]:
    """Nominal positions and parities of a grid."""
    cells = np.array([(0, row, col) for row in range(rows) for col in range(cols)], float)
    return cells * step, cells[:, 1:] % 2


def measured(rows, cols, *, seed=0, jitter=15.0, noise=0.02, stage=lambda nominal, parity: nominal):
    """A grid with true positions, its links and their measured offsets."""
    nominal, parity = grid(rows, cols)
    rng = np.random.default_rng(seed)
    true = stage(nominal, parity)
    true[:, 1:] += rng.uniform(-jitter, jitter, (len(true), 2))
    links = neighbour_pairs(nominal, np.tile([1.0, 512, 512], (len(nominal), 1)))
    offsets = true[links[:, 1]] - true[links[:, 0]]
    offsets[:, 1:] += rng.normal(0, noise, (len(links), 2))
    return nominal, parity, true, links, offsets


def errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    difference = found - true
    return np.linalg.norm(difference - np.median(difference, axis=0), axis=1)


def test_neighbours_of_a_grid_share_a_side():
    nominal, _ = grid(3, 4)
    pairs = neighbour_pairs(nominal, np.tile([1.0, 512, 512], (12, 1)))
    expected = {(r * 4 + c, r * 4 + c + 1) for r in range(3) for c in range(3)}
    expected |= {(r * 4 + c, (r + 1) * 4 + c) for r in range(2) for c in range(4)}
    assert {tuple(pair) for pair in pairs.tolist()} == expected


def test_neighbours_of_unequal_tiles_and_a_tile_at_a_corner():
    corners = np.array([[0, 0, 0], [0, 0, 450], [0, 470, 800], [0, 0, 5000]], float)
    sizes = np.array([[1, 512, 512], [1, 512, 400], [1, 300, 300], [1, 512, 512]], float)
    # the third meets the second by a corner of 42 x 50 px only; the fourth meets nobody
    assert neighbour_pairs(corners, sizes).tolist() == [[0, 1], [1, 2]]


def test_solution_averages_the_noise_of_links():
    nominal, parity, true, links, offsets = measured(6, 6)
    solution = solve_positions(nominal, parity, links, offsets, np.ones(len(links)))
    # links are good to 0.02 px; a loop of the grid averages a few of them
    assert errors(solution.positions, true).max() < 0.05
    assert (solution.component == 0).all()


def test_one_wrong_link_in_ten_moves_nobody():
    nominal, parity, true, links, offsets = measured(6, 6, seed=4)
    wrong = np.random.default_rng(1).choice(len(links), 6, replace=False)
    offsets[wrong, 1:] += [[25, -18]]
    solution = solve_positions(nominal, parity, links, offsets, np.ones(len(links)))
    assert errors(solution.positions, true).max() < 0.1
    assert (solution.residuals[wrong] > 10).all()
    assert (solution.trust[wrong] < 0.05).all()


def test_a_tile_without_links_lies_where_the_fitted_stage_puts_it():
    angle = np.radians(1.0)
    turn = 1.01 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def stage(nominal, parity):
        moved = nominal.copy()
        moved[:, 1:] = nominal[:, 1:] @ turn.T
        moved[:, 2] += 12 * parity[:, 0]
        return moved

    nominal, parity, true, links, offsets = measured(7, 7, jitter=3, stage=stage)
    lone = 24
    kept = (links != lone).all(axis=1)
    solution = solve_positions(nominal, parity, links[kept], offsets[kept], np.ones(kept.sum()))
    difference = solution.positions - true
    ideal = stage(nominal, parity)[lone] - true[lone]
    misplaced = difference[lone] - np.median(difference, axis=0) - ideal
    # the stage is known to its jitter (3 px uniform) over the root of 48 tiles
    assert np.linalg.norm(misplaced) < 1.5
    assert solution.component[lone] == 1
    assert solution.stage.angle_deg == pytest.approx(1.0, abs=0.1)
    assert solution.stage.scale_yx == pytest.approx((1.01, 1.01), abs=0.002)
    assert solution.stage.row_backlash_px[1] == pytest.approx(12, abs=1.5)
    assert solution.stage.col_backlash_px == pytest.approx(0, abs=1e-9)


def test_components_keep_their_places_by_the_stage():
    nominal, parity, true, links, offsets = measured(4, 4, jitter=2)
    left = nominal[:, 2] < 800
    kept = left[links[:, 0]] == left[links[:, 1]]
    solution = solve_positions(nominal, parity, links[kept], offsets[kept], np.ones(kept.sum()))
    assert len(np.unique(solution.component)) == 2
    # the two halves are placed by the stage, each by 8 tiles with a jitter of 2 px
    assert errors(solution.positions, true).max() < 4


def test_no_links_at_all_leave_the_stage():
    nominal, parity = grid(2, 2)
    empty = np.empty((0, 2), np.int64)
    solution = solve_positions(nominal, parity, empty, np.empty((0, 3)), np.empty(0))
    np.testing.assert_allclose(solution.positions, nominal, atol=1e-6)


def test_a_single_row_keeps_the_nominal_step_of_the_other_axis():
    nominal, parity = grid(1, 8)
    positions = nominal * [1, 1, 1.02]
    model = fit_stage(nominal, parity, positions, np.zeros(8, int))
    assert model.scale_yx[1] == pytest.approx(1.02, abs=1e-4)
    assert model.scale_yx[0] == pytest.approx(1.0, abs=1e-6)


def test_two_columns_show_no_backlash_of_columns():
    nominal, parity, true, _, _ = measured(7, 2, jitter=1, seed=2)
    model = fit_stage(nominal, parity, true * [1, 1.003, 1], np.zeros(14, int))
    assert (model.col_backlash_px == 0).all()
