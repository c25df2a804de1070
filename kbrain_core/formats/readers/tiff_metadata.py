"""What instruments write into TIFF tags: ImageJ, Zeiss and Thermo (FEI) SEM, Zeiss LSM, Micro-Manager."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import tifffile

from .base import UNKNOWN, ZYX, length_um, position_um

_TAG_MICROMANAGER = 51123
_CENTIMETER = 3
# A pixel wider than this in the plain TIFF tags is a page size for printers, not a microscope's calibration.
_WIDEST_PIXEL_UM = 20.0


@dataclass(frozen=True)
class TiffFacts:
    """Calibration found in a TIFF page; `voxel_size_from` names the tag."""

    voxel_size_um: ZYX = UNKNOWN
    stage_um: ZYX = UNKNOWN
    acquired_at: str | None = None
    voxel_size_from: str = "not given"


def tiff_facts(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> TiffFacts:
    """Look for the calibration where the known instruments put it, the most specific place first."""
    written = page.datetime
    date = written.isoformat() if written else None
    for found in (
        _fei(tif),
        _zeiss_sem(tif),
        _lsm(tif),
        _micromanager(page),
        _imagej(tif, page),
        _plain(page),
    ):
        if found is not None:
            return found if found.acquired_at else TiffFacts(
                found.voxel_size_um, found.stage_um, date, found.voxel_size_from
            )  # fmt: skip
    return TiffFacts(acquired_at=date)


def _fei(tif: tifffile.TiffFile) -> TiffFacts | None:
    """Thermo/FEI: sections of key = value in metres (tags 34680 and 34682)."""
    facts = tif.fei_metadata
    if not isinstance(facts, dict):
        return None
    stage, user = facts.get("Stage", {}), facts.get("User", {})
    for section in ("Scan", "EScan", "IScan"):
        scan = facts.get(section, {})
        pixel = [length_um(scan.get(key), "m") for key in ("PixelHeight", "PixelWidth")]
        if all(pixel):
            break
    y_um, x_um = pixel
    return TiffFacts(
        (None, y_um, x_um),
        (
            position_um(stage.get("StageZ"), "m"),
            position_um(stage.get("StageY"), "m"),
            position_um(stage.get("StageX"), "m"),
        ),
        _fei_date(str(user.get("Date", "")), str(user.get("Time", ""))),
        "Thermo (FEI) tag",
    )


def _fei_date(date: str, time: str) -> str | None:
    """'03/12/2019' (month first) and '11:22:33 AM' as ISO 8601."""
    day = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", date)
    clock = re.fullmatch(r"(\d{1,2}):(\d{2}):(\d{2})\s*([AaPp][Mm])?", time)
    if not day:
        return None
    iso = f"{int(day[3]):04d}-{int(day[1]):02d}-{int(day[2]):02d}"
    if not clock:
        return iso
    hour = int(clock[1]) % 12 + (12 if clock[4].lower() == "pm" else 0) if clock[4] else int(clock[1])
    return f"{iso}T{hour:02d}:{clock[2]}:{clock[3]}"


def _zeiss_sem(tif: tifffile.TiffFile) -> TiffFacts | None:
    """Zeiss SmartSEM: {key: (name, value, unit)} (tag 34118)."""
    facts = tif.sem_metadata
    if not isinstance(facts, dict):
        return None

    def entry(key: str) -> tuple[Any, str | None]:
        found = tuple(facts.get(key, ()))
        return (found[1], found[2]) if len(found) > 2 else (None, None)

    pixel_um = length_um(*entry("ap_image_pixel_size")) or length_um(*entry("ap_pixel_size"))
    return TiffFacts(
        (None, pixel_um, pixel_um),
        (
            position_um(*entry("ap_stage_at_z")),
            position_um(*entry("ap_stage_at_y")),
            position_um(*entry("ap_stage_at_x")),
        ),
        _sem_date(facts),
        "Zeiss SEM tag",
    )


def _sem_date(facts: dict[str, Any]) -> str | None:
    """'12 Mar 2019' and '11:22:33' as ISO 8601."""
    date = str(tuple(facts.get("ap_date", ("", "")))[1])
    time = str(tuple(facts.get("ap_time", ("", "")))[1])
    day = re.fullmatch(r"(\d{1,2}) ([A-Za-z]{3})[a-z]* (\d{4})", date)
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    if not day or day[2].lower() not in months:
        return None
    iso = f"{day[3]}-{months.index(day[2].lower()) + 1:02d}-{int(day[1]):02d}"
    return f"{iso}T{time}" if re.fullmatch(r"\d{2}:\d{2}:\d{2}", time) else iso


def _lsm(tif: tifffile.TiffFile) -> TiffFacts | None:
    """Zeiss LSM: voxel size and the first position in metres."""
    facts = tif.lsm_metadata
    if not isinstance(facts, dict):
        return None
    z_um, y_um, x_um = (length_um(facts.get(f"VoxelSize{axis}"), "m") for axis in "ZYX")
    stage = UNKNOWN
    positions = facts.get("Positions", facts.get("TilePositions"))
    if positions is not None and len(positions):
        x, y, z = (position_um(value, "m") for value in positions[0])
        stage = (z, y, x)
    return TiffFacts((z_um, y_um, x_um), stage, None, "Zeiss LSM tag")


def _micromanager(page: tifffile.TiffPage) -> TiffFacts | None:
    """Micro-Manager: JSON per plane, lengths in um (tag 51123)."""
    tag = page.tags.get(_TAG_MICROMANAGER)
    if tag is None or not isinstance(tag.value, dict):
        return None
    facts = tag.value
    pixel = length_um(facts.get("PixelSizeUm"), "um")
    step = length_um(facts.get("z-step_um"), "um")
    z, y, x = (position_um(facts.get(f"{axis}PositionUm"), "um") for axis in "ZYX")
    date = re.match(
        r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}", str(facts.get("ReceivedTime", facts.get("Time")))
    )
    return TiffFacts(
        (step, pixel, pixel), (z, y, x), date[0].replace(" ", "T") if date else None, "Micro-Manager tag"
    )


def _imagej(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> TiffFacts | None:
    """ImageJ: `unit` and `spacing` in the description, pixels per unit in the resolution tags."""
    facts = tif.imagej_metadata
    if not isinstance(facts, dict):
        return None
    unit = str(facts.get("unit", ""))
    y_um = _inverse(page, "YResolution", str(facts.get("yunit", unit)))
    x_um = _inverse(page, "XResolution", unit)
    z_um = length_um(facts.get("spacing"), str(facts.get("zunit", unit)))
    found = (z_um, y_um, x_um)
    return TiffFacts(found, UNKNOWN, None, "ImageJ description" if any(found) else "not given")


def _plain(page: tifffile.TiffPage) -> TiffFacts | None:
    """Pixels per centimetre. Pixels per inch are set by picture programs and mean nothing here."""
    unit = page.tags.get("ResolutionUnit")
    if unit is None or int(unit.value) != _CENTIMETER:
        return None
    y_um, x_um = _inverse(page, "YResolution", "cm"), _inverse(page, "XResolution", "cm")
    if y_um is None or x_um is None or max(y_um, x_um) > _WIDEST_PIXEL_UM:
        return None
    return TiffFacts((None, y_um, x_um), UNKNOWN, None, "TIFF resolution tags")


def _inverse(page: tifffile.TiffPage, tag: str, unit: str) -> float | None:
    """Pixel size in um from a tag of pixels per unit, stored as a fraction."""
    found = page.tags.get(tag)
    if found is None or not isinstance(found.value, tuple) or len(found.value) != 2 or found.value[0] <= 0:
        return None
    return length_um(found.value[1] / found.value[0], unit)
