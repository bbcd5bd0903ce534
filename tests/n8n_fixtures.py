"""The fixtures of the end-to-end tests, which name this file in `pytest_plugins`: one real n8n for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from clusters import Databases, connected, elsewhere, restricted
from database_road import Road
from n8n_host import N8n, free_port
from n8n_install import InstallFailed, install
from n8n_stand import PATIENCE, Stand, Webhooks, credentials, workflows
from sinks import Chat, Mail

from comfyflow.migrations import roles
from comfyflow.sim import Sim

TABLES = ["workflow_runs", "generated_assets", "run_events", "run_workers", "alerts", "server_checks"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What n8n went through goes with a test that failed."""
    report = yield
    stand = getattr(item, "funcargs", {}).get("stand")
    if report.when == "call" and report.failed and isinstance(stand, Stand):
        report.sections.append(("n8n", stand.n8n.complaint()))
    return report


@pytest.fixture(scope="session")
def stand(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A started n8n with all templates. It takes half a minute, and minutes when n8n must be installed."""
    home = tmp_path_factory.mktemp("n8n")
    shared = home / "shared"
    shared.mkdir()
    n8n = N8n(_installed(), home / "user", databases.make(migrated=False), shared)
    record = databases.make(migrated=True)
    with restricted(record) as login:
        elsewhere(_allow(record, login))
        made = Stand(n8n, record, shared, free_port(), free_port(), Chat(), Mail(), Road(login))
        n8n.give_credentials(credentials(made, login))
        n8n.give_workflows(workflows(made))
        try:
            made.start()
            yield made
        finally:
            n8n.stop()
            made.chat.close()
            made.mail.close()
            made.road.remove()


async def _allow(record: str, login: str) -> None:
    """n8n may do what docs/database.md gives it, and no more."""
    async with connected(record) as connection:
        await connection.execute(roles())
        await connection.execute(f"GRANT comfyflow_writer TO {urlsplit(login).username}")


def _installed() -> Path:
    """Without it there is nothing to test: the run ends here, as a failure, and says why once."""
    try:
        return install()
    except InstallFailed as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture
async def hooks(stand: Stand) -> AsyncIterator[Webhooks]:
    """A caller of the webhooks. Nothing is recorded yet, and no alert was sent."""
    async with connected(stand.record) as connection:
        await connection.execute(f"TRUNCATE {', '.join(TABLES)} CASCADE")
    stand.clear()
    async with aiohttp.ClientSession(timeout=PATIENCE) as session:
        yield Webhooks(stand, session)


@pytest.fixture
async def gpu(stand: Stand) -> AsyncIterator[Sim]:
    """The ComfyUI that n8n's jobs go to. Without this fixture nobody listens there."""
    async with Sim(port=stand.comfyui) as sim:
        yield sim
