"""Which database: flags before the environment before a PostgreSQL of our own. Pure: nothing is opened.

What is found is written anew, as a URL that asyncpg reads as libpq would: asyncpg 0.32 (connect_utils.py)
takes "+" in a query for a space, an empty path for an empty name, and hands options that it does not know to
the server, which then refuses the connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote

from .errors import StoreError

DEFAULT_PORT = "5432"
URL_VARIABLES = ("COMFYFLOW_DATABASE_URL", "DATABASE_URL")  # the first that is set wins

# A variable of libpq (https://www.postgresql.org/docs/18/libpq-envars.html) and what it is called in a DSN.
_LIBPQ = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGDATABASE": "dbname",
    "PGPASSFILE": "passfile",
    "PGSSLMODE": "sslmode",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCRL": "sslcrl",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGKRBSRVNAME": "krbsrvname",
    "PGGSSLIB": "gsslib",
    "PGAPPNAME": "application_name",
    "PGOPTIONS": "options",
}
_DECIDING = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")

# Options that libpq or Prisma (the last line) understand, but neither asyncpg nor the server does.
_LEFT_OUT = re.compile(
    "connect_timeout|channel_binding|client_encoding|fallback_application_name|gssdelegation|gssencmode"
    "|keepalives(_idle|_interval|_count)?|load_balance_hosts|(min|max)_protocol_version|replication"
    "|require_auth|requirepeer|requiressl|scram_(client|server)_key|tcp_user_timeout"
    "|ssl(certmode|compression|crldir|keylogfile|sni)"
    "|connection_limit|pgbouncer|pool_timeout|socket_timeout|statement_cache_size"
)
_OTHER_NAMES = {"database": "dbname", "schema": "search_path"}

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?", re.IGNORECASE)
_SCHEME = re.compile(r"postgres(?:ql)?(?:\+\w+)?", re.IGNORECASE)  # "postgresql+asyncpg" is SQLAlchemy's
_HOST = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\[\]]*)(?::([0-9]*))?")
_KEYWORD = re.compile(r"\s*(\w+)\s*=\s*('(?:\\.|[^'\\])*'|(?:\\.|[^\s'\\])*)(?=\s|$)\s*", re.DOTALL)
_LINKED_PORT = re.compile(r"tcp://[^/]*:([0-9]+)")  # POSTGRES_PORT as Kubernetes and container links set it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_HOW = (
    "write it like postgresql://user:password@host:5432/database, with the special characters of a password"
    " percent-encoded (%40 for @); the words 'embedded' and 'none' are for --database and"
    " COMFYFLOW_DATABASE_URL alone"
)

# A line of an env file: a name, and a value in single quotes, in double quotes, or plain.
_ENV_LINE = re.compile(
    r"""^[^\S\n]*(?:export[^\S\n]+)?([A-Za-z_][\w.-]*)[^\S\n]*=[^\S\n]*
    (?:'([^']*)'|"((?:\\.|[^"\\])*)"|([^\n]*))""",
    re.MULTILINE | re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


class DatabaseKind(StrEnum):
    """What records jobs: a server that was named, a PostgreSQL of our own, or nothing."""

    SERVER = "server"
    EMBEDDED = "embedded"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Database:
    """The database that was chosen, and by which `rule`: the flag or the variable that decided.

    `dsn` is a URL for asyncpg, empty unless `kind` is SERVER. It holds the password: show `shown` instead.
    `folder` is where a PostgreSQL of our own keeps its data ("" where that is not known yet).
    """

    kind: DatabaseKind
    rule: str
    dsn: str = field(default="", repr=False)
    folder: str = ""

    @property
    def shown(self) -> str:
        """For people: where it is and as whom, never a password and no options."""
        if self.kind is not DatabaseKind.SERVER:
            return self.kind.value
        options = _from_url(self.dsn, self.rule)
        if "service" in options:
            return f"service {_encoded(options['service'])}"
        return _url({name: options[name] for name in ("user", "host", "port", "dbname") if name in options})

    @property
    def target(self) -> str:
        """The database's identity, for the journal: "host:port/name", without user and password. Two ways of
        writing the same address give the same text; two names of one machine do not. A PostgreSQL of our own
        is known by its folder: "embedded:/folder"."""
        if self.kind is not DatabaseKind.SERVER:
            return f"{self.kind.value}:{self.folder}" if self.folder else self.kind.value
        options = _from_url(self.dsn, self.rule)
        if "service" in options:
            return f"service={_encoded(options['service'])}"
        return f"{','.join(_addresses(options))}/{_encoded(options.get('dbname', ''))}"


def choose(
    env: Mapping[str, str], flag: str | None = None, *, read: Callable[[str], str] | None = None
) -> Database:
    """The first of these that is set decides; a variable that is empty counts as not set:

    1. `flag` (--database), 2. COMFYFLOW_DATABASE_URL: a DSN, or the word "embedded" or "none"
    3. DATABASE_URL: a DSN
    4. POSTGRES_HOST, with POSTGRES_PORT, _USER, _PASSWORD and _DB. Without POSTGRES_HOST the others mean
       nothing here: they are also what the database's own container is set up with, and do not say where it
       is. User and database are "postgres" and the user's name when not set, as in the official image.
       `read` gives the text of the file that POSTGRES_PASSWORD_FILE names; without it that is not looked at.
    5. libpq's PGHOST, PGHOSTADDR, PGPORT, PGDATABASE, PGUSER or PGSERVICE
    6. else a PostgreSQL of our own

    What a DSN leaves open is filled from libpq's variables in `env`, as psql does it. A DSN is a URL, also
    with several hosts or `?host=/folder` of a socket, or libpq's `host=... dbname=...`. Raises StoreError for
    one that cannot be used; the next rule is not tried then, and the text is never shown.
    """
    if flag is not None:
        return _named(flag, "--database", env)
    for variable in URL_VARIABLES:
        if text := env.get(variable, "").strip():
            return _named(text, variable, env)
    if env.get("POSTGRES_HOST", "").strip():
        return _server(_from_stack(env, read), "POSTGRES_*", env)
    if any(env.get(variable) for variable in _DECIDING):
        return _server({}, "libpq variables", env)
    return Database(DatabaseKind.EMBEDDED, "default")


def parse_env_file(text: str) -> dict[str, str]:
    """The variables of a `.env` file, as docker compose reads it, but without `$` being replaced by anything.

    A line is `NAME=value`, also after `export`. A value in single quotes is taken as it is, one in double
    quotes knows the escapes of a backslash, and both may span lines; a plain one ends before " #". Other
    lines are passed over. The last of two lines with one name wins.
    """
    found = {}
    for match in _ENV_LINE.finditer(text.removeprefix("\ufeff").replace("\r\n", "\n")):
        name, single, double, plain = match.groups()
        if single is not None:
            found[name] = single
        elif double is not None:
            found[name] = re.sub(r"\\(.)", lambda one: _ESCAPES.get(one[1], one[1]), double, flags=re.DOTALL)
        else:
            found[name] = re.sub(r"(^|\s)#.*", "", plain).strip()
    return found


# the rules


def _named(text: str, rule: str, env: Mapping[str, str]) -> Database:
    given = text.strip()
    word = given.lower()
    if word in (DatabaseKind.EMBEDDED, DatabaseKind.NONE) and rule != "DATABASE_URL":
        return Database(DatabaseKind(word), rule)
    options = _from_url(given, rule) if "://" in given else _from_keywords(given, rule)
    return _server(options, rule, env)


def _server(options: Mapping[str, str], rule: str, env: Mapping[str, str]) -> Database:
    filled = _filled(options, env)
    if any(_CONTROL.search(value) for value in filled.values()):
        raise StoreError(f"{rule}: the database address holds a line break or a control character; {_HOW}")
    if "service" not in filled:
        _check(filled, rule)
    return Database(DatabaseKind.SERVER, rule, _url(filled))


def _from_stack(env: Mapping[str, str], read: Callable[[str], str] | None) -> dict[str, str]:
    port = env.get("POSTGRES_PORT", "").strip()
    linked = _LINKED_PORT.fullmatch(port)
    user = env.get("POSTGRES_USER") or "postgres"
    return {
        "host": env["POSTGRES_HOST"].strip(),
        "port": linked[1] if linked else port,
        "user": user,
        "password": env.get("POSTGRES_PASSWORD") or _secret(env.get("POSTGRES_PASSWORD_FILE"), read),
        "dbname": env.get("POSTGRES_DB") or user,
    }


def _secret(path: str | None, read: Callable[[str], str] | None) -> str:
    if not path or read is None:
        return ""
    try:
        return read(path).rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise StoreError(f"POSTGRES_PASSWORD_FILE: the file {path!r} cannot be read") from error


def _filled(options: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """With what the variables of libpq say about the rest."""
    given = {name: value for name, value in options.items() if value}
    service = given.get("service") or (env.get("PGSERVICE") if not given else None)
    if service:  # its file comes before the variables, and asyncpg reads both
        return {**given, "service": service}
    address = given.pop("hostaddr", "")  # asyncpg has no such thing
    usual = {option: env[variable] for variable, option in _LIBPQ.items() if env.get(variable)}
    if env.get("PGHOSTADDR"):
        usual.setdefault("host", env["PGHOSTADDR"])
    if address:
        given.setdefault("host", address)
    filled = {**usual, **given}
    if "," in filled.get("port", ""):  # asyncpg wants every one
        filled["port"] = ",".join(port or DEFAULT_PORT for port in filled["port"].split(","))
    if "user" in filled:
        filled.setdefault("dbname", filled["user"])
    return filled


def _check(options: Mapping[str, str], rule: str) -> None:
    hosts, ports = options.get("host", "").split(","), options.get("port", "").split(",")
    if len(hosts) > 1 and not all(hosts):
        raise StoreError(f"{rule}: one of the hosts in the database address is empty; {_HOW}")
    if len(ports) not in (1, len(hosts)):
        raise StoreError(
            f"{rule}: the database address has {len(hosts)} hosts but {len(ports)} ports; {_HOW}"
        )
    if not all(_is_port(port) for port in ports):
        raise StoreError(f"{rule}: the port of the database address must be a number from 1 to 65535; {_HOW}")


def _is_port(text: str) -> bool:
    return not text or (re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536)


# reading and writing


def _from_url(text: str, rule: str) -> dict[str, str]:
    # By hand: urlsplit drops line breaks silently, and knows no list of hosts.
    match = _URL.fullmatch(text)
    if match is None:
        raise StoreError(f"{rule}: this is no database address; {_HOW}")
    scheme, place, path, query = match.groups(default="")
    if "@" in path:  # a password with a bare "/" ends up here, and would be shown as the database's name
        raise StoreError(f"{rule}: there is a '/' before the '@' of the database address; {_HOW}")
    if not _SCHEME.fullmatch(scheme):
        raise StoreError(f"{rule}: a {scheme}:// address is not one of PostgreSQL; {_HOW}")
    account, _, hosts = place.rpartition("@")
    user, _, password = account.partition(":")
    options = {"user": unquote(user), "password": unquote(password), "dbname": unquote(path)}
    options |= _from_hosts(hosts, rule)
    return {**{name: value for name, value in options.items() if value}, **_from_query(query, rule)}


def _from_hosts(text: str, rule: str) -> dict[str, str]:
    matches = [_HOST.fullmatch(one) for one in text.split(",")]
    found = [match.groups(default="") for match in matches if match]
    if len(found) < len(matches):
        raise StoreError(f"{rule}: the host in the database address cannot be read; {_HOW}")
    hosts, ports = zip(*found, strict=True)
    return {"host": unquote(",".join(hosts)), "port": ",".join(ports) if any(ports) else ""}


def _from_query(query: str, rule: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in query.split("&") if part]
    if not all(equals for _, equals, _ in pairs):
        raise StoreError(f"{rule}: what follows '?' in the database address is not name=value; {_HOW}")
    return _understood((unquote(name), unquote(value)) for name, _, value in pairs)


def _from_keywords(text: str, rule: str) -> dict[str, str]:
    pairs, place = [], 0
    while place < len(text) and (match := _KEYWORD.match(text, place)):
        name, value = match.groups()
        quoted = value[1:-1] if value.startswith("'") else value
        pairs.append((name, re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)))
        place = match.end()
    if not pairs or place < len(text):
        raise StoreError(f"{rule}: this is no database address; {_HOW}")
    return _understood(pairs)


def _understood(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    options = {_OTHER_NAMES.get(name, name): value for name, value in pairs if value}
    return {name: value for name, value in options.items() if not _LEFT_OUT.fullmatch(name)}


def _url(options: Mapping[str, str]) -> str:
    """The DSN as asyncpg wants it. One host stands in its usual place, sockets and lists in the query."""
    rest = dict(options)
    host, port = rest.get("host", ""), rest.get("port", "")
    user, password, name = rest.pop("user", ""), rest.pop("password", ""), rest.pop("dbname", "")
    place = ""
    if host and "," not in host and not host.startswith("/"):
        place = _bracketed(host) + (f":{port}" if port else "")
        del rest["host"]
        rest.pop("port", None)
    elif host:
        rest["host"] = ",".join(_bracketed(one) for one in host.split(","))
    account = _encoded(user) + (f":{_encoded(password)}" if password and user else "")
    if password and not user:
        rest["password"] = password
    query = "&".join(f"{name}={quote(value, safe='/,:[]')}" for name, value in rest.items())
    return (
        "postgresql://"
        + (f"{account}@" if account else "")
        + place
        + (f"/{_encoded(name)}" if name else "")
        + (f"?{query}" if query else "")
    )


def _addresses(options: Mapping[str, str]) -> list[str]:
    hosts = (options.get("host") or "localhost").split(",")
    ports = (options.get("port") or DEFAULT_PORT).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [f"{_bracketed(host)}:{port or DEFAULT_PORT}" for host, port in zip(hosts, ports, strict=True)]


def _bracketed(host: str) -> str:
    if host.startswith("/"):
        return host
    bare = host.strip("[]").lower()
    return f"[{bare}]" if ":" in bare else quote(bare, safe="")


def _encoded(text: str) -> str:
    return quote(text, safe="")
