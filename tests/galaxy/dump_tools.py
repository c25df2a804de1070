"""Say as JSON what Galaxy's own parser reads in tools: run in Galaxy's environment, which holds that parser.

    .envs/galaxy/bin/python tests/galaxy/dump_tools.py TOOL.xml [TOOL.xml ...]

Macros, tokens, sections, repeats and conditionals are resolved: `fields` is a flat list of everything that can be filled in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from galaxy.tool_util.model_factory import parse_tool
from galaxy.tool_util.parameters.factory import from_input_source
from galaxy.tool_util.parser import get_tool_source
from galaxy.tool_util.verify.parse import parse_tool_test_descriptions


def fields_of(page: Any, profile: float, prefix: str = "", inside: tuple[Any, ...] = ()) -> Iterator[dict]:
    """Every field of a page and of the groups in it; `inside` says in which cases and repeats it lies."""
    for source in page.parse_input_sources():
        kind = source.parse_input_type()
        path = prefix + (source.parse_name() if kind == "param" else source.get("name"))
        if kind == "param":
            yield field_of(source, profile, path, inside)
        elif kind == "conditional":
            test = source.parse_test_input_source()
            chooser = f"{path}|{test.parse_name()}"
            whens = list(source.parse_when_input_sources())
            yield field_of(test, profile, chooser, inside) | {"whens": [value for value, _ in whens]}
            for value, case in whens:
                yield from fields_of(case, profile, path + "|", (*inside, {"field": chooser, "value": value}))
        else:
            group = ({"repeat": path, "title": source.get("title")},) if kind == "repeat" else ()
            limits = {"min": source.get("min"), "max": source.get("max")} if kind == "repeat" else {}
            group = tuple(item | limits for item in group)
            yield from fields_of(source.parse_nested_inputs_source(), profile, path + "|", (*inside, *group))


def field_of(source: Any, profile: float, path: str, inside: tuple[Any, ...]) -> dict:
    """One field: what Galaxy's typed model says, and what only the XML says."""
    model = from_input_source(source, profile).model_dump(mode="json")
    sanitizer = source.parse_sanitizer_elem()
    return {
        "path": path,
        "name": source.parse_name(),
        "argument": source.get("argument"),
        "inside": inside,
        "sanitized": sanitizer is None or sanitizer.get("sanitize") != "false",
        "model": model,
        "protocols": source.get("allow_uri_if_protocol"),
        "whens": None,
    }


def describe(path: Path) -> dict:
    """One tool."""
    source = get_tool_source(str(path))
    profile = float(source.parse_profile())
    tool = parse_tool(source).model_dump(mode="json", exclude={"inputs"})
    pages = source.parse_input_pages().page_sources
    command = source.xml_tree.getroot().find("command")
    return tool | {
        "file": str(path),
        "help_text": tool["help"] and tool["help"]["content"],
        "detect_errors": command.get("detect_errors"),
        "command": command.text,
        "fields": [field for page in pages for field in fields_of(page, profile)],
        "tests": [test.to_dict() for test in parse_tool_test_descriptions(source)],
    }


def describe_or_say_why_not(path: Path) -> dict:
    """One tool, or the reason why the parser refuses it: one broken tool must not hide the others."""
    try:
        return describe(path)
    except Exception as error:
        return {"file": str(path), "refused": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    json.dump([describe_or_say_why_not(Path(name)) for name in sys.argv[1:]], sys.stdout, default=str)
