"""Whole alignments of planted stacks: figures, edits of the table, other inputs, resuming, and bad input."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_phantoms import SectionStack, make_section_stack, section_errors, write_sections

from kbrain_core.errors import InputError, KBrainError, OutputExistsError, StageStopped
from kbrain_core.formats.tables import Transform, read_table, write_table
from kbrain_core.formats.volume import Volume, create_volume
from kbrain_core.formats.volume_spec import VolumeSpec
from kbrain_core.geometry import VoxelSize
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
from kbrain_core.processing.align_sections import AlignResult, align_sections
from kbrain_core.stage import Part, RunOptions

ONE = RunOptions(workers=1)
COUNT = 7
# Neighbours differ by 12 % of new structure: 0.15 px on 768^2 px, three times that on a ninth of the area.
MOST_ERROR_PX = 0.6


@pytest.fixture(scope="module")
def stack() -> SectionStack:
    return make_section_stack(count=COUNT, size=256, missing=(4,), max_shift_px=20, seed=11)


@pytest.fixture(scope="module")
def folder(stack: SectionStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sections")
    for index, image in enumerate(stack.images):
        # Names whose natural order is not their alphabetical one.
        tifffile.imwrite(folder / f"section {index + 5}.tif", image)
    return folder


@pytest.fixture(scope="module")
def aligned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AlignResult, Path]:
    output = tmp_path_factory.mktemp("aligned") / "aligned.ome.zarr"
    table = output.with_name("transforms.tsv")
    result = align_sections([str(folder)], str(output), transforms_output=table, run=ONE)
    return result, output


def write_volume(path: Path, images: np.ndarray, kind: str = "image", channels: int = 1) -> str:
    """An OME-Zarr of sections (Z, Y, X); channel c holds the images shifted by c grey levels."""
    shape = (1, channels, *images.shape)
    spec = VolumeSpec.plan(shape, images.dtype, voxel_size_nm=(50, 5, 5), kind=kind)  # type: ignore[arg-type]
    create_volume(str(path), spec)
    writer = VolumeWriter(str(path), spec)
    for channel in range(channels):
        for box in writer.task_boxes():
            writer.write_block(0, channel, box, images[box.slices(images.shape)] + channel)
    writer.finish_levels(None, ONE)
    return str(path)


def matrices(table: Path) -> np.ndarray:
    rows = read_table(table, Transform)
    return np.array([[[r.m_yy, r.m_yx, r.t_y_px], [r.m_xy, r.m_xx, r.t_x_px]] for r in rows])


def voxels(path: Path | str) -> np.ndarray:
    return Volume.open(str(path)).read((slice(None),) * 5)


def test_planted_motion_is_found(stack: SectionStack, aligned: tuple[AlignResult, Path]) -> None:
    result, output = aligned
    errors = section_errors(stack, matrices(output.with_name("transforms.tsv")))
    known = np.isfinite(errors)
    assert known.sum() == COUNT - 1 - 2  # two pairs have the missing section in them
    assert errors[known].max() < MOST_ERROR_PX
    assert result.passed and result.registered_sections == COUNT - 1 and result.blank_sections == 1
    status = [row.status for row in read_table(output.with_name("transforms.tsv"), Transform)]
    assert status == ["registered"] * 4 + ["blank"] + ["registered"] * 2


def test_sections_run_on_in_the_volume(stack: SectionStack, aligned: tuple[AlignResult, Path]) -> None:
    """Neighbours that hardly correlated before do so after."""
    result, output = aligned
    volume = voxels(output)[0, 0].astype(float)
    assert volume.shape == result.shape_tczyx[2:]
    height, width = volume.shape[1:]
    inner = np.s_[height // 2 - 80 : height // 2 + 80, width // 2 - 80 : width // 2 + 80]
    after = np.corrcoef(volume[0][inner].ravel(), volume[1][inner].ravel())[0, 1]
    before = np.corrcoef(stack.images[0].ravel(), stack.images[1].ravel())[0, 1]
    # New structure and noise leave about half of the correlation at full resolution; shading is in both.
    assert after > 0.4 and before < 0.3


def test_the_canvas_cuts_nothing(stack: SectionStack, aligned: tuple[AlignResult, Path]) -> None:
    result, output = aligned
    for index, transform in enumerate(matrices(output.with_name("transforms.tsv"))):
        if index in stack.missing:
            continue
        inverse = np.linalg.inv(transform[:, :2])
        for corner in [(0, 0), (0, 255), (255, 0), (255, 255)]:
            y, x = inverse @ (np.array(corner) - transform[:, 2])
            assert -0.01 <= y <= result.shape_tczyx[3] - 0.99 and -0.01 <= x <= result.shape_tczyx[4] - 0.99


def test_the_report_says_what_matters(aligned: tuple[AlignResult, Path]) -> None:
    _, output = aligned
    text = next(output.parent.glob("*report.md")).read_text()
    assert "**PASS**" in text and "straightens real curvature" in text
    assert "Sections 4 are blank" in text
    pictures = {path.stem for path in next(output.parent.glob("*report_files")).iterdir()}
    assert {"drift", "links", "xz-before-after", "yz-before-after", "checkerboard-typical"} <= pictures


def test_the_same_transforms_give_the_same_volume(
    folder: Path, aligned: tuple[AlignResult, Path], tmp_path: Path
) -> None:
    _, output = aligned
    table = output.with_name("transforms.tsv")
    again = tmp_path / "again.ome.zarr"
    result = align_sections([str(folder)], str(again), transforms=table, run=ONE)
    np.testing.assert_array_equal(voxels(again), voxels(output))
    assert result.links == 0


def test_an_edited_table_is_applied(folder: Path, aligned: tuple[AlignResult, Path], tmp_path: Path) -> None:
    """One section excluded, one moved by 40 px beyond the canvas: the canvas grows, the others keep their voxels."""
    result, output = aligned
    rows = read_table(output.with_name("transforms.tsv"), Transform)
    rows[2] = dataclasses.replace(rows[2], status="excluded")
    rows[3] = dataclasses.replace(rows[3], t_y_px=rows[3].t_y_px + 60)
    edited = tmp_path / "edited.tsv"
    write_table(edited, rows, Transform)
    again = tmp_path / "again.ome.zarr"
    found = align_sections([str(folder)], str(again), transforms=edited, run=ONE)
    assert found.excluded_sections == 1
    grown = found.shape_tczyx[3] - result.shape_tczyx[3]
    assert grown > 0
    new, old = voxels(again)[0, 0], voxels(output)[0, 0]
    assert (new[2] == 0).all()
    moved = new[0][grown:, : old.shape[2]]
    inside = old[0] > 0
    # Coordinates that differ in their last bit, rounded to whole grey levels.
    np.testing.assert_allclose(moved[inside], old[0][inside].astype(int), atol=1)


def test_planes_of_a_volume_with_channels_and_pyramid(stack: SectionStack, tmp_path: Path) -> None:
    """Registered at half resolution on one channel; the other moves with it."""
    uri = write_volume(tmp_path / "in.ome.zarr", np.minimum(stack.images, 250), channels=2)
    output = tmp_path / "out.ome.zarr"
    result = align_sections(
        [uri], str(output), registration_channel="1", registration_level=1, exclude_section=[6], run=ONE
    )
    errors = section_errors(stack, matrices(next(tmp_path.glob("*transforms.tsv"))))[:3]
    # Half the resolution, twice the error.
    assert errors.max() < 2 * MOST_ERROR_PX
    assert result.excluded_sections == 1
    found = Volume.open(str(output))
    assert found.shape[:3] == (1, 2, COUNT) and found.voxel_size_nm == (50, 5, 5)
    both = voxels(output)[0].astype(int)
    tissue = both[0, 0] > 20
    # Linear interpolation and rounding, each on its own.
    assert np.abs(both[1, 0][tissue] - both[0, 0][tissue] - 1).max() <= 1
    assert not both[:, 6].any()


def test_parts_and_processes_give_the_same_volume(
    folder: Path, aligned: tuple[AlignResult, Path], tmp_path: Path
) -> None:
    _, output = aligned
    parts = tmp_path / "parts.ome.zarr"
    for index in (1, 2):
        run = RunOptions(workers=2, part=Part(index, 2))
        try:
            result = align_sections([str(folder)], str(parts), run=run)
        except StageStopped:
            assert index == 1
    assert result.passed
    np.testing.assert_array_equal(voxels(parts), voxels(output))
    one, other = (next(p.glob("*transforms.tsv")).read_bytes() for p in (tmp_path, output.parent))
    assert one == other


def test_a_rerun_does_not_register_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the transforms were solved, the second run writes without looking at the links."""
    import kbrain_core.numerics.alignment.section_warping as warping
    import kbrain_core.processing.align_sections_registration as registration

    output = tmp_path / "out.ome.zarr"
    inputs = [str(folder / f"section {number}.tif") for number in (5, 6, 7)]

    def stop(task: object) -> None:
        raise KBrainError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(warping, "warp_box", stop)
        with pytest.raises(KBrainError, match="stopped here"):
            align_sections(inputs, str(output), run=ONE)
    with pytest.raises(KBrainError, match="incomplete"):
        Volume.open(str(output))
    monkeypatch.setattr(registration, "solve_sections", stop)
    assert align_sections(inputs, str(output), run=ONE).passed


def test_labels_move_along_with_the_image(
    folder: Path, stack: SectionStack, aligned: tuple[AlignResult, Path], tmp_path: Path
) -> None:
    _, output = aligned
    labels = np.zeros((COUNT, 256, 256), np.uint64)
    labels[:, 100:150, 90:140] = 2**53 + 1
    uri = write_volume(tmp_path / "labels.ome.zarr", labels, kind="labels")
    moved = tmp_path / "moved.ome.zarr"
    with pytest.raises(InputError, match="holds labels"):
        align_sections([uri], str(moved), run=ONE)
    table = output.with_name("transforms.tsv")
    align_sections([uri], str(moved), transforms=table, interpolation="nearest", run=ONE)
    found = voxels(moved)
    assert found.dtype == np.uint64 and set(np.unique(found)) == {0, 2**53 + 1}
    # A turned square keeps its area but for its edge.
    assert (found[0, 0, 0] > 0).sum() == pytest.approx(2500, rel=0.02)


def test_sections_may_differ_in_size(stack: SectionStack, tmp_path: Path) -> None:
    for index in (0, 1, 2):
        tifffile.imwrite(
            tmp_path / f"s{index}.tif", stack.images[index][: 256 - 10 * index, : 230 + 10 * index]
        )
    inputs = [str(path) for path in tmp_path.glob("s*.tif")]
    result = align_sections(inputs, str(tmp_path / "out.ome.zarr"), run=ONE)
    errors = section_errors(
        dataclasses.replace(stack, images=stack.images[:3], transforms=stack.transforms[:3]),
        matrices(next(tmp_path.glob("*transforms.tsv"))),
    )
    assert result.passed and errors.max() < MOST_ERROR_PX


def test_unrelated_sections_do_not_pass(tmp_path: Path) -> None:
    """Nothing joins them: the report says so instead of showing a volume that looks right."""
    for index in range(3):
        image = make_section_stack(count=1, size=256, seed=50 + index).images[0]
        tifffile.imwrite(tmp_path / f"s{index}.tif", image)
    result = align_sections([str(tmp_path)], str(tmp_path / "out.ome.zarr"), run=ONE)
    assert not result.passed
    assert result.registered_sections == 0 and result.interpolated_sections == 3


def test_a_reference_bends_the_chain_back(tmp_path: Path) -> None:
    curved = make_section_stack(
        count=12, size=256, curvature_px=20, keep_aligned=True, max_shift_px=10, seed=2
    )
    write_sections(curved, tmp_path / "in")
    assert curved.aligned is not None
    small = curved.aligned.reshape(12, 64, 4, 64, 4).mean(axis=(2, 4))
    uri = str(tmp_path / "reference.ome.zarr")
    spec = VolumeSpec.plan((1, 1, 12, 64, 64), "uint8", voxel_size_nm=(50, 20, 20))
    create_volume(uri, spec)
    writer = VolumeWriter(uri, spec)
    for box in writer.task_boxes():
        writer.write_block(0, 0, box, (small * 250).astype(np.uint8)[box.slices(small.shape)])
    writer.finish_levels(None, ONE)
    worst = {}
    for name, reference in (("alone", None), ("held", uri)):
        align_sections(
            [str(tmp_path / "in")],
            str(tmp_path / f"{name}.ome.zarr"),
            reference=reference,
            transforms_output=tmp_path / f"{name}.tsv",
            voxel_size=VoxelSize(50, 5, 5),
            neighbours=1,
            run=ONE,
        )
        found = matrices(tmp_path / f"{name}.tsv")
        worst[name] = section_errors(curved, found).max()
    # The arc runs aslant by up to 5 px a section at its ends, which the chain alone takes for motion.
    assert worst["alone"] > 3
    assert worst["held"] < 1


def test_real_sections_at_other_places(shared_data: Path, tmp_path: Path) -> None:
    """ssTEM sections moved by known transforms give the alignment of the unmoved ones, moved."""
    import cv2

    from kbrain_core.numerics.alignment import plane_transforms as pt
    from kbrain_core.numerics.alignment.section_features import prepare_section
    from kbrain_core.numerics.alignment.section_registration import register_sections

    sections = tifffile.imread(shared_data / "isbi2012" / "image.tif")[:5]
    rng = np.random.default_rng(0)
    for fixed, moving in itertools.pairwise(sections):
        move = pt.rigid(rng.uniform(-3, 3), tuple(rng.uniform(-80, 80, 2)), (255.5, 255.5))
        shown = pt.invert(move)[::-1][:, [1, 0, 2]].copy()
        moved = cv2.warpAffine(moving, shown, (512, 512), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        still, turned = (
            register_sections(prepare_section(fixed), prepare_section(m)) for m in (moving, moved)
        )
        assert still is not None and turned is not None
        distance = pt.mean_distance(
            turned.fixed_to_moving, pt.compose(move, still.fixed_to_moving), pt.box_points((512, 512))
        )
        # What moves out of the field is lost, and sections of 50 nm have no single best place: 2 to 5 px.
        assert distance < 5


def save(path: Path, image: np.ndarray) -> str:
    tifffile.imwrite(path, image, photometric="minisblack")
    return str(path)


@pytest.mark.parametrize("case", ["type", "planes", "excluded", "none", "fill", "labels", "channel"])
def test_bad_input_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 200, (64, 64)).astype(np.uint8)
    one, two = save(tmp_path / "a1.tif", image), save(tmp_path / "a2.tif", image)
    output = str(tmp_path / "out.ome.zarr")
    empty = tmp_path / "empty"
    empty.mkdir()
    calls = {
        "type": lambda: align_sections(
            [one, save(tmp_path / "b.tif", image.astype(np.uint16))], output, run=ONE
        ),
        "planes": lambda: align_sections(
            [one, save(tmp_path / "b.tif", np.stack([image] * 3))], output, run=ONE
        ),
        "excluded": lambda: align_sections([one, two], output, exclude_section=[2], run=ONE),
        "none": lambda: align_sections([str(empty)], output, run=ONE),
        "fill": lambda: align_sections([one, two], output, fill_value=300.0, run=ONE),
        "labels": lambda: align_sections([save(tmp_path / "b.tif", image.astype(np.int32))], output, run=ONE),
        "channel": lambda: align_sections([one, two], output, registration_channel="DAPI", run=ONE),
    }
    messages = {
        "type": "Sections differ in type: .*a1.tif' has uint8 but .*b.tif' has uint16",
        "planes": "holds 3 planes beside other inputs",
        "excluded": "--exclude-section 2: there are 2 sections, numbered from 0 to 1",
        "none": "holds no sections",
        "fill": "--fill-value is 300, but the sections are uint8",
        "labels": "holds int32: sections must be one of uint8",
        "channel": "There is no channel 'DAPI'",
    }
    with pytest.raises(InputError, match=messages[case]) as caught:
        calls[case]()
    assert "\n" not in str(caught.value)
    assert not Path(output).exists()


def test_transforms_that_do_not_fit_are_refused(
    folder: Path, aligned: tuple[AlignResult, Path], tmp_path: Path
) -> None:
    rows = read_table(aligned[1].with_name("transforms.tsv"), Transform)
    edited = tmp_path / "edited.tsv"
    write_table(edited, [*rows[:3], *rows[4:], rows[0]], Transform)
    with pytest.raises(InputError, match="z 0 named twice or beyond the last and z 3 missing"):
        align_sections([str(folder)], str(tmp_path / "out.ome.zarr"), transforms=edited, run=ONE)
    far = [dataclasses.replace(row, t_y_px=row.t_y_px + (9000 if row.z == 1 else 0)) for row in rows]
    write_table(edited, far, Transform)
    with pytest.raises(InputError, match="section 1 lies far off"):
        align_sections([str(folder)], str(tmp_path / "far.ome.zarr"), transforms=edited, run=ONE)


def test_a_canvas_larger_than_the_disk_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kbrain_core.store as store

    monkeypatch.setattr(store, "free_bytes", lambda path: 1000)
    with pytest.raises(KBrainError, match=r"needs about .* of disk"):
        align_sections([str(folder)], str(tmp_path / "out.ome.zarr"), run=ONE)


def test_other_options_on_a_finished_output_are_refused(
    folder: Path, aligned: tuple[AlignResult, Path]
) -> None:
    with pytest.raises(OutputExistsError, match="begun with other options"):
        align_sections([str(folder)], str(aligned[1]), model="affine", run=ONE)
