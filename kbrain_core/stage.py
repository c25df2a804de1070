"""What a stage is: one function whose signature and docstring are the only source of its options.

The `stage` decorator gives every stage the same life: its arguments are checked against the signature before it runs, its
outcome goes to `summary.json` and its pictures to a report afterwards, and its output is marked complete last.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import json
import math
import os
import platform
import re
import resource
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar, cast

from annotated_types import Ge, Gt, Le, Lt

from . import __version__
from .errors import AlreadyComplete, InputError, KBrainError, StageStopped

if TYPE_CHECKING:
    from .engine import Job
    from .report import Report

# Every stage, in the order of the five steps: "step.module"; the module holds a function of the module's name.
STAGES = (
    "ingest.sort_tiles",
    "ingest.convert_image",
    "processing.correct_illumination",
    "processing.stitch_tiles",
    "processing.align_sections",
    "storage.precompute_volume",
    "storage.export_image",
    "visualization.view_volume",
)
STEPS = ("ingest", "storage", "processing", "analysis", "visualization")

SUMMARY_VERSION = 1


@dataclass(frozen=True)
class Port:
    """What a parameter carries in or out of a stage; each format is mapped once to a Galaxy and a GenePattern type."""

    direction: Literal["in", "out"]
    format: Literal["volume", "image", "file", "folder", "tiles", "positions", "transforms", "html", "json"]


VolumeIn = Annotated[str, Port("in", "volume")]
VolumeOut = Annotated[str, Port("out", "volume")]
ImageIn = Annotated[str, Port("in", "image")]
FileIn = Annotated[Path, Port("in", "file")]
FileOut = Annotated[Path, Port("out", "file")]
FolderIn = Annotated[Path, Port("in", "folder")]
FolderOut = Annotated[Path, Port("out", "folder")]
TilesIn = Annotated[Path, Port("in", "tiles")]
TilesOut = Annotated[Path, Port("out", "tiles")]
PositionsIn = Annotated[Path, Port("in", "positions")]
PositionsOut = Annotated[Path, Port("out", "positions")]
TransformsIn = Annotated[Path, Port("in", "transforms")]
TransformsOut = Annotated[Path, Port("out", "transforms")]
ReportOut = Annotated[Path, Port("out", "html")]
SummaryOut = Annotated[Path, Port("out", "json")]


@dataclass(frozen=True)
class Part:
    """A share of the work for one of several machines, written `2/3`: the second of three."""

    index: int
    count: int

    @classmethod
    def from_text(cls, text: str) -> Part:
        """Read `i/n` with 1 <= i <= n."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        part = cls(int(match.group(1)), int(match.group(2))) if match else cls(0, 0)
        if not 1 <= part.index <= part.count:
            raise InputError(f"'{text}' is not a share of the work: write i/n with i from 1 to n, like 2/3")
        return part

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a stage runs; none of this changes its result.

    Parameters
    ----------
    report : Path, optional
        Where the HTML report goes (its pictures and a Markdown twin lie beside it). Default: `<output>-report.html`.
    summary : Path, optional
        Where the outcome, key figures, versions and costs go as JSON. Default: `<output>-summary.json`.
    workers : int, optional
        How many processes work at the same time. Default: as many as the processors this process may use.
    memory_gb : float, optional
        Most memory, in GB, that all workers together should take. Default: four fifths of what is free now.
    cluster : str, optional
        Address of a Dask scheduler, like tcp://host:8786, that runs the tasks instead of processes here.
    part : Part, optional
        Do only a share of the tasks, like 2/3, when several machines work on one output; the last to finish completes it.
    overwrite : bool
        Replace an output of KBrain that lies there already.
    dry_run : bool
        Only check the inputs and say how much time, memory and disk the work would take.
    """

    report: ReportOut | None = None
    summary: SummaryOut | None = None
    workers: Annotated[int, Ge(1)] | None = None
    memory_gb: Annotated[float, Gt(0)] | None = None
    cluster: str | None = None
    part: Part | None = None
    overwrite: bool = False
    dry_run: bool = False
    call = cast("StageCall | None", None)  # set by the decorator; without an annotation it is no option

    def with_call(self, call: StageCall) -> RunOptions:
        """These options, knowing the call they belong to."""
        copied = copy.copy(self)
        object.__setattr__(copied, "call", call)
        return copied

    @property
    def worker_count(self) -> int:
        """`workers`, or the number of processors this process may use."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def memory_bytes(self) -> int:
        """`memory_gb` in bytes, or four fifths of the memory that is free now."""
        if self.memory_gb is not None:
            return int(self.memory_gb * 1e9)
        return int(0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage returns. Every field a subclass adds is a key figure in `summary.json`, its unit in its name."""

    report: Report | None = field(default=None, repr=False)
    job: Job | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """The key figures: every field but those of the base class."""
        base = {"report", "job", "warnings"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in base}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a stage, read from its signature."""

    name: str
    hint: Any
    default: Any

    @property
    def flag(self) -> str:
        """The option on the command line, like `--max-shift-um`."""
        return "--" + self.name.replace("_", "-")

    @property
    def port(self) -> Port | None:
        """What the parameter carries in or out; None for an option."""
        return next((item for item in self.metadata if isinstance(item, Port)), None)

    @property
    def metadata(self) -> tuple[Any, ...]:
        """Everything the hint's `Annotated` layers say, however deep (`Annotated[...] | None`, `list[Annotated[...]]`)."""
        return tuple(_metadata(self.hint))

    @property
    def required(self) -> bool:
        """Whether the parameter has no default."""
        return self.default is inspect.Parameter.empty


def _metadata(hint: Any) -> Iterator[Any]:
    yield from getattr(hint, "__metadata__", ())
    for inner in typing.get_args(hint):
        if typing.get_origin(hint) is not Literal and not isinstance(inner, str | int | float):
            yield from _metadata(inner)


def command_name(function: Callable[..., Any]) -> str:
    """`stitch_tiles` -> `stitch-tiles`."""
    return function.__name__.replace("_", "-")


def step_of(function: Callable[..., Any]) -> str:
    """The step a stage belongs to: the name of the package its module lies in."""
    return function.__module__.split(".")[1]


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of a stage but `run`, read from its signature."""
    function = inspect.unwrap(function)
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    return tuple(
        Parameter(name, hints[name], p.default) for name, p in signature.parameters.items() if name != "run"
    )


def run_parameters() -> tuple[Parameter, ...]:
    """The options every stage takes, read from `RunOptions`."""
    hints = typing.get_type_hints(RunOptions, include_extras=True)
    return tuple(Parameter(f.name, hints[f.name], f.default) for f in dataclasses.fields(RunOptions))


def load_stage(name: str) -> Callable[..., StageResult]:
    """The stage function of a command's name, like `stitch-tiles`; KeyError when there is none."""
    by_command = {path.split(".")[1].replace("_", "-"): path for path in STAGES}
    path = by_command[name]
    module = importlib.import_module(f"{__package__}.{path}")
    function: Callable[..., StageResult] = getattr(module, path.split(".")[1])
    return function


@dataclass(frozen=True)
class StageCall:
    """One call of a stage: the function and the values of its parameters."""

    function: Callable[..., StageResult]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The stage's command name."""
        return command_name(self.function)

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The stage's parameters."""
        return parameters_of(self.function)

    def options(self) -> dict[str, str | None]:
        """The values of all parameters that are neither input nor output, as text."""
        return {p.name: _as_text(self.arguments[p.name]) for p in self.parameters if p.port is None}

    def paths(self, direction: Literal["in", "out"]) -> list[tuple[str, str]]:
        """Parameter name and path (or URL) of every input or output that was given."""
        found: list[tuple[str, str]] = []
        for parameter in self.parameters:
            if parameter.port and parameter.port.direction == direction:
                value = self.arguments[parameter.name]
                values = value if isinstance(value, list | tuple) else [] if value is None else [value]
                found += [(parameter.name, str(item)) for item in values]
        return found

    def check(self, run: RunOptions) -> None:
        """Refuse values outside the signature's bounds, and inputs that are not there."""
        values = [(parameter, self.arguments[parameter.name]) for parameter in self.parameters]
        values += [(parameter, getattr(run, parameter.name)) for parameter in run_parameters()]
        for parameter, value in values:
            for item in value if isinstance(value, list | tuple) else [value]:
                _check_value(parameter, item)
        for name, path in self.paths("in"):
            if "://" not in path and not Path(path).exists():
                raise InputError(f"--{name.replace('_', '-')}: there is no '{path}': check the path")

    def beside_output(self, suffix: str) -> Path:
        """A path beside the main output: `stitched.ome.zarr` -> `stitched.ome.zarr<suffix>`."""
        outputs = dict(reversed(self.paths("out")))
        path = outputs.get("output") or next(iter(outputs.values()), "kbrain")
        name = Path(path.rstrip("/")).name or "kbrain"
        return (Path() if "://" in path else Path(path).parent) / f"{name}{suffix}"


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _check_value(parameter: Parameter, value: Any) -> None:
    """Refuse a number that is not finite or outside the bounds, and a text that is no choice."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{parameter.flag} is {value}: give a finite number")
    if isinstance(value, str) and typing.get_origin(parameter.hint) is Literal:
        choices = typing.get_args(parameter.hint)
        if value not in choices:
            raise InputError(f"{parameter.flag} is '{value}': choose one of {', '.join(map(str, choices))}")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for bound in parameter.metadata:
        if isinstance(bound, Ge) and not value >= bound.ge:  # type: ignore[operator]
            raise InputError(f"{parameter.flag} is {value}: it must be at least {bound.ge}")
        if isinstance(bound, Gt) and not value > bound.gt:  # type: ignore[operator]
            raise InputError(f"{parameter.flag} is {value}: it must be above {bound.gt}")
        if isinstance(bound, Le) and not value <= bound.le:  # type: ignore[operator]
            raise InputError(f"{parameter.flag} is {value}: it must be at most {bound.le}")
        if isinstance(bound, Lt) and not value < bound.lt:  # type: ignore[operator]
            raise InputError(f"{parameter.flag} is {value}: it must be below {bound.lt}")


P = ParamSpec("P")
R = TypeVar("R", bound=StageResult)


def stage(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function a stage: check its arguments, then run it, write its summary and report, and complete its output.

    A stage whose same job has finished before returns the stored figures at once.

    Raises
    ------
    InputError
        When an argument is outside the bounds of the signature or an input is not there.
    StageStopped
        When nothing more is to be done here: after a dry run, or when other parts are outstanding.
    """

    @functools.wraps(function)
    def run_stage(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        options: RunOptions = bound.arguments["run"]
        arguments = {name: value for name, value in bound.arguments.items() if name != "run"}
        call = StageCall(function, arguments)
        bound.arguments["run"] = options.with_call(call)
        record = _Record(call, options)
        try:
            call.check(options)
            result = function(*bound.args, **bound.kwargs)
        except AlreadyComplete as done:
            print(done, file=sys.stderr)
            record.write("complete", str(done), done.figures, ())
            result_type: type[R] = typing.get_type_hints(function)["return"]
            return result_type(**done.figures)
        except StageStopped:
            raise
        except BaseException as error:
            record.write_failure(error)
            raise
        if result.report is not None:
            path = options.report or call.beside_output("-report.html")
            result.report.write(path)
            if result.report.passed is not None:
                print(
                    f"{'PASS' if result.report.passed else 'FAIL'}: {result.report.verdict_line}",
                    file=sys.stderr,
                )
            print(f"Report: {path}", file=sys.stderr)
        record.write("complete", "", result.figures(), result.warnings)
        if result.job is not None:
            result.job.complete(result.figures())
        return result

    return run_stage


class _Record:
    """What `summary.json` says of one run."""

    def __init__(self, call: StageCall, options: RunOptions) -> None:
        self.call = call
        self.options = options
        self.started = time.time()
        self.cpu_before_s = _cpu_seconds()
        self.io_before = _io_bytes()

    def write_failure(self, error: BaseException) -> None:
        """Say why the stage failed; a summary that cannot be written must not hide the failure itself."""
        message = str(error) if isinstance(error, KBrainError) else f"{type(error).__name__}: {error}"
        if self.options.summary is None and (self.options.dry_run or self._stands_beside_other_output()):
            return
        try:
            self.write("failed", " ".join(message.split()), {}, ())
        except OSError as summary_error:
            print(f"The summary could not be written: {summary_error}", file=sys.stderr)

    def _stands_beside_other_output(self) -> bool:
        """Whether the default place has no folder yet, or holds the summary of work that was done."""
        path = self.call.beside_output("-summary.json")
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["outcome"] == "complete")
        except (OSError, ValueError, KeyError, TypeError):
            return not path.parent.is_dir()

    def write(self, outcome: str, message: str, figures: dict[str, Any], warnings: tuple[str, ...]) -> None:
        from .store import atomic_path, fingerprint

        path = self.options.summary or self.call.beside_output("-summary.json")
        read, written = (after - before for after, before in zip(_io_bytes(), self.io_before))
        summary = {
            "summary_version": SUMMARY_VERSION,
            "stage": self.call.name,
            "outcome": outcome,
            "message": message,
            "figures": figures,
            "warnings": list(warnings),
            "parameters": self.call.options(),
            "inputs": [
                {
                    "parameter": name,
                    "path": path,
                    "fingerprint": fingerprint(path) if outcome == "complete" else None,
                }
                for name, path in self.call.paths("in")
            ],
            "outputs": [{"parameter": name, "path": path} for name, path in self.call.paths("out")],
            "versions": {"kbrain": __version__, "python": platform.python_version()},
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "wall_s": round(time.time() - self.started, 3),
            "cpu_s": round(_cpu_seconds() - self.cpu_before_s, 3),
            "peak_memory_bytes": _peak_memory_bytes(),
            "read_bytes": read,
            "written_bytes": written,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cpu_seconds() -> float:
    from .engine import worker_usage

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + worker_usage.cpu_s


def _peak_memory_bytes() -> int:
    from .engine import worker_usage

    kilobytes = [
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return max(max(kilobytes) * 1024, worker_usage.peak_bytes)


def _io_bytes() -> tuple[int, int]:
    """Bytes this process has read and written so far (Linux), 0 elsewhere."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return (0, 0)
    counters = dict(line.split(": ") for line in text.splitlines())
    return (int(counters["rchar"]), int(counters["wchar"]))
