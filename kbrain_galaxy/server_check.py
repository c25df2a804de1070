"""What a Galaxy lacks to run KBrain's workflows, and what its administrator must add."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from bioblend import ConnectionError as GalaxyAnswerError

from .client import VIEWER
from .connection import Server, open_server, plain_errors
from .places import packaged
from .server import Connection


@dataclass(frozen=True)
class PackagedTool:
    """A tool that comes with KBrain: id, version and file, relative to the folder of the tools."""

    id: str
    version: str
    file: str


@dataclass(frozen=True)
class ServerCheck:
    """What was found out about a server; empty tuples where nothing is missing.

    Attributes
    ----------
    version : str
        Of Galaxy.
    is_admin : bool
        Whether the key is an administrator's; others cannot see the allowlist.
    missing_tools : tuple of PackagedTool
        Tools that the server does not have.
    other_versions : tuple of (PackagedTool, str)
        Tools that it has in other versions, and which.
    missing_datatypes : tuple of str
        Datatypes that it does not know.
    has_viewer : bool
        Whether the visualization KNeuroViz is there.
    stripped_reports : tuple of str
        Tools whose HTML reports the allowlist does not name: Galaxy strips them, unless `sanitize_all_html` is off.
    """

    version: str
    is_admin: bool
    missing_tools: tuple[PackagedTool, ...]
    other_versions: tuple[tuple[PackagedTool, str], ...]
    missing_datatypes: tuple[str, ...]
    has_viewer: bool
    stripped_reports: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the workflows can run."""
        return not (self.missing_tools or self.other_versions or self.missing_datatypes)


def check_server(connection: Connection) -> ServerCheck:
    """Compare a server with what KBrain brings.

    Parameters
    ----------
    connection : Connection
        Address and key.

    Raises
    ------
    InputError
        When the address is no Galaxy, the Galaxy is too old, or the key is wrong.
    """
    server = open_server(connection)
    with plain_errors(connection.url):
        # a tool from a Tool Shed has its own id in the middle of a longer one
        found = {
            str(tool["id"]).split("/")[-2 if "/" in tool["id"] else 0]: tool
            for tool in server.tools.get_tools()
        }
        wanted = packaged_tools()
        versions = {name: tool.get("versions") or [tool["version"]] for name, tool in found.items()}
        datatypes = set(server.read("datatypes", upload_only=False))
        return ServerCheck(
            version=str(server.config.get_version()["version_major"]),
            is_admin=bool(server.users.get_current_user()["is_admin"]),
            missing_tools=tuple(tool for tool in wanted if tool.id not in found),
            other_versions=tuple(
                (tool, ", ".join(versions[tool.id]))
                for tool in wanted
                if tool.id in found and tool.version not in versions[tool.id]
            ),
            missing_datatypes=tuple(kind for kind in packaged_datatypes() if kind not in datatypes),
            has_viewer=any(plugin.get("name") == VIEWER for plugin in server.read("plugins")),
            stripped_reports=_stripped(server, wanted),
        )


def _stripped(server: Server, wanted: tuple[PackagedTool, ...]) -> tuple[str, ...]:
    try:
        listed = server.read("sanitize_allow")
    except GalaxyAnswerError as error:
        if error.status_code == 403:
            return ()
        raise
    allowed = [entry["ids"]["allowed"] for entry in (*listed["allowed_local"], *listed["allowed_toolshed"])]
    return tuple(tool.id for tool in wanted if not any(tool.id in entry for entry in allowed))


def packaged_tools() -> tuple[PackagedTool, ...]:
    """The tools that come with KBrain, in the order of Galaxy's panel."""
    folder = packaged("tools")
    tokens = _tokens(folder / "macros.xml")
    tools = []
    for entry in ElementTree.parse(folder / "tool_conf.xml").iter("tool"):
        file = str(entry.get("file"))
        root = ElementTree.parse(folder / file).getroot()
        own = tokens | _tokens_in(root)
        version = str(root.get("version"))
        for name, text in own.items():
            version = version.replace(name, text)
        tools.append(PackagedTool(str(root.get("id")), version, file))
    return tuple(tools)


def packaged_datatypes() -> tuple[str, ...]:
    """The datatypes that KBrain adds to Galaxy's."""
    root = ElementTree.parse(packaged("tools") / "datatypes_conf.xml")
    return tuple(str(entry.get("extension")) for entry in root.iter("datatype"))


def _tokens(path: Path) -> dict[str, str]:
    return _tokens_in(ElementTree.parse(path).getroot())


def _tokens_in(root: ElementTree.Element) -> dict[str, str]:
    return {str(token.get("name")): (token.text or "").strip() for token in root.iter("token")}
