"""Section alignment: error, failures and CPU beside pystackreg, and on real sections moved by known transforms.

    python benchmarks/align.py

Error: mean distance over the tissue between a pair's transform and the planted one. Failure: over 15 px.
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import KBRAIN, PROJECT, Table, import_cost, measure_command

sys.path.insert(0, str(PROJECT / "test-data"))
from make_phantoms import SectionStack, make_section_stack, section_errors, write_sections
from peers import run_peer

FAILURE_PX = 15.0
SMALL = {"count": 30, "size": 768, "max_angle_deg": 5, "max_shift_px": 30}
WAFER = {"count": 30, "size": 768, "field_size": 1768, "max_angle_deg": 180, "max_shift_px": 500}
NEIGHBOURS = 3
ISBI = PROJECT.parent / "shared" / "data" / "isbi2012" / "image.tif"


def read_transforms(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = (("m_yy", "m_yx", "t_y_px"), ("m_xy", "m_xx", "t_x_px"))
    return np.array([[[float(row[name]) for name in line] for line in names] for row in rows])


def describe(errors: np.ndarray) -> tuple[str, str, int]:
    known = errors[np.isfinite(errors)]
    failures = int((known > FAILURE_PX).sum() + np.isnan(errors).sum())
    return f"{np.median(known):.3f}", f"{known.max():.3f}", failures


def ours(stack: SectionStack, folder: Path, work: Path) -> tuple[np.ndarray, float]:
    """Errors, and CPU seconds of the whole command (writing the volume included)."""
    table = work / "transforms.tsv"
    command = [KBRAIN, "align-sections", "--input", str(folder), "--output", str(work / "out.ome.zarr")]
    usage = measure_command(
        [*command, "--transforms-output", str(table), "--workers", "1"], env={"NUMBA_NUM_THREADS": "1"}
    )
    return section_errors(stack, read_transforms(table)), usage.cpu_s


def pair_cost_s(stack: SectionStack, method: str) -> tuple[np.ndarray, float]:
    """Errors of neighbours registered alone, and CPU seconds a pair: features of one section and one registration."""
    from kbrain_core.numerics.alignment import plane_transforms as pt
    from kbrain_core.numerics.alignment.section_features import prepare_section
    from kbrain_core.numerics.alignment.section_registration import register_sections

    points = np.argwhere(stack.tissue)[::997].astype(float)
    before = prepare_section(stack.images[0])
    register_sections(before, before, method=method)  # compiles
    errors = []
    started = time.process_time()
    for index in range(len(stack.images) - 1):
        after = prepare_section(stack.images[index + 1])
        link = register_sections(before, after, method=method)
        true = pt.compose(stack.transforms[index + 1], pt.invert(stack.transforms[index]))
        seen = pt.apply(stack.transforms[index], points)
        errors.append(np.nan if link is None else pt.mean_distance(link.fixed_to_moving, true, seen))
        before = after
    return np.array(errors), (time.process_time() - started) / len(errors)


def synthetic(table: Table) -> None:
    imports = import_cost(
        "numpy", "scipy.sparse", "cv2", "numba", "tensorstore", "tifffile", "skimage.filters"
    ).cpu_s
    for name, options in (("+-5 degrees, +-30 px", SMALL), ("+-180 degrees, +-500 px", WAFER)):
        stack = make_section_stack(**options, seed=1)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "sections"
            write_sections(stack, folder)
            errors, cpu_s = ours(stack, folder, Path(place))
            links = NEIGHBOURS * len(stack.images) - 6
            table.add(
                f"kbrain align-sections (whole command, {links} links)",
                name,
                *describe(errors),
                f"{(cpu_s - imports) / links:.2f}",
            )
            table.goal(f"Median error, {name} (px)", float(np.median(errors)), 0.25)
            table.goal(f"Failures, {name}", describe(errors)[2], 0)
            for method in ("ecc", "fourier", "sift"):
                alone, pair_s = pair_cost_s(stack, method)
                table.add(
                    f"kbrain, method {method}, neighbours alone", name, *describe(alone), f"{pair_s:.2f}"
                )
                if method == "ecc":
                    table.goal(f"CPU s a pair, {name}", pair_s, 0.5)
            usage, result = run_peer("pystackreg", "align_pystackreg.py", folder)
            peer = section_errors(stack, np.array(result["transforms"]))
            table.add(
                "pystackreg, rigid", name, *describe(peer), f"{usage.cpu_s / (len(stack.images) - 1):.2f}"
            )


def real(table: Table) -> None:
    """ISBI sections, each next one moved; the truth of a pair is the stack's own, as good as its makers aligned it."""
    if not ISBI.is_file():
        table.note(f"Real sections: NOT RUN, {ISBI.name} is not beside the checkout.")
        return
    import cv2
    import tifffile

    from kbrain_core.numerics.alignment import plane_transforms as pt
    from kbrain_core.numerics.alignment.correlation_refinement import correlate
    from kbrain_core.numerics.alignment.section_features import prepare_section
    from kbrain_core.numerics.alignment.section_registration import register_sections

    sections = tifffile.imread(ISBI)
    points = pt.box_points((512, 512))
    for name, angle, shift in (("+-5 degrees, +-30 px", 5, 30), ("+-180 degrees, +-100 px", 180, 100)):
        rng = np.random.default_rng(5)
        by_stack, by_unmoved, still_pairs = [], [], []
        started = time.process_time()
        for index, (fixed, moving) in enumerate(itertools.pairwise(sections)):
            move = pt.rigid(
                np.deg2rad(rng.uniform(-angle, angle)), tuple(rng.uniform(-shift, shift, 2)), (255.5, 255.5)
            )
            shown = pt.invert(move)[::-1][:, [1, 0, 2]].copy()
            moved = cv2.warpAffine(moving, shown, (512, 512), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
            one = prepare_section(fixed)
            found = register_sections(one, prepare_section(moved))
            two = prepare_section(moving)
            still = register_sections(one, two)
            if found is None or still is None:
                by_stack.append(np.nan)
                by_unmoved.append(np.nan)
                continue
            by_stack.append(pt.mean_distance(found.fixed_to_moving, move, points))
            own = pt.compose(move, still.fixed_to_moving)
            still_pairs.append((index, one, two, still))
            by_unmoved.append(pt.mean_distance(found.fixed_to_moving, own, points))
        pair_s = (time.process_time() - started) / (2 * len(by_stack))
        table.add(
            "kbrain on ISBI, against the stack as published",
            name,
            *describe(np.array(by_stack)),
            f"{pair_s:.2f}",
        )
        table.add(
            "kbrain on ISBI, against the same pair unmoved",
            name,
            *describe(np.array(by_unmoved)),
            f"{pair_s:.2f}",
        )
        table.goal(
            f"ISBI failures against the stack as published, {name}", describe(np.array(by_stack))[2], 0
        )
        table.goal(
            f"ISBI failures against the same pair unmoved, {name}", describe(np.array(by_unmoved))[2], 0
        )
    jumps = [
        (index, correlate(one.levels[1], two.levels[1], pt.identity()).correlation, link.correlation)
        for index, one, two, link in still_pairs
        if pt.mean_distance(link.fixed_to_moving, pt.identity(), points) > FAILURE_PX
    ]
    if jumps:
        where = ", ".join(
            f"{index}-{index + 1} ({before:.2f} to {after:.2f})" for index, before, after in jumps
        )
        table.note(
            f"Unmoved, the published ISBI stack already differs from its registration by over {FAILURE_PX:g} px at sections "
            f"{where}; in brackets the correlation of the two sections as published and as registered. Where the second is "
            "much higher, the published stack jumps: against it such a pair counts as a failure."
        )


if __name__ == "__main__":
    results = Table("Align sections", ["tool", "data", "median px", "max px", "failures", "CPU s a pair"])
    synthetic(results)
    real(results)
    results.save()
