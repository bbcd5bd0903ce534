"""ServerPool: several ComfyUI servers as if they were one. A job that a server has is that server's until its
end; where it goes: `placing`."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import protocol
from .api import Server
from .client import ComfyClient
from .errors import BadAnswer, NoServer, ServerUnreachable, UsageError
from .inputs import Inputs
from .inventory import Inventory
from .member import Health, Member, ServerView
from .models import (
    Ambiguous,
    JobResult,
    JobState,
    JobView,
    OutputFile,
    PoolServer,
    SavedFile,
    Timeouts,
    UploadedFile,
)
from .placing import LOST_AFTER, Placing
from .several import each, end
from .submit import BeforeSend, key_id
from .workflow import Workflow

Tried = dict[str, ServerUnreachable | BadAnswer]  # servers that certainly did not take a job, and why
AHEAD = 2  # jobs of ours that wait in a server's own queue: the next one begins without a pause


class ServerPool:
    """Servers, with the interface of one `ComfyClient`. Use it as an async context manager.

    Each of `servers` is an address, a `PoolServer`, or a `ComfyClient` that the pool then opens and closes;
    `options` are those of `ComfyClient`, for every server given by its address. A job goes to the server that
    would have done it first, of those that have all the node classes and model files which it names, by the
    length of their queues, the seconds that jobs take there, and their weight; at most `ahead` jobs of ours
    wait on a server. One that refuses connections for `lost_after` seconds is gone, and what it held is lost
    (None: never). Servers in `gone` are not there any more, as their operator knows for certain.

    Raises UsageError for no server, or one that is given twice.
    """

    def __init__(
        self,
        servers: Iterable[str | PoolServer | ComfyClient],
        *,
        ahead: int = AHEAD,
        lost_after: float | None = LOST_AFTER,
        gone: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self._inputs = Inputs()
        self._departed = tuple(dict.fromkeys(str(Server.at(url)) for url in gone))
        self._specs = [
            (client, spec)
            for client, spec in (_client_of(one, options) for one in servers)
            if str(client.server) not in self._departed
        ]
        urls = [str(client.server) for client, _ in self._specs]
        twice = next((url for url in urls if urls.count(url) > 1), None)
        if not urls or twice is not None:
            raise UsageError("a pool needs a server" if not urls else f"{twice} is given twice")
        self._ahead, self._lost_after = ahead, lost_after
        self._members: list[Member] = []
        self._placing = Placing(self._members, lost_after)
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for client, spec in self._specs:
                client.share(self._inputs)
                await stack.enter_async_context(client)
                self._members.append(
                    Member(
                        client,
                        spec,
                        ahead=self._ahead,
                        lost_after=self._lost_after,
                        changed=self._placing.serve,
                        asked=self._placing.survey,
                        successes=lambda: sum(one.succeeded for one in self._members),
                        shared=self._shared,
                    )
                )
            self._stack = stack.pop_all()
        works = [member.watch for member in self._members] + [self._placing.patrol]
        self._tasks = [asyncio.create_task(work(), name="comfyflow pool") for work in works]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._stack.aclose()
        self._members.clear()

    # -- the servers --

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that jobs of ours are recorded with, of the departed servers too."""
        return (*(str(client.server) for client, _ in self._specs), *self._departed)

    @property
    def clients(self) -> tuple[ComfyClient, ...]:
        """The client of each server, opened and closed by the pool; first those that answer."""
        return tuple(one.client for one in sorted(self._members, key=lambda one: not one.health.answers))

    @property
    def servers(self) -> tuple[ServerView, ...]:
        """How each server is now."""
        return tuple(member.view() for member in self._members)

    @property
    def timeout(self) -> Timeouts:
        """The budgets of the first server, in seconds."""
        return self._specs[0][0].timeout

    @property
    def ambiguous(self) -> Ambiguous:
        """What is done about a job of which nobody can tell whether a server has read it."""
        return self._specs[0][0].ambiguous

    def drain(self, url: str) -> None:
        """Send no more jobs to this server; those that it has go on. Raises UsageError."""
        self._named(url).drained = True

    def undrain(self, url: str) -> None:
        """Send jobs to it again. Raises UsageError."""
        self._named(url).drained = False
        self._placing.serve()

    def bury(self, url: str) -> None:
        """This server's process has ended, as its operator knows for certain: what it held is lost, and goes
        to others. It comes back when it answers. Raises UsageError."""
        self._named(url).bury()

    async def ready(self) -> None:
        """Wait until one server has answered. Raises ServerError when none does."""
        asking = set() if self._any_answers() else {asyncio.create_task(one.ask()) for one in self._members}
        try:
            while asking and not self._any_answers():  # others may be silent for long
                asked, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in asked:
                    task.result()
        finally:
            await end(asking)
        if not self._any_answers():
            raise self._placing.nobody(self._members)

    def _any_answers(self) -> bool:
        return any(member.health.answers for member in self._members)

    def departed(self, server: str) -> bool:
        """Whether a server's process has ended, and its queue with it."""
        gone = (member.health is Health.GONE for member in self._members if member.url == server)
        return server in self._departed or next(gone, False)

    def while_there(self, server: str) -> AbstractContextManager[None]:
        """The block ends when that server is gone. Raises ServerUnreachable then."""
        found = (member.while_there() for member in self._members if member.url == server)
        return next(found, nullcontext())

    def suspect(self, server: str, *, answered: bool = False) -> None:
        """A request to it had no answer: it gets no job until it has shown that it is there. Or (`answered`)
        one that is not ComfyUI's: where that goes on, and others take jobs, it rests."""
        for member in self._members:
            if member.url == server:
                member.suspect(answered=answered)

    async def decided(self, server: str) -> bool:
        """Wait until that server, which gave no answer, answers or is gone, if that will be known within
        `lost_after` seconds: while its machine refuses connections. Else False."""
        found = [member for member in self._members if member.url == server]
        return await found[0].decided() if found else False

    async def of(self, prompt_id: str, server: str | None = None) -> ComfyClient:
        """The client of the server that has, or had, a job: `server` if it is one of ours, else the one that
        knows it, else any. Raises ServerUnreachable when one that might know it does not answer."""
        for member in self._members:
            if member.url == server:
                return member.client
        for member in self._members:
            if member.client.follower.known(prompt_id) is not None:
                return member.client
        return await self._search(prompt_id)

    # -- jobs --

    @asynccontextmanager
    async def placed(
        self, workflow: Workflow | Mapping[str, Any], *, besides: Collection[str] = ()
    ) -> AsyncIterator[ComfyClient]:
        """Where to send a workflow now: waits for room, and keeps it until the block ends. `besides` are
        addresses that were tried in vain.

        Raises NotRunnable, and NoServer when none of those that could run it has answered for `lost_after`
        seconds (at once, where none ever did).
        """
        member = await self._placing.take(Workflow.load(workflow), besides)
        try:
            yield member.client
        finally:
            self._placing.back(member)

    async def submit_workflow(
        self,
        workflow: Workflow | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        before_send: BeforeSend | None = None,
        **options: Any,
    ) -> str:
        """Queue a workflow on one of the servers and return its prompt id: see
        `ComfyClient.submit_workflow`.

        A server that refuses the connection, or answers what is no answer of ComfyUI, is passed over. With an
        `idempotency_key` every server is asked for it first. Raises NotRunnable and NoServer too. Cancelling
        leaves open whether a server has it.
        """
        graph = Workflow.load(workflow)
        if idempotency_key is not None and await self.remembers(graph, idempotency_key):
            return key_id(idempotency_key)
        sent = {"idempotency_key": idempotency_key, "before_send": before_send, **options}
        tried: Tried = {}
        while (prompt_id := await self._sent(graph, tried, sent)) is None:
            pass
        return prompt_id

    async def _sent(self, graph: Workflow, tried: Tried, options: Mapping[str, Any]) -> str | None:
        """None when the server that was chosen certainly does not have it."""
        try:
            async with self.placed(graph, besides=tried) as client:
                return await self._sent_to(client, graph, tried, options)
        except NoServer as error:
            answer = next((one for one in tried.values() if isinstance(one, BadAnswer)), None)
            raise answer or error from None  # an answer says more than that there is no other server

    async def _sent_to(
        self, client: ComfyClient, graph: Workflow, tried: Tried, options: Mapping[str, Any]
    ) -> str | None:
        try:
            return await client.submit_workflow(graph, **options)
        except (ServerUnreachable, BadAnswer) as error:
            if options.get("maybe_sent") or (isinstance(error, ServerUnreachable) and error.sent):
                raise
            tried[str(client.server)] = error
            self.suspect(str(client.server), answered=isinstance(error, BadAnswer))
        return None

    async def remembers(self, workflow: Workflow | Mapping[str, Any], idempotency_key: str) -> bool:
        """Whether a server that answers remembers a job of this key. Raises KeyConflict, NotSupported,
        ServerError."""
        asked = [member for member in self._members if member.health.answers]
        found = await each(asked, lambda one: _remembered(one, workflow, idempotency_key))
        return any(found)

    async def poll_status(self, prompt_id: str) -> JobView:
        """See `ComfyClient.poll_status`."""
        client = await self.of(prompt_id)
        return _told(await client.poll_status(prompt_id), client)

    async def watch(self, prompt_id: str) -> AsyncGenerator[JobView, None]:
        """See `ComfyClient.watch`."""
        client = await self.of(prompt_id)
        async with aclosing(client.watch(prompt_id)) as views:
            async for view in views:
                yield _told(view, client)

    async def until_running(self, prompt_id: str, *, timeout: float | None = None) -> JobView:
        """See `ComfyClient.until_running`: at most `timeout` seconds."""
        client = await self.of(prompt_id)
        return _told(await client.until_running(prompt_id, timeout=timeout), client)

    async def wait(self, prompt_id: str, *, timeout: float | None = None) -> JobResult:
        """See `ComfyClient.wait`: at most `timeout` seconds."""
        client = await self.of(prompt_id)
        return _marked(await client.wait(prompt_id, timeout=timeout), client)

    async def result(self, prompt_id: str, *, timeout: float | None = None) -> JobResult:
        """See `ComfyClient.result`: at most `timeout` seconds."""
        client = await self.of(prompt_id)
        return _marked(await client.result(prompt_id, timeout=timeout), client)

    async def cancel(self, prompt_id: str, *, timeout: float | None = None, force: bool = False) -> bool:
        """See `ComfyClient.cancel`: at most `timeout` seconds."""
        return await (await self.of(prompt_id)).cancel(prompt_id, timeout=timeout, force=force)

    async def sent(self, prompt_id: str) -> protocol.SentPrompt | None:
        """See `ComfyClient.sent`."""
        return await (await self.of(prompt_id)).sent(prompt_id)

    # -- files --

    async def download_output(self, output: OutputFile, destination: Path | str) -> SavedFile:
        """See `ComfyClient.download_output`. Raises UsageError for an output that did not come from this
        pool: names tell nothing, each server may have a file of that name."""
        if output.server is None:
            raise UsageError("which server has this file is not known: take outputs from the pool's results")
        return await self._named(output.server).client.download_output(output, destination)

    async def download_images(self, prompt_id: str, destination_dir: Path | str) -> list[SavedFile]:
        """See `ComfyClient.download_images`."""
        return await (await self.of(prompt_id)).download_images(prompt_id, destination_dir)

    async def input_file(self, source: Path | str | bytes, *, name: str | None = None) -> str:
        """See `ComfyClient.input_file`: each server gets it once, before the first job there that names
        it."""
        return await self._inputs.add(source, name)

    async def upload_image(self, source: Path | str | bytes, *, name: str | None = None) -> UploadedFile:
        """Like `input_file`: the name is made of the content. Raises UsageError."""
        return UploadedFile(await self._inputs.add(source, name))

    # -- everything at once --

    async def queue(self) -> protocol.QueueView:
        """Everybody's jobs on all servers, one server after the other. Raises ServerError."""
        found = await each(self._members, lambda one: one.client.queue())
        running = (item for view in found for item in view.running)
        return protocol.QueueView(tuple(running), tuple(item for view in found for item in view.pending))

    async def history(self, prompt_id: str | None = None, *, max_items: int | None = None) -> dict[str, Any]:
        """See `ComfyClient.history`; `max_items` of each server. Raises ServerError."""
        if prompt_id is not None:
            return await (await self.of(prompt_id)).history(prompt_id)
        found = await each(self._members, lambda one: one.client.history(max_items=max_items))
        return {key: entry for part in found for key, entry in part.items()}

    async def system_stats(self) -> dict[str, Any]:
        """`ComfyClient.system_stats` of each server, by its address. Raises ServerError."""
        found = await each(self._members, lambda one: one.client.system_stats())
        return {member.url: stats for member, stats in zip(self._members, found, strict=True)}

    async def object_info(self, node_class: str | None = None) -> dict[str, Any]:
        """What nodes any of the servers has. Raises ServerError."""
        found = await each(self._members, lambda one: one.client.object_info(node_class))
        return {key: info for part in found for key, info in part.items()}

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """See `ComfyClient.free`, on every server. Raises ServerError."""
        flags = {"unload_models": unload_models, "free_memory": free_memory}
        await each(self._members, lambda one: one.client.free(**flags))

    def _shared(self, found: Inventory) -> Inventory:
        """One inventory for all servers that have the same: a workflow is held against it once."""
        known = (member.inventory for member in self._members)
        return next((has for has in known if has is not None and has.same(found)), found)

    # -- finding --

    def _named(self, url: str) -> Member:
        for member in self._members:
            if url.rstrip("/") == member.url:
                return member
        raise UsageError(
            f"{url} is no server of this pool: it has {', '.join(one.url for one in self._members)}"
        )

    async def _search(self, prompt_id: str) -> ComfyClient:
        unheard: list[ServerUnreachable] = []

        async def knows(member: Member) -> bool:
            try:
                return (await member.client.poll_status(prompt_id)).state is not JobState.LOST
            except ServerUnreachable as error:
                if member.health is not Health.GONE:
                    unheard.append(error)
                return False

        found = await each(self._members, knows)
        for member, known in zip(self._members, found, strict=True):
            if known:
                return member.client
        if unheard:
            raise unheard[0]
        return self._members[0].client


def _client_of(
    one: str | PoolServer | ComfyClient, options: Mapping[str, Any]
) -> tuple[ComfyClient, PoolServer]:
    if isinstance(one, ComfyClient):
        return one, PoolServer(str(one.server))
    spec = PoolServer(one) if isinstance(one, str) else one
    return ComfyClient(spec.url, **options), spec


async def _remembered(member: Member, workflow: Workflow | Mapping[str, Any], key: str) -> bool:
    """One that has just gone away says nothing."""
    with suppress(ServerUnreachable):
        return await member.client.remembers(workflow, key)
    member.suspect()
    return False


def _marked(result: JobResult, client: ComfyClient) -> JobResult:
    """Its outputs know whose they are."""
    server = str(client.server)
    return replace(result, outputs=tuple(replace(output, server=server) for output in result.outputs))


def _told(view: JobView, client: ComfyClient) -> JobView:
    return view if view.result is None else replace(view, result=_marked(view.result, client))
