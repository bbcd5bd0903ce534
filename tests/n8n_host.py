"""A real n8n of the tests' own: its folder, its database, its command line, its life and death."""

from __future__ import annotations

import copy
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clusters import execute
from n8n_install import NODE, environment

TEMPLATES = Path(__file__).parent.parent / "n8n"
API_KEY = "a key for tests"
_COMMAND = 120.0  # seconds that a command of n8n may take; three are usual
_START = 120.0  # seconds until the webhooks answer; ten are usual
_STOP = 20.0
_PAUSE = 0.1  # seconds between two looks
_TAIL = 3000  # characters of a log that a failure tells

Workflow = dict[str, Any]

# Nothing is asked of anybody on the network, and nothing is shown to anybody.
_QUIET = {
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_TEMPLATES_ENABLED": "false",
    "N8N_PERSONALIZATION_ENABLED": "false",
    "N8N_HIRING_BANNER_ENABLED": "false",
    "N8N_COMMUNITY_PACKAGES_ENABLED": "false",
    "N8N_LICENSE_AUTO_RENEW_ENABLED": "false",
    "N8N_DIAGNOSTICS_CONFIG_FRONTEND": "",
    "N8N_DIAGNOSTICS_CONFIG_BACKEND": "",
    "EXTERNAL_FRONTEND_HOOKS_URLS": "",
    "N8N_DISABLE_UI": "true",
    "N8N_RUNNERS_ENABLED": "true",  # 1.x; later ones have no other way
    "N8N_DEFAULT_BINARY_DATA_MODE": "filesystem",
    "GENERIC_TIMEZONE": "UTC",
    "TZ": "UTC",
}


class N8n:
    """n8n over a folder and an empty database of its own; `shared` is the one folder it may write files to.

    All of it blocks. `url` is where the webhooks are, also after a restart.
    """

    def __init__(self, installed: Path, folder: Path, database: str, shared: Path) -> None:
        package = installed / "node_modules" / "n8n"
        self._program = package / "bin" / "n8n"
        self._folder, self._database = folder, database
        self.port = free_port()
        self._environment = environment() | _QUIET | self._own(shared) | place_of(database).for_n8n()
        if (package / "dist" / "modules" / "mcp-registry").is_dir():  # it would ask a server of n8n's
            self._environment["N8N_DISABLED_MODULES"] = "mcp-registry"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def _own(self, shared: Path) -> dict[str, str]:
        return {
            "N8N_HOST": "127.0.0.1",
            "N8N_LISTEN_ADDRESS": "127.0.0.1",
            "N8N_PROTOCOL": "http",
            "N8N_PORT": str(self.port),
            "N8N_RUNNERS_BROKER_PORT": str(free_port()),
            "N8N_ENCRYPTION_KEY": secrets.token_hex(16),
            "N8N_USER_FOLDER": str(self._folder),
            "N8N_RESTRICT_FILE_ACCESS_TO": str(shared),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # the command line

    def command(self, *arguments: str) -> str:
        """Run a command of n8n; what it said. AssertionError when it failed."""
        # never a pipe: n8n spins when the reader goes away
        log = self._folder / f"command-{secrets.token_hex(3)}.log"
        with log.open("wb") as output:
            ended = subprocess.run(
                [str(NODE), str(self._program), *arguments],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=_COMMAND,
                check=False,
            )
        said = log.read_text(encoding="utf-8", errors="replace")
        assert ended.returncode == 0, f"n8n {arguments[0]} failed:\n{said[-_TAIL:]}"
        return said

    def give_credentials(self, credentials: list[dict[str, Any]]) -> None:
        """Import credentials: {id, name, type, data}."""
        path = self._folder / "credentials.json"
        path.write_text(json.dumps(credentials), encoding="utf-8")
        self.command("import:credentials", f"--input={path}")
        path.unlink()

    def give_workflows(self, workflows: Iterable[Workflow], *, published: bool = True) -> None:
        """Import workflows and publish them, which n8n notices when it starts."""
        folder = self._folder / f"import-{secrets.token_hex(3)}"
        folder.mkdir()
        ids = []
        for workflow in workflows:
            (folder / f"{workflow['id']}.json").write_text(json.dumps(workflow), encoding="utf-8")
            ids.append(workflow["id"])
        self.command("import:workflow", "--separate", f"--input={folder}")
        if published:
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(self._publish, ids))

    def _publish(self, id: str) -> None:
        """The way of 1.x and of 2.x; the newer `publish:workflow` is of 2.x alone."""
        self.command("update:workflow", f"--id={id}", "--active=true")

    def exported(self) -> dict[str, Workflow]:
        """All workflows as n8n gives them away, by id."""
        path = self._folder / "export.json"
        self.command("export:workflow", "--all", f"--output={path}")
        return {workflow["id"]: workflow for workflow in json.loads(path.read_text(encoding="utf-8"))}

    # life

    def start(self, webhooks: Iterable[tuple[str, str]]) -> None:
        """Start it, and wait until these webhooks are there: (method, path)."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(NODE), str(self._program), "start"],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # with its task runner, to be ended together
            )
        deadline = time.monotonic() + _START
        for method, path in webhooks:
            while not self._has(method, path):
                assert time.monotonic() < deadline, f"no webhook {method} {path}:\n{self.log[-_TAIL:]}"
                assert self._is_alive(_PAUSE), f"n8n ended:\n{self.log[-_TAIL:]}"

    def _is_alive(self, pause: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(pause)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _has(self, method: str, path: str) -> bool:
        """n8n tells which method is there instead, without running anything."""
        other = "POST" if method == "GET" else "GET"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(other, f"/webhook/{path}")
            return f"make a {method} request".encode() in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End it as a service manager does, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            if self._is_alive(_STOP):
                self.kill()
            self._process = None

    def kill(self) -> None:
        """End it at once, with all that it started."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    # what it did

    @property
    def _log(self) -> Path:
        return self._folder / "n8n.log"

    @property
    def log(self) -> str:
        """What it said, over all restarts."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def memory(self) -> Iterator[Memory]:
        """How much memory its main process takes for what happens in here. Linux only."""
        assert self._process is not None
        memory = Memory(Path(f"/proc/{self._process.pid}"))
        yield memory
        memory.done()

    def complaint(self) -> str:
        """Why a test may have failed: the executions that ended badly, and the last words of the log."""
        query = """SELECT e.id, w.name, d.data FROM execution_entity AS e
            JOIN workflow_entity AS w ON w.id = e."workflowId"
            JOIN execution_data AS d ON d."executionId" = e.id
            WHERE e.status = 'error' ORDER BY e.id DESC LIMIT 3"""
        [rows] = execute(self._database, query)
        told = [f"execution {id} of {name}: {_end(json.loads(data))}" for id, name, data in rows]
        return "\n".join([*told, self.log[-_TAIL:]])


def _end(flattened: list[Any]) -> str:
    """Of an execution: its last node, and what was wrong."""
    story = _unflattened(flattened)["resultData"]
    error = story.get("error") or {}
    return f"{story.get('lastNodeExecuted')}: {error.get('message')}"


class Memory:
    """The resident memory of a process, in bytes: before, and the most of it."""

    def __init__(self, process: Path) -> None:
        self._process = process
        (process / "clear_refs").write_text("5")  # proc(5): the peak begins anew
        self.before = self._peak()
        self.most = self.before

    def done(self) -> None:
        """The measured part is over."""
        self.most = self._peak()

    @property
    def growth(self) -> int:
        return self.most - self.before

    def _peak(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", (self._process / "status").read_text())
        assert found
        return int(found[1]) << 10


def _unflattened(values: list[Any]) -> Any:
    """What n8n's package "flatted" made: strings inside of objects and lists are indexes."""
    done: dict[int, Any] = {}

    def at(index: int) -> Any:
        if index not in done:
            value = values[index]
            if isinstance(value, dict):
                done[index] = fields = dict[str, Any]()
                fields |= {key: here(each) for key, each in value.items()}
            elif isinstance(value, list):
                done[index] = items = list[Any]()
                items += [here(each) for each in value]
            else:
                done[index] = value
        return done[index]

    def here(value: Any) -> Any:
        return at(int(value)) if isinstance(value, str) else value

    return at(0)


# Databases


class Place:
    """Where a database is, as n8n wants it. A folder with a socket is a host for it, as for libpq."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.host = query.get("host") or parts.hostname or "127.0.0.1"
        self.port = int(query.get("port") or parts.port or 5432)
        self.user, self.password = parts.username or "", parts.password or ""
        self.database = parts.path[1:]

    def for_n8n(self) -> dict[str, str]:
        """n8n's own database."""
        return {
            "DB_TYPE": "postgresdb",
            "DB_POSTGRESDB_HOST": self.host,
            "DB_POSTGRESDB_PORT": str(self.port),
            "DB_POSTGRESDB_DATABASE": self.database,
            "DB_POSTGRESDB_USER": self.user,
            "DB_POSTGRESDB_PASSWORD": self.password,
        }

    def credential(self) -> dict[str, Any]:
        """What the Postgres node of a workflow wants to know."""
        names = ("host", "port", "user", "password", "database")
        return {name: getattr(self, name) for name in names} | {"ssl": "disable", "maxConnections": 10}


def place_of(dsn: str) -> Place:
    return Place(dsn)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Templates


def template(name: str, config: Mapping[str, Any], *, seconds: float | None = None) -> Workflow:
    """A template as it is shipped, with other values in its Config, and its schedule every few seconds."""
    workflow: Workflow = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    rows = node(workflow, "Config")["parameters"]["assignments"]["assignments"]
    unknown = set(config) - {row["name"] for row in rows}
    assert not unknown, f"{name} has no {unknown} in its Config"
    for row in rows:
        row["value"] = config.get(row["name"], row["value"])
    if seconds is not None:
        (schedule,) = [one for one in workflow["nodes"] if one["type"].endswith(".scheduleTrigger")]
        interval = {"field": "seconds", "secondsInterval": seconds}
        schedule["parameters"]["rule"] = {"interval": [interval]}
    return workflow


def variant(workflow: Workflow, word: str, **credentials: Mapping[str, str]) -> Workflow:
    """The same once more, beside it: its webhook is at .../{word}. `credentials` replace those of a kind."""
    made = copy.deepcopy(workflow)
    made["id"] = f"{workflow['id'][:-2]}{word[:2]}"
    made["name"] += f" ({word})"
    for one in made["nodes"]:
        if one["type"].endswith(".webhook"):
            one["parameters"]["path"] += f"/{word}"
        if "webhookId" in one:
            one["webhookId"] = f"{one['webhookId'][:-8]}{word.encode().hex():0>8.8}"
        for kind in set(one.get("credentials", {})) & set(credentials):
            one["credentials"][kind] = dict(credentials[kind])
    return made


def node(workflow: Workflow, name: str) -> dict[str, Any]:
    """The node of that name."""
    found: dict[str, Any]
    (found,) = [one for one in workflow["nodes"] if one["name"] == name]
    return found
