"""What stands around n8n in the end-to-end tests: its workflows and credentials, the record, a caller."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from clusters import connected
from database_road import Road
from documented import assert_documented
from n8n_host import API_KEY, N8n, Place, Workflow, template, variant
from sinks import Chat, Mail

GENERATE, STATUS = "comfyflow/generate", "comfyflow/status"
REPEAT_MINUTES = 60
FAILURES = 3
PATIENCE = aiohttp.ClientTimeout(total=100)  # seconds
# The same workflow over another road to the database, and over a folder that n8n may not write to.
_VARIANTS = ("database", "storage")
_HOOKS = [("POST", GENERATE), ("GET", STATUS), *(("POST", f"{GENERATE}/{word}") for word in _VARIANTS)]


@dataclass(frozen=True)
class Stand:
    """Everything around the templates. `comfyui` and `watched` are the ports where n8n looks for a ComfyUI:
    that of the jobs, and that of the health check. `road` leads to the record for the webhook .../database;
    it is closed until a test opens it."""

    n8n: N8n
    record: str
    shared: Path
    comfyui: int
    watched: int
    chat: Chat
    mail: Mail
    road: Road

    def start(self) -> None:
        self.n8n.start(_HOOKS)

    def clear(self) -> None:
        self.chat.clear()
        self.mail.clear()


@dataclass(frozen=True)
class Answer:
    """Of a webhook. `body` is what JSON says, or the text when it is no JSON."""

    status: int
    body: Any

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.body["error"]["code"])


class Webhooks:
    """A caller. Every answer is compared with the documents."""

    def __init__(self, stand: Stand, session: aiohttp.ClientSession) -> None:
        self.stand, self._session = stand, session

    async def generate(
        self, workflow: Any, *, at: str = GENERATE, headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        """Send a workflow; `more` are other keys of the body."""
        return await self.post(json.dumps({"workflow": workflow} | more), at=at, headers=headers)

    async def post(self, text: str, *, at: str = GENERATE, headers: dict[str, str] | None = None) -> Answer:
        """Send anything."""
        sent = {"Content-Type": "application/json", "X-API-Key": API_KEY} | (headers or {})
        url = f"{self.stand.n8n.url}/webhook/{at}"
        async with self._session.post(url, data=io.BytesIO(text.encode()), headers=sent) as response:
            return await _read(response, "POST", GENERATE)

    async def status(self, prompt_id: str | None, **headers: str) -> Answer:
        query = {} if prompt_id is None else {"prompt_id": prompt_id}
        url = f"{self.stand.n8n.url}/webhook/{STATUS}"
        sent = {"X-API-Key": API_KEY} | headers
        async with self._session.get(url, params=query, headers=sent) as response:
            return await _read(response, "GET", STATUS)

    async def settled(self, prompt_id: str, within: float = 30.0) -> Answer:
        """Ask until the job has ended, as a caller does who got 202."""
        async with asyncio.timeout(within):
            while (answer := await self.status(prompt_id)).status == 202:
                await _moment()
        return answer

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """What the record says."""
        async with connected(self.stand.record) as connection:
            return [dict(row) for row in await connection.fetch(query, *values)]

    async def until(self, query: str, *values: Any, within: float = 30.0) -> list[dict[str, Any]]:
        """What the record says, as soon as it says anything."""
        async with asyncio.timeout(within):
            while not (rows := await self.rows(query, *values)):
                await _moment()
        return rows

    async def change(self, statement: str, *values: Any) -> None:
        """Change the record behind everybody's back."""
        async with connected(self.stand.record) as connection:
            await connection.execute("SET session_replication_role = replica")  # no trigger looks
            await connection.execute(statement, *values)

    async def run(self, prompt_id: str) -> dict[str, Any]:
        """The row of a job."""
        (row,) = await self.rows("SELECT * FROM workflow_runs WHERE prompt_id = $1", prompt_id)
        return row

    async def events(self, prompt_id: str) -> list[str]:
        """The kinds of its events, in the order they were written."""
        query = "SELECT kind FROM run_events WHERE prompt_id = $1 ORDER BY id"
        return [row["kind"] for row in await self.rows(query, prompt_id)]


async def _moment() -> None:
    """Between two looks at what cannot tell that it has changed."""
    await asyncio.to_thread(threading.Event().wait, 0.1)


async def _read(response: aiohttp.ClientResponse, method: str, path: str) -> Answer:
    text = await response.text()
    body = json.loads(text) if response.content_type == "application/json" else text
    assert_documented(method, path, response.status, response.content_type, body)
    return Answer(response.status, body)


def workflows(stand: Stand) -> list[Workflow]:
    """The templates, with the places of this stand in their Config, and quicker."""
    jobs = {
        "comfyui_url": f"http://127.0.0.1:{stand.comfyui}",
        "shared_folder": str(stand.shared),
        "poll_seconds": "0.3,0.6,1.2",
        "timeout_seconds": 60,
        "unreachable_seconds": 8,
    }
    alerts = {
        "slack_webhook_url": stand.chat.url,
        "mail_from": "comfyflow@example.test",
        "mail_to": "ops@example.test",
    }
    watched = {"comfyui_url": f"http://127.0.0.1:{stand.watched}", "failures_before_alert": FAILURES}
    generate = template("comfyui-generate", jobs)
    forbidden = {"shared_folder": str(stand.shared.parent / "not for n8n")}
    road = {"id": "comfyflowPgRoad1", "name": "PostgreSQL, over a road"}
    return [
        generate,
        template("comfyui-status", jobs, seconds=2),
        template("comfyui-healthcheck", watched | alerts, seconds=1),
        template("comfyui-error-alert", alerts | {"repeat_minutes": REPEAT_MINUTES}),
        variant(generate, "database", postgres=road),
        variant(template("comfyui-generate", jobs | forbidden), "storage"),
    ]


def credentials(stand: Stand, login: str) -> list[dict[str, Any]]:
    """Those that the templates name; `login` is how n8n comes to the record."""
    here = Place(login).credential()
    over_the_road = Place(stand.road.dsn).credential()
    mail = {
        "host": "127.0.0.1",
        "port": stand.mail.port,
        "user": "",
        "password": "",
        "secure": False,
        "disableStartTls": True,
    }
    kinds = {
        ("comfyflowPg00001", "comfyflow PostgreSQL", "postgres"): here,
        ("comfyflowPgRoad1", "PostgreSQL, over a road", "postgres"): over_the_road,
        ("comfyflowSmtp001", "comfyflow SMTP", "smtp"): mail,
        ("comfyflowKey0001", "comfyflow webhook key", "httpHeaderAuth"): {
            "name": "X-API-Key",
            "value": API_KEY,
        },
    }
    return [{"id": id, "name": name, "type": kind, "data": data} for (id, name, kind), data in kinds.items()]
