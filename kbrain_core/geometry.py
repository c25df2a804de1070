"""Voxel sizes, boxes and other per-axis values as people write them: `x=0.5um,y=0.5um,z=2um`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .errors import InputError

NM_PER_UM = 1000.0
NM_PER_UNIT = {
    "pm": 1e-3,
    "A": 0.1,
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
}
AXES = ("z", "y", "x")


def split_axes(text: str, example: str) -> dict[str, str]:
    """Split `x=1,y=2,z=3` (commas, semicolons or spaces between) into a text per axis.

    Parameters
    ----------
    text : str
        What a person wrote.
    example : str
        A right value, for the error message.

    Raises
    ------
    InputError
        When an axis is unknown, named twice or has no value.
    """
    values: dict[str, str] = {}
    for part in re.split(r"[,;\s]+", text.strip()):
        axis, equals, value = part.partition("=")
        axis = axis.strip().lower()
        if not equals or axis not in AXES or not value or axis in values:
            raise InputError(f"'{text}' is not a value per axis: write each axis once, like {example}")
        values[axis] = value.strip()
    return values


def length_nm(text: str, example: str = "0.5um") -> float:
    """Length in nm of a number with its unit, such as `0.5um`, `4 nm` or `2e-3mm`; it must be above zero."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-Zµμ]+)\s*", text)
    try:
        value = float(match.group(1)) * NM_PER_UNIT[match.group(2)] if match else math.nan
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"'{text}' is not a length above zero with its unit: write it like {example}")
    return value


@dataclass(frozen=True)
class VoxelSize:
    """Size of a voxel in nm; an axis nobody told is None.

    Written `x=0.5um,y=0.5um,z=2um`, or `0.5um` for all three axes. Units: pm, A, nm, um, mm, cm, m.
    """

    z_nm: float | None = None
    y_nm: float | None = None
    x_nm: float | None = None

    @classmethod
    def from_text(cls, text: str) -> VoxelSize:
        """Read `x=0.5um,y=0.5um,z=2um`; axes left out stay None; one length alone is meant for all axes."""
        example = "x=0.5um,y=0.5um,z=2um"
        if "=" not in text:
            size = length_nm(text, example)
            return cls(size, size, size)
        lengths = {axis: length_nm(value, example) for axis, value in split_axes(text, example).items()}
        return cls(lengths.get("z"), lengths.get("y"), lengths.get("x"))

    @classmethod
    def from_um(cls, z: float | None, y: float | None, x: float | None) -> VoxelSize:
        """Make one from micrometres, as light-microscopy metadata gives them."""
        return cls(*(None if value is None else value * NM_PER_UM for value in (z, y, x)))

    @property
    def zyx_nm(self) -> tuple[float | None, float | None, float | None]:
        """Sizes in nm in (z, y, x) order."""
        return (self.z_nm, self.y_nm, self.x_nm)

    @property
    def zyx_um(self) -> tuple[float | None, float | None, float | None]:
        """Sizes in um in (z, y, x) order."""
        z, y, x = (None if size is None else size / NM_PER_UM for size in self.zyx_nm)
        return (z, y, x)

    def with_defaults(self, other: VoxelSize) -> VoxelSize:
        """This voxel size, with the axes it lacks taken from `other`."""
        return VoxelSize(
            *(mine if mine is not None else theirs for mine, theirs in zip(self.zyx_nm, other.zyx_nm))
        )

    def required_nm(self, what: str) -> tuple[float, float, float]:
        """All three sizes in nm; an InputError that names `what` when one is unknown."""
        z, y, x = self.zyx_nm
        if z is None or y is None or x is None:
            missing = ", ".join(axis for axis, size in zip(AXES, self.zyx_nm) if size is None)
            raise InputError(
                f"The voxel size of {what} is unknown along {missing}: pass it, like --voxel-size x=0.5um,y=0.5um,z=2um"
            )
        return (z, y, x)

    def __str__(self) -> str:
        known = [f"{axis}={size:g}nm" for axis, size in zip("xyz", reversed(self.zyx_nm)) if size is not None]
        return ",".join(known)


Bounds = tuple[int | None, int | None]


@dataclass(frozen=True)
class Box:
    """A box of voxels, half-open like Python slices; an axis left out means all of it.

    Written `x=0:512,y=0:512,z=0:64`: the numbers that KNeuroViz shows at the cursor.
    """

    z: Bounds = (None, None)
    y: Bounds = (None, None)
    x: Bounds = (None, None)

    @classmethod
    def from_text(cls, text: str) -> Box:
        """Read `x=0:512,y=0:512,z=0:64`; `x=:512` and `z=3:` are open at one side, `z=3` is one plane."""
        example = "x=0:512,y=0:512,z=0:64"
        bounds: dict[str, Bounds] = {}
        for axis, value in split_axes(text, example).items():
            match = re.fullmatch(r"(\d*)(:?)(\d*)", value)
            if not match or value == ":":
                raise InputError(f"'{axis}={value}' is not a range of voxels: write it like {example}")
            start = int(match.group(1)) if match.group(1) else None
            stop = int(match.group(3)) if match.group(3) else None
            if not match.group(2) and start is not None:
                stop = start + 1
            bounds[axis] = (start, stop)
        everything: Bounds = (None, None)
        return cls(bounds.get("z", everything), bounds.get("y", everything), bounds.get("x", everything))

    def slices(self, shape_zyx: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        """The box as slices of an array of this shape.

        Raises
        ------
        InputError
            When the box is empty or reaches out of the array.
        """
        slices: list[slice] = []
        for axis, (start, stop), size in zip(AXES, (self.z, self.y, self.x), shape_zyx):
            low, high = 0 if start is None else start, size if stop is None else stop
            if not 0 <= low < high <= size:
                raise InputError(
                    f"The box asks for {axis}={low}:{high} but the volume has {axis}=0:{size}: choose a range inside it"
                )
            slices.append(slice(low, high))
        return (slices[0], slices[1], slices[2])

    def __str__(self) -> str:
        def text(bound: int | None) -> str:
            return "" if bound is None else str(bound)

        named = zip("xyz", (self.x, self.y, self.z))
        return ",".join(
            f"{axis}={text(low)}:{text(high)}" for axis, (low, high) in named if (low, high) != (None, None)
        )


@dataclass(frozen=True)
class AxisInts:
    """A whole number per axis (a chunk size, a factor), written `x=64,y=64,z=32`; an axis left out is None."""

    z: int | None = None
    y: int | None = None
    x: int | None = None

    @classmethod
    def from_text(cls, text: str) -> AxisInts:
        """Read `x=64,y=64,z=32`, or `64` for all three axes; numbers must be above zero."""
        example = "x=64,y=64,z=32"
        parts = split_axes(text, example) if "=" in text else dict.fromkeys(AXES, text.strip())
        for axis, value in parts.items():
            if not value.isascii() or not value.isdigit() or int(value) == 0:
                raise InputError(
                    f"'{axis}={value}' is not a whole number above zero: write it like {example}"
                )
        return cls(*(int(parts[axis]) if axis in parts else None for axis in AXES))

    @property
    def zyx(self) -> tuple[int | None, int | None, int | None]:
        """The numbers in (z, y, x) order."""
        return (self.z, self.y, self.x)

    def __str__(self) -> str:
        return ",".join(f"{axis}={n}" for axis, n in zip("xyz", reversed(self.zyx)) if n is not None)
