"""The folder of an embedded Galaxy: its configuration, its database and its files."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbrain_core.engine import say
from kbrain_core.errors import InputError, ResourceError
from kbrain_core.store import atomic_path

from .places import PACKAGE, packaged, viewer_folder

USER_EMAIL = "biologist@kbrain.local"
JOBS_AT_A_TIME = (
    2  # of independent steps; each may use all processors, since most wait for the disk part of the time
)
UPLOADS_AT_A_TIME = (
    4  # Galaxy's own small jobs have places of their own: an upload shall not wait for a long step
)
MEMORY_SHARE = 0.8
PLUGIN = "kneuroviz"
PLUGIN_FOLDER = "static/plugins/visualizations"  # the only place below which Galaxy serves their files
LOG_BYTES = 5_000_000  # of one log file; the one before is kept too
# They warn of hundreds of tools and datatypes that have nothing to do with us, at every start.
NOISY = ("galaxy.tool_util.toolbox", "galaxy.tool_util.deps", "galaxy.datatypes", "galaxy.tools.search")


@dataclass(frozen=True)
class Instance:
    """A folder that holds an embedded Galaxy."""

    folder: Path

    @property
    def config_file(self) -> Path:
        """Galaxy's own configuration."""
        return self.folder / "config" / "galaxy.yml"

    @property
    def log_file(self) -> Path:
        """What Galaxy tells while it runs."""
        return self.folder / "galaxy.log"

    @property
    def start_log_file(self) -> Path:
        """What the server's process printed since its last start: why it ended, when it could not start."""
        return self.folder / "start.log"

    @property
    def version_file(self) -> Path:
        """Which release of Galaxy the database belongs to."""
        return self.folder / "database" / "galaxy-version"

    @property
    def own_tools_file(self) -> Path:
        """Tools of a person's own, in Galaxy's form of a list of tools; read when it is there."""
        return self.folder / "own_tools" / "tool_conf.xml"

    @property
    def process_file(self) -> Path:
        """Which process serves at which port."""
        return self.folder / "server.json"

    @property
    def lock_file(self) -> Path:
        """Locked by a start at work, and then by the server as long as it lives."""
        return self.folder / "server.lock"

    @property
    def key_file(self) -> Path:
        """The API key of the person whose Galaxy this is."""
        return self.folder / "config" / "api-key"

    @property
    def secrets_file(self) -> Path:
        """What Galaxy signs its ids with, and the key that makes the first user."""
        return self.folder / "config" / "secrets.json"

    def read_secrets(self) -> dict[str, str]:
        """The instance's secrets, made when there are none."""
        if not self.secrets_file.is_file():
            write_private(
                self.secrets_file,
                json.dumps({"id_secret": secrets.token_hex(16), "bootstrap_key": secrets.token_hex(16)}),
            )
        found: dict[str, str] = json.loads(self.secrets_file.read_text())
        return found


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text)


def prepare(instance: Instance, programs: Path) -> None:
    """Write the configuration of an instance; its data stay as they are.

    Parameters
    ----------
    instance : Instance
        Where it lies.
    programs : Path
        `bin` of the environment that holds Galaxy.

    Raises
    ------
    InputError
        When the folder's database was written by a newer Galaxy.
    ResourceError
        When the folder cannot be written.
    """
    galaxy = next(programs.parent.glob("lib/python*/site-packages/galaxy"))
    _check_version(instance, galaxy)
    try:
        for name in ("config", "database", "static"):
            (instance.folder / name).mkdir(parents=True, exist_ok=True)
        _link(instance.folder / "static" / "dist", galaxy / "web_client" / "dist")
        _copy_plugin(instance)
        shutil.copyfile(PACKAGE / "templates" / "welcome.html", instance.folder / "static" / "welcome.html")
        shutil.copyfile(plugin_folder() / "logo.svg", instance.folder / "static" / "favicon.svg")
        _write(instance.folder / "config" / "job_conf.yml", _job_configuration())
        _write(instance.folder / "config" / "tool_conf.xml", _tool_configuration(galaxy))
        _write(instance.folder / "config" / "datatypes_conf.xml", _datatypes_configuration())
        _write(instance.folder / "config" / "sanitize_allowlist.txt", _tools_whose_pages_are_shown())
        _write(instance.folder / "config" / "tool_data_tables.xml", "<tables></tables>\n")
        # JSON is YAML: no library is needed to write it
        write_private(
            instance.config_file, json.dumps(_galaxy_configuration(instance, galaxy), indent=1) + "\n"
        )
        _write(instance.version_file, _galaxy_version(galaxy))
    except OSError as error:
        raise ResourceError(
            f"'{instance.folder}' cannot be written ({error.strerror}): choose another folder with --folder"
        ) from error


def _galaxy_version(galaxy: Path) -> str:
    """The release in an environment, as its package says: 26.1."""
    package = next(galaxy.parent.glob("galaxy_app-*.dist-info")).name
    return ".".join(package.removeprefix("galaxy_app-").split(".")[:2])


def _check_version(instance: Instance, galaxy: Path) -> None:
    """Say what happens to a database of another release: an older one is brought up to date, a newer one is refused."""
    database = instance.folder / "database" / "universe.sqlite"
    if not instance.version_file.is_file():
        if database.is_file() and not instance.secrets_file.is_file():
            raise InputError(
                f"'{instance.folder}' holds a Galaxy that KBrain did not make: choose another --folder"
            )
        return
    found, ours = instance.version_file.read_text(), _galaxy_version(galaxy)
    if _numbers(found) > _numbers(ours):
        raise InputError(
            f"'{instance.folder}' was used with Galaxy {found} and this KBrain brings {ours}, which cannot read it: "
            "use the newer KBrain, or choose another --folder"
        )
    if found != ours and database.is_file():
        kept = database.with_name(f"universe-{found}.sqlite")
        shutil.copyfile(database, kept)
        say(
            f"Galaxy {ours} brings the database of {found} up to date; as it was before it is kept in '{kept}'"
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _galaxy_configuration(instance: Instance, galaxy: Path) -> dict[str, Any]:
    folder, tools = instance.folder, packaged("tools")
    found = instance.read_secrets()
    # ours first: of several types that recognise a file the first one wins, and Galaxy's are more general
    datatypes = folder / "config" / "datatypes_conf.xml"
    toolboxes = [tools / "tool_conf.xml", folder / "config" / "tool_conf.xml", instance.own_tools_file]
    options = {
        "data_dir": str(folder / "database"),
        "database_connection": f"sqlite:///{folder}/database/universe.sqlite?isolation_level=IMMEDIATE",
        "database_auto_migrate": True,
        "tool_config_file": ",".join(str(file) for file in toolboxes if file.is_file()),
        "job_config_file": str(folder / "config" / "job_conf.yml"),
        "datatypes_config_file": f"{datatypes},{galaxy / 'config/sample/datatypes_conf.xml.sample'}",
        "static_dir": str(folder / "static"),
        "static_dist_dir": str(folder / "static" / "dist"),
        "visualization_plugins_directory": str(folder / PLUGIN_FOLDER),
        "tool_data_table_config_path": str(
            folder / "config" / "tool_data_tables.xml"
        ),  # the default asks the internet
        "display_builtin_converters": False,
        "brand": "KBrain",
        "welcome_url": "/static/welcome.html",
        "single_user": USER_EMAIL,
        "admin_users": USER_EMAIL,
        "bootstrap_admin_api_key": found["bootstrap_key"],
        "id_secret": found["id_secret"],
        # tools come with KBrain's environment, so Galaxy shall not look for conda or containers
        "conda_auto_init": False,
        "conda_auto_install": False,
        "dependency_resolvers": [],
        "involucro_auto_init": False,
        "enable_mulled_containers": False,
        # how often the database is looked at; 0.2 s would cost a tenth of a processor while nothing runs
        "job_handler_monitor_sleep": 0.5,
        "workflow_monitor_sleep": 0.5,
        "job_runner_monitor_sleep": 0.2,
        "allow_path_paste": True,
        "enable_celery_tasks": True,
        "metadata_strategy": "directory_celery",
        "celery_conf": {"broker_url": "memory://", "result_backend": "cache+memory://"},
        "logging": _logging(instance),
        "sanitize_allowlist_file": str(folder / "config" / "sanitize_allowlist.txt"),
        "fetch_url_allowlist": "127.0.0.0/8",  # a viewer or web server on this machine may serve data
    }
    return {"galaxy": options}


def _logging(instance: Instance) -> dict[str, Any]:
    handler = {
        "class": "logging.handlers.RotatingFileHandler",
        "filename": str(instance.log_file),
        "maxBytes": LOG_BYTES,
        "backupCount": 1,
        "formatter": "line",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": handler},
        "root": {"level": "INFO", "handlers": ["file"]},
        "loggers": {name: {"level": "CRITICAL"} for name in NOISY},
    }


def _job_configuration() -> str:
    total_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    memory_mb = int(total_mb * MEMORY_SHARE / JOBS_AT_A_TIME)
    stages = {
        "runner": "detached",
        "local_slots": len(os.sched_getaffinity(0)),
        "env": [{"name": "GALAXY_MEMORY_MB", "value": str(memory_mb)}],
    }
    limits = {"stages": JOBS_AT_A_TIME, "small": UPLOADS_AT_A_TIME}
    configuration = {
        "runners": {"detached": {"load": "job_runner:DetachedJobRunner", "workers": sum(limits.values())}},
        "execution": {
            "default": "stages",
            "environments": {"stages": stages, "small": {"runner": "detached"}},
        },
        "tools": [{"class": name, "environment": "small"} for name in ("local", "requires_galaxy")],
        "limits": [
            {"type": "environment_total_concurrent_jobs", "id": name, "value": value}
            for name, value in limits.items()
        ],
    }
    return json.dumps(configuration, indent=1) + "\n"


def _tool_configuration(galaxy: Path) -> str:
    """Galaxy's own tools that workflows and people need beside ours."""
    model_tools = [
        "build_list.xml",
        "flatten_collection.xml",
        "extract_dataset.xml",
        "relabel_from_file.xml",
        "filter_failed_collection.xml",
    ]
    lines = [f'    <tool file="{galaxy / "tools" / name}" />' for name in model_tools]
    bundled = ["expression_tools/pick_value.xml", "expression_tools/parse_values_from_file.xml"]
    lines += [f'    <tool file="{galaxy / "tools" / "bundled" / name}" />' for name in bundled]
    section = "\n".join(lines)
    return f'<toolbox>\n  <section id="collections" name="Collections and values">\n{section}\n  </section>\n</toolbox>\n'


def _tools_whose_pages_are_shown() -> str:
    """Our reports are shown as they are; Galaxy strips other pages, like uploaded ones, which could act in its name."""
    from .server_check import packaged_tools

    return "".join(f"{tool.id}\n" for tool in packaged_tools())


def _datatypes_configuration() -> str:
    """Our datatypes, with their converters where they lie: Galaxy looks for them among its own."""
    tree = ElementTree.parse(packaged("tools") / "datatypes_conf.xml")
    for converter in tree.iter("converter"):
        converter.set("file", str(packaged("tools") / "datatypes" / converter.get("file", "")))
    return ElementTree.tostring(tree.getroot(), encoding="unicode") + "\n"


def _copy_plugin(instance: Instance) -> None:
    """Put the KNeuroViz plugin, with the client built in it, where Galaxy looks for visualizations."""
    client = viewer_folder()
    target = instance.folder / PLUGIN_FOLDER / PLUGIN / "static"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(plugin_folder(), target)
    if client.is_dir():
        shutil.copytree(client, target / "client")


def plugin_folder() -> Path:
    """The KNeuroViz plugin for Galaxy as it is packaged."""
    return packaged("tools") / "visualizations" / PLUGIN / "static"


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def python_path() -> str:
    """What Galaxy must be able to import: our job runner and our datatypes."""
    return os.pathsep.join([str(PACKAGE / "galaxy_modules"), str(packaged("tools") / "datatypes")])
