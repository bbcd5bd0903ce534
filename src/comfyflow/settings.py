"""Flags before environment before defaults. Pure: the environment is handed in, nothing is opened or sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf, isfinite
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from .errors import UsageError
from .models import PoolServer, Timeouts

DEFAULT_URL = "http://127.0.0.1:8188"
DEFAULT_PORT = 8188  # ComfyUI's own (comfy/cli_args.py, 0.27.0)
DEFAULT_OUTPUT = "comfyflow-output"
DEFAULT_CONTENT_LIMIT = "100M"
SERVERS = "COMFYFLOW_SERVERS"
URL_VARIABLES = ("COMFYFLOW_URL", "COMFYUI_URL", "COMFYUI_HOST")  # the first that is set wins

_EXAMPLE = "write it like http://127.0.0.1:8188 or 192.168.1.5:8188"
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}  # s
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)\s*([smhdw])")
_SIZE = re.compile(r"([0-9]{1,12})([kKmMgG]?)(?:i?B)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, 5.6.2
_LISTEN_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What every command needs to know. `timeouts` are in seconds, `output` is the folder for results.

    `shared` is the folder that recorded paths are relative to, `keep_content` puts files into the database.
    `url` may hold credentials (the client takes them out); show `shown_url` instead. `servers` are several,
    `url` the first of them (or one of a test, with none there).
    """

    url: str = field(default=DEFAULT_URL, repr=False)  # may hold a password
    output: Path = Path(DEFAULT_OUTPUT)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    shared: Path | None = None
    keep_content: bool = False
    servers: tuple[PoolServer, ...] = (PoolServer(DEFAULT_URL),)

    @property
    def shown_url(self) -> str:
        """The URL without user name and password; those of all servers."""
        urls = [server.url for server in self.servers] or [self.url]
        return ", ".join(without_credentials(url) for url in urls)


def resolve(
    env: Mapping[str, str],
    *,
    server: str | Sequence[str] | None = None,
    output: Path | None = None,
    headers: Iterable[str] = (),
    timeout: float | None = None,
    silence: float | None = None,
    shared: Path | None = None,
    keep_content: bool = False,
) -> Settings:
    """Settings from flags, else the environment, else the defaults. An empty variable counts as not set.

    `timeout` (one job, start to end) and `silence` (no sign of progress) are in seconds; `headers` are lines
    `Name: value`. Raises UsageError with one sentence that names the flag or variable.
    """
    usual = Timeouts()
    servers = pool_servers(env, [server] if isinstance(server, str) else server or ())
    return Settings(
        url=servers[0].url,
        servers=servers,
        output=output if output is not None else Path(env.get("COMFYFLOW_OUTPUT") or DEFAULT_OUTPUT),
        headers=request_headers(env, headers),
        timeouts=Timeouts(
            silence=usual.silence if silence is None else _seconds("--silence", silence),
            total=usual.total if timeout is None else _seconds("--timeout", timeout),
        ),
        shared=shared_folder(env, shared),
        keep_content=keep_content or _switch(env, "COMFYFLOW_KEEP_CONTENT"),
    )


def shared_folder(env: Mapping[str, str], flag: Path | None = None) -> Path | None:
    """The folder that others mount too: the flag, else COMFYFLOW_SHARED, else none."""
    named = env.get("COMFYFLOW_SHARED")
    return flag if flag is not None else Path(named) if named else None


def moment(text: str, now: float, *, source: str = "--since") -> float:
    """The moment that a text means, in seconds since the Unix epoch: `2h` or `3d` ago, or an ISO date.

    A date without a time zone is one of this machine's. Raises UsageError.
    """
    if (match := _AGE.fullmatch(text.strip())) is not None:
        return now - _in_seconds(match)
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{source}: {text!r} is no moment; write 90m, 2h, 3d, 2026-11-01 or 2026-11-01T18:30+01:00"
        ) from error


def age(text: str, *, source: str = "--older-than") -> float:
    """The span of time that a text means, in seconds: a number with s, m, h, d or w. Raises UsageError."""
    if (match := _AGE.fullmatch(text.strip())) is None:
        raise UsageError(f"{source}: {text!r} is no span of time; write it like 12h, 30d or 8w")
    return _in_seconds(match)


def content_limit(env: Mapping[str, str]) -> int:
    """The size in bytes up to which `keep_content` puts a file into the database: COMFYFLOW_CONTENT_LIMIT, as
    bytes or like 64k, 100M or 2G. Raises UsageError."""
    text = env.get("COMFYFLOW_CONTENT_LIMIT", "").strip() or DEFAULT_CONTENT_LIMIT
    if (match := _SIZE.fullmatch(text)) is None:
        raise UsageError(
            f"COMFYFLOW_CONTENT_LIMIT: {text!r} is no size; write bytes, or like 64k, 100M or 2G"
        )
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


def _in_seconds(match: re.Match[str]) -> float:
    number, unit = match.groups()
    return float(number) * _UNITS[unit]


def _switch(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "").strip().lower()
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise UsageError(f"{name}: {env[name]!r} is neither yes nor no; write 1 or 0")


def pool_servers(env: Mapping[str, str], flags: Sequence[str] = ()) -> tuple[PoolServer, ...]:
    """The servers: the flags, else COMFYFLOW_SERVERS (with spaces or commas between them), COMFYFLOW_URL,
    COMFYUI_URL, COMFYUI_HOST, else the local server.

    Raises UsageError when those that win cannot be used; the next ones are not tried then.
    """
    named = [("--server", flag) for flag in flags]
    named = named or [(SERVERS, text) for text in re.split(r"[\s,]+", env.get(SERVERS, "")) if text]
    named = named or [(name, env[name]) for name in URL_VARIABLES if env.get(name, "").strip()][:1]
    servers = [_pool_server(text, source) for source, text in named]
    urls = [without_credentials(server.url) for server in servers]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise UsageError(f"{named[0][0]}: {twice} is given twice")
    return tuple(servers) or (PoolServer(DEFAULT_URL),)


def _pool_server(text: str, source: str) -> PoolServer:
    """An address, and what follows `#`: `weight=2`, `ahead=4`."""
    url, mark, more = text.strip().partition("#")
    base = normalise_url(url, source=source)
    try:
        wanted = dict(parse_qsl(more, strict_parsing=bool(mark), keep_blank_values=True))
        weight, ahead = wanted.pop("weight", "1"), wanted.pop("ahead", None)
        server = PoolServer(base, float(weight), None if ahead is None else int(ahead))
        if wanted or not 0 <= server.weight < inf or (server.ahead is not None and server.ahead < 0):
            raise ValueError(more)
    except ValueError as error:
        raise UsageError(
            f"{source}: what may follow '#' in an address is weight=2 (0: no more jobs) or ahead=4, "
            "with '&' between both"
        ) from error
    return server


def normalise_url(text: str, *, source: str = "the server") -> str:
    """Make a base URL of a URL, a host or host:port: no slash at the end, base path and credentials kept.

    Without a scheme it is http, and port 8188 when there is no port either. 0.0.0.0, an address to listen on,
    becomes 127.0.0.1. Raises UsageError, which never shows a password.
    """
    given = text.strip()
    bare = "://" not in given
    parts = _split(f"http://{_bracketed(given)}" if bare else given, source)
    port = _port(parts, source) or (DEFAULT_PORT if bare else None)
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"{source}: the scheme {parts.scheme!r} is not http or https; {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise UsageError(f"{source}: leave out what follows '?' or '#' in the URL; {_EXAMPLE}")
    host = _host(parts, source)
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{user}{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def request_headers(env: Mapping[str, str], lines: Iterable[str] = ()) -> dict[str, str]:
    """Headers for every request, from lines `Name: value`; COMFYFLOW_API_KEY becomes `Authorization: Bearer`.

    A line `Authorization` wins over the variable. Raises UsageError, which shows no value.
    """
    headers = dict(_header(line) for line in lines)
    key = env.get("COMFYFLOW_API_KEY", "").strip()
    if key and "authorization" not in {name.lower() for name in headers}:
        headers["Authorization"] = f"Bearer {_printable(key, 'COMFYFLOW_API_KEY')}"
    return headers


def _split(url: str, source: str) -> SplitResult:
    # urlsplit drops line breaks and tabs silently, so they are looked for first.
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise UsageError(f"{source}: a URL has no spaces, backslashes or control characters; {_EXAMPLE}")
    try:
        return urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{source}: this is no URL; {_EXAMPLE}") from error


def _bracketed(text: str) -> str:
    """A bare IPv6 address gets the brackets that a URL needs."""
    return f"[{text}]" if re.fullmatch(r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", text) else text


def _host(parts: SplitResult, source: str) -> str:
    host = parts.hostname
    if not host:
        raise UsageError(f"{source}: there is no host in it; {_EXAMPLE}")
    host = _LISTEN_ANYWHERE.get(host, host)
    return f"[{host}]" if ":" in host else host


def _port(parts: SplitResult, source: str) -> int | None:
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{source}: the port must be a number from 1 to 65535; {_EXAMPLE}") from error
    if port == 0:
        raise UsageError(f"{source}: the port must be a number from 1 to 65535; {_EXAMPLE}")
    return port


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _HEADER_NAME.fullmatch(name.strip()):
        raise UsageError("--header: write it like 'Name: value', with a name of letters, digits and dashes")
    return name.strip(), _printable(value.strip(), f"--header {name.strip()}")


def _printable(value: str, source: str) -> str:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise UsageError(f"{source}: the value holds a line break or a control character; take it out")
    return value


def _seconds(source: str, value: float) -> float:
    if isfinite(value) and value > 0:
        return value
    raise UsageError(f"{source}: {value:g} is not a number of seconds above 0")
