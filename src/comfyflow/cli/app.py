"""The typer application, and what its commands share: options, input, the way to a server.

A command may take a dataclass: each of its fields is an option then, so that a group of options is written
once.
"""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .. import __version__
from ..console import Call
from ..dsn import parse_env_file
from ..errors import UsageError, WorkflowInvalid
from ..models import Ambiguous, OnLost, PollSchedule
from ..settings import Settings, normalise_url, resolve
from ..sources import MAX_SIZE, Source, find

if TYPE_CHECKING:
    from ..client import ComfyClient
    from ..pool import ServerPool

app = typer.Typer(
    name="comfyflow",
    help="Run ComfyUI workflows dependably: a workflow in, verified files out.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"comfyflow {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# options that several commands share

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's prompt id.")]
FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A workflow in API or UI format, or a file that ComfyUI made; - reads stdin."
    ),
]
SharedOption = Annotated[
    Path | None,
    typer.Option(
        "--shared",
        metavar="DIR",
        help="The folder that recorded paths are relative to, as it is mounted here. "
        "[default: COMFYFLOW_SHARED]",
    ),
]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep-content", help="Put the files into the database as well. [default: COMFYFLOW_KEEP_CONTENT]"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaking:
    """How a command speaks."""

    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show causes, the server's traceback, and what happens.")
    ] = False

    def call(self, *, quiet: bool = True, **known: Any) -> Call:
        """One call of the command; `known` is what its document says besides an error."""
        return Call(self.as_json, quiet, self.verbose, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured(Speaking):
    """A command that looks at the environment."""

    env_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read variables from this file (.env); the real environment wins over it."
        ),
    ] = None

    def environment(self) -> Mapping[str, str]:
        """The environment, with the file below it. Raises UsageError."""
        return os.environ if self.env_file is None else {**_variables(self.env_file), **os.environ}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking(Configured):
    """A command that asks a server."""

    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Where ComfyUI is. Given several times: jobs go to whichever is free. [default: "
            "COMFYFLOW_SERVERS, COMFYFLOW_URL, COMFYUI_URL, COMFYUI_HOST, local]",
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", metavar="'NAME: VALUE'", help="Send this header too. May be given several times."
        ),
    ] = None

    def settings(self, **more: Any) -> Settings:
        """Options before environment before defaults; `more` as `resolve` takes it. Raises UsageError."""
        return resolve(self.environment(), server=self.server or (), headers=self.header or (), **more)


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="DSN|embedded|none",
        help="Where jobs are recorded. [default: COMFYFLOW_DATABASE_URL, DATABASE_URL, POSTGRES_HOST, "
        "PGHOST, a PostgreSQL of our own]",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Configured):
    """A command that works with the database."""

    database: DatabaseOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Following(Asking):
    """A command that follows a job and records it."""

    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop waiting after this time. [default: never]")
    ] = None
    silence: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Stop when nothing moves on the server for this time. [default: 1800]"
        ),
    ] = None
    no_websocket: Annotated[
        bool,
        typer.Option("--no-websocket", help="Follow the job by asking now and then, without a WebSocket."),
    ] = False
    database: DatabaseOption = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False

    def settings(self, **more: Any) -> Settings:
        """See Asking."""
        limits = {"timeout": self.timeout, "silence": self.silence}
        # Not super(): a dataclass with slots is another class than the one that the method was written in.
        return Asking.settings(self, **limits, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A command that sends jobs."""

    resubmit_lost: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Send a job that the server has accepted and forgotten (a restart) again, up to N times.",
        ),
    ] = 0
    ambiguous: Annotated[
        Ambiguous,
        typer.Option(
            help="When nobody can tell whether the server has read a job: wait until it is certain, send it "
            "again (maybe twice), or fail (maybe not at all)."
        ),
    ] = Ambiguous.WAIT

    @property
    def on_lost(self) -> OnLost | None:
        """What to do about a lost job; None: as it is usual, with one server or several."""
        return OnLost.RESUBMIT if self.resubmit_lost else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """A command that sends jobs to several servers."""

    ahead: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Of several servers: our jobs that wait in the queue of each."),
    ] = 2
    lost_after: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Of several servers: one that has refused connections for so long is gone, and its jobs go "
            "to others.",
        ),
    ] = 60.0
    gone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="This server has ended for good, and what it held goes to others. May be given several "
            "times.",
        ),
    ] = None

    def options(self) -> dict[str, Any]:
        """The same for `ServerPool`. Raises UsageError."""
        gone = [normalise_url(url, source="--gone") for url in self.gone or ()]
        return {"ahead": self.ahead, "lost_after": self.lost_after, "gone": gone}


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Any]:
    """Make a function a command of this group; see the module's docstring."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        group.command(name)(spread(function))
        return function

    return register


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """The function as typer can read it: a parameter for each field of the dataclasses that it takes."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in signature.parameters.items() if is_dataclass(one.annotation)
    }
    plain = [one for name, one in signature.parameters.items() if name not in groups]
    options = [option for group in groups.values() for option in _options(group)]

    @wraps(function)
    def spreading(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**values, **made)

    spreading.__dict__["__signature__"] = signature.replace(parameters=[*plain, *options])
    return spreading


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def _variables(path: Path) -> dict[str, str]:
    try:
        return parse_env_file(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"--env-file: {path} cannot be read: {reason}") from error


# input, and the way to a server


def found(file: str) -> Source:
    """Read FILE, whatever it is. A file that cannot be read is wrong use, not a bad workflow."""
    if file == "-":
        if sys.stdin is None:  # closed by whoever called us (`<&-`)
            raise UsageError("there is nothing on standard input: name a file")
        return find(sys.stdin.buffer.read(MAX_SIZE + 1), name="standard input")
    try:
        return find(file)
    except WorkflowInvalid as error:
        if isinstance(error.__cause__, OSError | ValueError) and not Path(file).is_file():
            raise UsageError(str(error)) from error.__cause__
        raise


def connected(
    settings: Settings,
    *,
    websocket: bool,
    poll: PollSchedule | None = None,
    ambiguous: Ambiguous = Ambiguous.WAIT,
    pooling: Pooling | None = None,
) -> ComfyClient | ServerPool:
    """A client for the server of these settings, or a pool for several; to be entered by the caller. Raises
    UsageError."""
    from ..client import ComfyClient
    from ..pool import ServerPool

    options: dict[str, Any] = {
        "websocket": websocket,
        "timeout": settings.timeouts,
        "poll": poll or PollSchedule(),
        "headers": settings.headers,
        "ambiguous": ambiguous,
    }
    pool = {} if pooling is None else pooling.options()
    if len(settings.servers) > 1 or pool.get("gone"):
        return ServerPool(settings.servers, **pool, **options)
    return ComfyClient(settings.url, **options)


def only_one(settings: Settings, instead: str) -> None:
    """For a command that asks one server. Raises UsageError."""
    if len(settings.servers) > 1:
        raise UsageError(f"several servers are named: say which one with --server, or use `{instead}`")
