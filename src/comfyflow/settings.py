"""Flags before environment before defaults. Pure: the environment is handed in, nothing is opened or sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from .errors import UsageError
from .models import Timeouts

DEFAULT_URL = "http://127.0.0.1:8188"
DEFAULT_PORT = 8188  # ComfyUI's own (comfy/cli_args.py, 0.27.0)
DEFAULT_OUTPUT = "comfyflow-output"
URL_VARIABLES = ("COMFYFLOW_URL", "COMFYUI_URL", "COMFYUI_HOST")  # the first that is set wins

_EXAMPLE = "write it like http://127.0.0.1:8188 or 192.168.1.5:8188"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, 5.6.2
_LISTEN_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What every command needs to know. `timeouts` are in seconds, `output` is the folder for results.

    `url` may hold credentials (the client takes them out); show `shown_url` instead.
    """

    url: str = field(default=DEFAULT_URL, repr=False)  # may hold a password
    output: Path = Path(DEFAULT_OUTPUT)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def shown_url(self) -> str:
        """The URL without user name and password."""
        return without_credentials(self.url)


def resolve(
    env: Mapping[str, str],
    *,
    server: str | None = None,
    output: Path | None = None,
    headers: Iterable[str] = (),
    timeout: float | None = None,
    silence: float | None = None,
) -> Settings:
    """Settings from flags, else the environment, else the defaults. An empty variable counts as not set.

    `timeout` (one job, start to end) and `silence` (no sign of progress) are in seconds; `headers` are lines
    `Name: value`. Raises UsageError with one sentence that names the flag or variable.
    """
    usual = Timeouts()
    return Settings(
        url=server_url(env, server),
        output=output if output is not None else Path(env.get("COMFYFLOW_OUTPUT") or DEFAULT_OUTPUT),
        headers=request_headers(env, headers),
        timeouts=Timeouts(
            silence=usual.silence if silence is None else _seconds("--silence", silence),
            total=usual.total if timeout is None else _seconds("--timeout", timeout),
        ),
    )


def server_url(env: Mapping[str, str], flag: str | None = None) -> str:
    """The server's base URL: the flag, else COMFYFLOW_URL, COMFYUI_URL, COMFYUI_HOST, else the local server.

    Raises UsageError when the one that wins cannot be used; the next one is not tried then.
    """
    if flag is not None:
        return normalise_url(flag, source="--server")
    for name in URL_VARIABLES:
        if env.get(name, "").strip():
            return normalise_url(env[name], source=name)
    return DEFAULT_URL


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
