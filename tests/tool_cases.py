"""Forms filled in in every way that matters: every branch, every value, hostile names, and what must be refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tool_forms import Field, Form, forms

FOLDER_TYPES = {"ome_zarr", "zarr", "neuroglancer_precomputed", "directory"}
HOSTILE = 'it\'s "R&D" $(touch escaped) `touch escaped`; touch escaped # 뇌 \\d*'
HOSTILE_URI = "https://example.org/a'; touch escaped; '$(touch escaped)/뇌 1.zarr"
NAMES = (
    "tile_r1_c2.tif",
    "뇌 절편 1",
    "a'; touch escaped; '",
    '"$(touch escaped)`touch escaped`"',
    "../../escaped",
    "-rf",
)
# What is harmless stays as it is.
NAMES_ON_DISK = {"tile_r1_c2.tif": "tile_r1_c2.tif", "뇌 절편 1": "뇌 절편 1.tiff"}
# Texts that a form takes only in a certain way, with the values the stage must see.
BOXES = {"0:512": (0, 512), ":7": (None, 7), "3:": (3, None), "3": (3, 4)}
POSITIONS = {"100": (100, 101), "80:120": (80, 120)}
PATTERNED = {
    "bbox": tuple(BOXES),
    "position": tuple(POSITIONS),
    "window": ("200,4000", "percentile", "-5.5,1000"),
    "segment": ("9007199254740993", "1", "9223372036854775807"),
}
ABSENT = object()  # the field stays as the form opens


@dataclass(frozen=True)
class Case:
    """A form as it was filled in."""

    stage: str
    chosen: dict[str, str]
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    outcome: Literal["runs", "form refuses", "names clash"] = "runs"

    def __str__(self) -> str:
        return f"{self.stage} {self.chosen} {self.values}"


def dataset(place: str, number: int, name: str, extension: str, **more: str) -> dict[str, str]:
    """A dataset for a field; its file tells which field and which dataset it is."""
    path = f"@DATA@/{place.replace('|', '.')}/dataset_{number}.dat"
    return {"path": path, "name": name, "extension": extension, **more}


def collections(place: str, kind: str, extension: str) -> Iterator[dict[str, Any]]:
    """Collections of every type that a field takes, under hostile names."""
    inner = [[name, dataset(place, n, f"other {n}", extension)] for n, name in enumerate(NAMES)]
    second = [[name, dataset(place, 20 + n, f"other {n}", extension)] for n, name in enumerate(NAMES[:2])]
    for depth in kind.split(","):
        nested = [["section 1", inner], ["../2'", second]]
        yield {"type": depth, "elements": nested if depth == "list:list" else inner}


def datasets(field: Field) -> list[Any]:
    """What a field for datasets may hold."""
    first, last = field.model["extensions"][0], field.model["extensions"][-1]
    if field.kind == "data_collection":
        return list(collections(field.path, field.model["collection_type"], first))
    found = [dataset(field.path, 1, "tile_r1_c2", first), dataset(field.path, 2, HOSTILE, last)]
    found.append(dataset(field.path, 3, "in a list", first, identifier="../it's $(touch escaped) 뇌"))
    if field.protocols:
        found.append(dataset(field.path, 4, "deferred", first, uri=HOSTILE_URI))
    if not field.model["multiple"]:
        return found
    return [found[:1], found[:2], [dataset(field.path, 10 + n, name, first) for n, name in enumerate(NAMES)]]


def samples(form: Form, field: Field) -> list[Any]:
    """Values to put into a field."""
    parameter = form.parameter_of(field)
    low, high = field.bounds()
    if field.kind.startswith("data"):
        return datasets(field)
    if field.kind == "select":
        return [option["value"] for option in field.model["options"]]
    if field.kind == "boolean":
        return ["true", "false"]
    if field.kind == "color":
        return ["#ff8000", "#00ffff"]
    if field.kind == "text":
        assert parameter is not None
        patterned = PATTERNED.get(parameter.name)
        assert patterned or not field.patterns(), f"{field.path} has a pattern: add values to PATTERNED"
        return list(patterned or (HOSTILE, "뇌", "-x", "--overwrite", "two  words"))
    candidates = [2, 7, 1] if field.kind == "integer" else [0.5, 0.35, 1e-05, 3.25, -1.5]
    candidates = [bound[0] for bound in (low, high) if bound and not bound[1]] + candidates
    return [value for value in dict.fromkeys(candidates) if within(value, low, high)]


def within(value: float, low: tuple[float, bool] | None, high: tuple[float, bool] | None) -> bool:
    """Whether a number is inside bounds."""
    above = low is None or (value > low[0] if low[1] else value >= low[0])
    return above and (high is None or (value < high[0] if high[1] else value <= high[0]))


def groups(form: Form, chosen: dict[str, str]) -> list[list[Field]]:
    """The fields of a branch; those of one repeat together."""
    there = [f for f in form.fields if not f.whens and f.cases.items() <= chosen.items()]
    return [list(members) for _, members in itertools.groupby(there, key=lambda f: f.repeat or f.path)]


def filled(form: Form, group: list[Field], index: int) -> dict[str, Any]:
    """One of the ways to fill in a field or a repeat: the first leaves it alone where that is allowed."""
    first = group[0]
    if first.repeat:
        count = (0, 2, 1)[index % 3]
        found = {}
        for item, field in itertools.product(range(count), group):
            values = samples(form, field)
            path = field.path.replace(f"{first.repeat}|", f"{first.repeat}_{item}|", 1)
            found[path] = values[(index + item) % len(values)]
        return found
    values = samples(form, first) if is_needed(group) else [ABSENT, *samples(form, first)]
    value = values[index % len(values)]
    return {} if value is ABSENT else {first.path: value}


def cases_of(form: Form) -> Iterator[Case]:
    """Every branch, as it opens and with every value of every field; and each field filled in alone."""
    choosers = [f for f in form.fields if f.whens]
    begun = False
    for choice in itertools.product(*[f.whens or () for f in choosers]):
        chosen = dict(zip([f.path for f in choosers], choice))
        there = groups(form, chosen)
        needed = [group for group in there if is_needed(group)]
        start = {path: value for group in needed for path, value in filled(form, group, 0).items()}
        rounds = max(1 + len(samples(form, f)) for group in there for f in group)
        for index in range(rounds):
            yield case_of(form, chosen, [filled(form, group, index) for group in there])
        for group in there if not begun else ():
            yield case_of(form, chosen, [start, filled(form, group, 1)])
        begun = True


def case_of(form: Form, chosen: dict[str, str], parts: list[dict[str, Any]]) -> Case:
    """A form filled in with these parts."""
    values = {path: value for part in parts for path, value in part.items()}
    if form.stage == "view_volume" and not {"input", "remote_0|input_by_url"} & set(values):
        # one of the two is needed, so neither is by itself
        values["input"] = [dataset("input", 1, "cells", "ome_zarr")]
    if form.stage == "stitch_tiles" and "source|folder" in values and "source|tiles" in values:
        count = len(values["source|folder"])  # a table for each folder
        values["source|tiles"] = [dataset("source|tiles", n, "edited", "tabular") for n in range(count)]
    return Case(form.stage, chosen, values)


def is_needed(group: list[Field]) -> bool:
    """Whether a field cannot be left alone."""
    return group[0].kind.startswith("data") and not group[0].repeat and not group[0].model["optional"]


def refusals_of(form: Form) -> Iterator[Case]:
    """Numbers just outside their bounds and texts that would do harm: the form itself must refuse them."""
    base = next(cases_of(form))
    for field in form.fields:
        if field.whens or not field.cases.items() <= base.chosen.items():
            continue
        path = field.path.replace(f"{field.repeat}|", f"{field.repeat}_0|", 1) if field.repeat else field.path
        low, high = field.bounds()
        step = 1 if field.kind == "integer" else 0.25
        bad: list[Any] = []
        if low:
            bad.append(low[0] if low[1] else low[0] - step)
        if high:
            bad.append(high[0] if high[1] else high[0] + step)
        if field.patterns():
            bad += ["1'; touch escaped; '", "$(touch escaped)", "1\n2"]
            bad += ["-5:3"] if field.name[-2:] in ("_x", "_y", "_z") else []  # boxes begin at voxel 0
        if field.kind == "select":
            bad.append("no such choice")
        for value in bad:
            yield replace(base, values=base.values | {path: value}, outcome="form refuses")


def clashes_of(form: Form) -> Iterator[Case]:
    """Two datasets that would get one name in the job's folder, where signs that are not safe are replaced."""
    branches: dict[tuple[Any, ...], Case] = {}
    for case in cases_of(form):
        branches.setdefault(tuple(case.chosen.items()), case)
    for case, field in itertools.product(branches.values(), form.fields):
        linked = field.kind == "data_collection" or (field.model.get("multiple") and field.name != "tiles")
        if linked and field.cases and field.cases.items() <= case.chosen.items():
            extension = field.model["extensions"][0]
            pair = [
                [name, dataset(field.path, 40 + n, name, extension)] for n, name in enumerate(("a/b", "a_b"))
            ]
            collected = {"type": "list", "elements": pair}
            value = collected if field.kind == "data_collection" else [item for _, item in pair]
            yield replace(case, values=case.values | {field.path: value}, outcome="names clash")


def flatten(value: Any) -> list[dict[str, str]]:
    """The datasets of a value in their order, each with the names it lies under."""
    if isinstance(value, list):
        return [item for inner in value for item in flatten(inner)]
    if "elements" not in value:
        return [value]
    found = []
    for identifier, inner in value["elements"]:
        nested = {"elements": inner} if isinstance(inner, list) else inner
        found += [{"identifier": identifier, **item} for item in flatten(nested)]
    return found


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """The cases of all forms."""
    found: list[Case] = []
    for form in forms().values():
        found += [*cases_of(form), *refusals_of(form), *clashes_of(form)]
    return tuple(found)
