"""ComfyClient: one ComfyUI server, one HTTP session, one socket, any number of jobs."""

from __future__ import annotations

import asyncio
import hashlib
import ssl as tls
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4
from weakref import WeakValueDictionary

import aiohttp
import anyio

from . import download, protocol
from . import events as e
from .api import Api, Server
from .cancel import ask_to_end
from .errors import (
    BadAnswer,
    DownloadError,
    JobTimeout,
    KeyConflict,
    ServerError,
    ServerUnreachable,
    UsageError,
    error_of,
)
from .follow import Follower
from .fresh import fresh_nodes
from .inputs import Brought, Inputs
from .link import Link
from .look import Looker
from .models import (
    Ambiguous,
    JobResult,
    JobState,
    JobView,
    OutputFile,
    PollSchedule,
    SavedFile,
    Submission,
    Timeouts,
    UploadedFile,
)
from .partly import left_out, taken_back
from .shield import to_the_end
from .submit import BeforeSend, key_id, send_once
from .tracker import ABSENCES, Tracker
from .workflow import Workflow

ASK_EVERY = 1.0  # s between requests to end a job: a server forgets one that comes right before the start
ASKS = 20  # in a row that a server may fail to answer
CLOSING = 10.0  # s for closing; it takes one at most, unless something hangs
TITLE_SETS = 64  # distinct sets of node titles that are shared between jobs


class ComfyClient:
    """A ComfyUI server. Use it as an async context manager; it may be used by any number of tasks of one
    event loop.

    `url` may carry a base path, a trailing `/api`, and `user:password@`. `headers` and `api_key` (sent as a
    bearer token) go with every request and with the socket, and to no other origin. `session` is used, not
    closed. With `websocket=False` jobs are followed by looks alone. `timeout` holds the budgets and `poll`
    says when to look, in seconds. `previews` keeps the pictures that the server sends while a job runs.
    `ambiguous` decides about a job of which nobody can tell whether the server has read it.

    Raises UsageError when `url` is no address.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8188",
        *,
        client_id: str | None = None,
        websocket: bool = True,
        timeout: Timeouts = Timeouts(),  # noqa: B008 - frozen
        poll: PollSchedule = PollSchedule(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
        session: aiohttp.ClientSession | None = None,
        ssl: tls.SSLContext | None = None,
        previews: bool = False,
        ambiguous: Ambiguous = Ambiguous.WAIT,
    ) -> None:
        try:
            self.server = Server.at(url, headers, api_key)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.client_id = client_id or uuid4().hex
        self.timeout = timeout
        self._websocket, self._poll, self._ssl, self._previews = websocket, poll, ssl, previews
        self._api = Api(self.server, timeout, session=session, ssl=ssl)
        self._looker = Looker(self._api)
        self._giving: dict[str, bool] = {}  # which classes give files, as far as it was asked
        self._follower: Follower | None = None
        self.ambiguous = ambiguous
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._answered = False  # it has been seen to be a ComfyUI
        self._found: Path | None = None  # the folder that took a file last
        self._titles: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._brought = Brought(Inputs(), self._put)

    async def __aenter__(self) -> Self:
        link = self._link if self._websocket else None
        self._follower = Follower(self._looker, link, self._poll, self.timeout, previews=self._previews)
        self._follower.start()
        return self

    def share(self, inputs: Inputs) -> None:
        """Know the files that the other servers of a pool know."""
        self._brought = Brought(inputs, self._put)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close(), CLOSING)

    async def _close(self) -> None:
        if self._follower is not None:
            await self._follower.stop()
        await self._api.close()

    @property
    def source(self) -> download.Source:
        """Where this server's files are read from."""
        return self._api

    @property
    def follower(self) -> Follower:
        """What is known of the jobs in flight. Raises RuntimeError outside of `async with`."""
        return self._following()

    @property
    def clients(self) -> tuple[ComfyClient, ...]:
        """Itself, as a pool has one for each server."""
        return (self,)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its jobs are recorded to be: at this server."""
        return (str(self.server),)

    async def of(self, prompt_id: str, server: str | None = None) -> ComfyClient:
        """The client that a job belongs to: this one. A pool has several."""
        return self

    @asynccontextmanager
    async def placed(
        self, workflow: Workflow | Mapping[str, Any], *, besides: Collection[str] = ()
    ) -> AsyncIterator[ComfyClient]:
        """Where to send a workflow: here. A pool chooses, and waits for room."""
        yield self

    def departed(self, server: str) -> bool:
        """Whether a server's process is known to have ended. Only a pool watches over that."""
        return False

    def while_there(self, server: str) -> AbstractContextManager[None]:
        """The block ends when a server is gone. Only a pool watches over that."""
        return nullcontext()

    def suspect(self, server: str, *, answered: bool = False) -> None:
        """A request to a server had no answer, or (`answered`) one that is not ComfyUI's. Only a pool does
        something about it."""

    async def decided(self, server: str) -> bool:
        """Wait until a server that gave no answer is back or gone. Only a pool knows when: False."""
        return False

    async def ready(self) -> None:
        """Find out whether there is a ComfyUI. Raises ServerError."""
        await self._api.remaining()

    # -- jobs --

    async def submit_workflow(
        self,
        workflow: Workflow | Mapping[str, Any],
        *,
        prompt_id: str | None = None,
        idempotency_key: str | None = None,
        maybe_sent: bool = False,
        before_send: BeforeSend | None = None,
        front: bool = False,
        number: float | None = None,
        extra_data: Mapping[str, Any] | None = None,
        allow_partial: bool = False,
        fresh: bool = False,
    ) -> str:
        """Queue a workflow (API format) and return its prompt id.

        With an `idempotency_key` the server is looked at first: a job of this key that it still remembers is
        not sent again, and its id returned; KeyConflict is raised when that is another workflow. `maybe_sent`
        tells that an earlier program may have sent this `prompt_id`: it is searched for before it is sent.
        `before_send` is awaited right before each request; what it raises stops the sending.
        The id is ours (`prompt_id`, a lowercase UUID, or a new one), except on servers before 0.3.45, which
        make their own. `number` is the priority, lowest first; `front` goes before everything. `extra_data`
        comes back in the history. A server may accept a workflow of which it will run only a part; that is an
        error unless `allow_partial`, and the job is taken back. With `fresh` no node that gives files is
        taken from the server's cache: each gets an input of our own, which all nodes pass over, and
        `Workflow.load` takes it out of files again.

        Raises WorkflowInvalid, WorkflowRejected, KeyConflict, ServerUnreachable, BadAnswer, and NotSupported
        for a key on such an old server. A request without an answer is never repeated blindly. Cancelling
        leaves open whether the server has taken the job.
        """
        graph = Workflow.load(workflow)
        if idempotency_key is not None:
            if prompt_id is not None:
                raise UsageError("a prompt_id and an idempotency_key exclude each other: give one of them")
            prompt_id = key_id(idempotency_key)
            extra_data = {protocol.EXTRA: {"digest": graph.digest}, **(extra_data or {})}
        job = prompt_id or str(uuid4())
        nodes = await self._fresh(graph, job) if fresh else graph.nodes
        body: dict[str, Any] = {"prompt": nodes, "prompt_id": job, "client_id": self.client_id}
        body |= {"front": True} if front else {}
        body |= {} if number is None else {"number": number}
        body |= {} if extra_data is None else {"extra_data": dict(extra_data)}
        async with self._alone(job) if prompt_id else nullcontext():  # an id of our own is nobody else's
            if idempotency_key is not None and await self.remembers(graph, idempotency_key):
                return job
            await self._bring(graph)
            submission = await self._send(
                body, self._shared_titles(graph), maybe_sent=maybe_sent, before_send=before_send
            )
        if allow_partial:
            return submission.prompt_id
        if not submission.answered:
            submission = replace(submission, node_errors=await left_out(self._api, submission.prompt_id))
        if submission.node_errors:
            await self._take_back(submission)
        return submission.prompt_id

    async def _fresh(self, graph: Workflow, mark: str) -> Mapping[str, Any]:
        from .nodeinfo import giving  # noqa: PLC0415 - most jobs do without

        kinds = {node["class_type"] for node in graph.nodes.values()}
        return fresh_nodes(graph.nodes, mark, await giving(self, kinds, self._giving))

    async def remembers(self, workflow: Workflow | Mapping[str, Any], idempotency_key: str) -> bool:
        """Whether the server remembers a job of this key. Raises KeyConflict when that has another workflow,
        NotSupported, ServerError."""
        graph, prompt_id = Workflow.load(workflow), key_id(idempotency_key)
        try:
            event = await self._looker.look(prompt_id)
            if isinstance(event, e.Absent):
                await self._looker.require_ids()
                return False
            sent = await self._api.sent(prompt_id)
        except ServerUnreachable as error:
            error.sent = False  # that was only a look
            raise
        if sent is not None and sent.digest not in (None, graph.digest):
            text = f"the key {idempotency_key!r} belongs to job {prompt_id}, which has another workflow"
            raise KeyConflict(f"{text}: use a new key")
        return True

    async def poll_status(self, prompt_id: str) -> JobView:
        """One look, the truth now; for a waiting job also its place in the queue. Raises ServerError.

        A job that the server does not know has the state "lost", unless this client saw its end.
        """
        follower = self._following()
        event = await self._looker.look(prompt_id)
        if isinstance(event, e.SeenPending) and event.ahead is None:  # /api/jobs does not tell the place
            event = (await self._api.queue()).find(prompt_id) or event
        if not isinstance(event, e.Absent):
            follower.found_again(prompt_id)
        tracker = follower.known(prompt_id)
        if tracker is not None and (tracker.result or not isinstance(event, e.Absent)):
            follower.learn(tracker, event)
            return tracker.view()
        alone = Tracker(prompt_id, self._poll)
        for _ in range(ABSENCES):
            alone.feed(event, 0.0)
        return alone.view()

    async def watch(self, prompt_id: str) -> AsyncGenerator[JobView, None]:
        """The latest view of a job at each change, the last one with its `result`. Ends need not be success.

        Works for any job of this server, whoever sent it. Raises JobTimeout or ServerUnreachable after
        `Timeouts.silence` seconds in which nothing moved. Leaving the loop leaves the job running.
        """
        async with aclosing(self._following().views(prompt_id)) as views:
            async for view in views:
                yield view

    async def until_running(self, prompt_id: str, *, timeout: float | None = None) -> JobView:
        """Wait until a job runs, or has ended in whatever way, at most `timeout` seconds (`Timeouts.total` if
        None), and return its view. Raises JobTimeout, or ServerUnreachable after a long silence."""
        return (await self._following().until_running(prompt_id, self._budget(timeout))).view()

    async def wait(self, prompt_id: str, *, timeout: float | None = None) -> JobResult:
        """Wait for a job's success, at most `timeout` seconds (`Timeouts.total` if None).

        Raises JobFailed, JobCancelled, JobLost, JobTimeout, or ServerUnreachable after a long silence.
        Neither a timeout nor a cancellation ends the job itself.
        """
        tracker = await self._ended(prompt_id, timeout)
        if (error := error_of(tracker.view(), tracker.titles)) is not None:
            raise error
        assert tracker.result is not None
        return tracker.result

    async def result(self, prompt_id: str, *, timeout: float | None = None) -> JobResult:
        """Like `wait`, at most `timeout` seconds, but gives the result of a job that did not succeed too."""
        tracker = await self._ended(prompt_id, timeout)
        assert tracker.result is not None
        return tracker.result

    async def cancel(self, prompt_id: str, *, timeout: float | None = None, force: bool = False) -> bool:
        """End a job and wait until the server says how it ended, at most `timeout` seconds.

        True when it ended as cancelled; False when it had ended before, or ran to its end all the same (a
        node that never looks at the interrupt flag does so). Asked again every second, because a server can
        miss it, or be away for a moment. Never touches another job: raises NotSupported on servers that
        cannot do that, unless `force`; other ServerErrors when it cannot be asked. Cancelling leaves open
        whether the job ends.
        """
        follower = self._following()
        deadline = float("inf") if timeout is None else anyio.current_time() + timeout
        event = await self._looker.look(prompt_id)
        if isinstance(event, e.Absent | e.Recorded):
            return False
        unheard = 0
        with follower.holding(prompt_id):
            while (tracker := follower.attach(prompt_id)).result is None:
                error = await self._ask(tracker, force=force)
                unheard = 0 if error is None else unheard + 1
                if error is not None and unheard == ASKS:
                    raise error
                await self._wait_a_while(tracker, deadline)
        return tracker.state is JobState.CANCELLED

    # -- files --

    async def download_output(self, output: OutputFile, destination: Path | str) -> SavedFile:
        """Bring one file into the folder `destination`, verified. Raises OutputUnavailable, DownloadError."""
        async with self._folder(destination) as folder:
            return await download.save(self._api, output, folder)

    async def download_images(self, prompt_id: str, destination_dir: Path | str) -> list[SavedFile]:
        """Wait for the job and bring every file of it, of whatever kind, into a folder.

        Raises what `wait` and `download_output` raise; files that are complete by then stay.
        """
        result = await self.wait(prompt_id)
        async with self._folder(destination_dir) as folder:
            return await download.save_all(self._api, result.outputs, folder)

    async def upload_image(
        self,
        source: Path | str | bytes,
        *,
        name: str | None = None,
        subfolder: str = "",
        type: str = "input",
        overwrite: bool = False,
    ) -> UploadedFile:
        """Put a file into a folder of the server ("input" or "temp"), e.g. for LoadImage; any kind of file.

        Use the `reference` of what comes back: without `overwrite` the server picks another name when this
        one is taken by other content. Bytes without a name are named by their content. Raises OSError,
        ServerError.
        """
        fields = {"type": type, "subfolder": subfolder, "overwrite": "true" if overwrite else "false"}
        if isinstance(source, bytes):
            return await self._api.upload(source, name or _content_name(source), fields)
        path = Path(source)
        data = await anyio.Path(path).read_bytes()
        return await self._api.upload(data, name or path.name, fields)

    async def input_file(self, source: Path | str | bytes, *, name: str | None = None) -> str:
        """The name to put into a workflow for a local file of any kind, e.g. for LoadImage.

        It is made of the content (and of the suffix, for bytes that of `name`), and the file is put onto the
        server before the first job that names it, once: no job changes what another one reads. Raises
        UsageError when it cannot be read.
        """
        return await self._brought.inputs.add(source, name)

    # -- the server --

    async def queue(self) -> protocol.QueueView:
        """Everybody's jobs on the server, in the order in which they will run. Raises ServerError."""
        return await self._api.queue()

    async def history(self, prompt_id: str | None = None, *, max_items: int | None = None) -> dict[str, Any]:
        """History entries by prompt id, as ComfyUI writes them: of one job, the newest `max_items`, or all.

        Empty for a job that has not ended. Large: 55 kB for a job of 100 nodes. Raises ServerError.
        """
        found = await self._api.histories(prompt_id, max_items)
        return found if isinstance(found, dict) else {}

    async def sent(self, prompt_id: str) -> protocol.SentPrompt | None:
        """The graph of a job that anybody sent, and the client id named with it; None when the server no
        longer has it. Raises ServerError."""
        return await self._api.sent(prompt_id)

    async def system_stats(self) -> dict[str, Any]:
        """Version, devices and memory of the server (sizes in bytes). Raises ServerError."""
        return await self._api.system_stats()

    async def object_info(self, node_class: str | None = None) -> dict[str, Any]:
        """What nodes the server has, or one of them; an unknown class gives an empty dict. Raises
        ServerError."""
        return await self._api.object_info(node_class)

    async def node_replacements(self) -> dict[str, Any]:
        """What the server puts in the place of node classes that it does not have; old servers refuse the
        question. Raises ServerError."""
        return await self._api.node_replacements()

    def brings(self, workflow: Workflow) -> frozenset[str]:
        """The files in a workflow that will be put onto the server before it is sent: see `input_file`."""
        return frozenset(file.name for file in self._brought.inputs.named_in(workflow))

    async def has_file(self, name: str, *, type: str = "input", subfolder: str = "") -> bool:
        """Whether a file is in one of the server's folders ("input", "output", "temp"). Raises
        ServerError."""
        return await self._api.view_size(OutputFile("", name, subfolder, type)) is not None

    async def object_info_text(self) -> bytes:
        """Like `object_info`, as the JSON text that the server answers. Raises ServerError."""
        return await self._api.object_info_text()

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Give memory back after the running job; `free_memory` also drops the node cache. Raises
        ServerError."""
        await self._api.free(unload_models=unload_models, free_memory=free_memory)

    # -- inside --

    def _following(self) -> Follower:
        if self._follower is None:
            raise RuntimeError("use the client as `async with ComfyClient(...) as client:`")
        return self._follower

    def _link(self, follower: Follower) -> Link:
        return Link(
            self.server.socket_url(self.client_id),
            headers=self.server.headers,
            hello=protocol.feature_flags(),
            on_frame=follower.on_frame,
            on_live=self._on_live,
            connect_timeout=self.timeout.connect,
            ssl=self._ssl,
        )

    def _on_live(self, live: bool) -> None:
        self._following().on_live(live)
        if not live:
            self._brought.forget()

    async def _ask(self, tracker: Tracker, *, force: bool) -> ServerError | None:
        """Ask the server to end a job. Returns why it may not have heard that; raises what will not pass."""
        before, tracker.stopping = tracker.stopping, True  # it may be gone before the answer is here
        try:
            await ask_to_end(self._api, tracker.prompt_id, force=force)
        except ServerError as error:
            if isinstance(error, ServerUnreachable) or (isinstance(error, BadAnswer) and error.status >= 500):
                return error
            tracker.stopping = before
            raise
        return None

    async def _wait_a_while(self, tracker: Tracker, deadline: float) -> None:
        """Give the server time to end a job that it was asked to end."""
        self._following().stopping(tracker)
        again = anyio.current_time() + ASK_EVERY
        try:
            await self._following().until_end(tracker.prompt_id, min(again, deadline) - anyio.current_time())
        except JobTimeout:  # one that comes before its time tells of the silence
            if anyio.current_time() < again or anyio.current_time() >= deadline:
                raise

    async def _put(self, data: bytes, name: str) -> str:
        return (await self.upload_image(data, name=name)).reference

    async def _bring(self, graph: Workflow) -> None:
        try:
            await self._brought.bring(graph)
        except ServerUnreachable as error:
            error.sent = False  # a file, not the job
            raise

    async def _meet(self) -> None:
        """Find out whether there is a ComfyUI at all, before anything is sent: then nothing is left in
        doubt."""
        try:
            await self._api.remaining()
        except ServerUnreachable as error:
            error.sent = False
            raise
        self._answered = True

    @asynccontextmanager
    async def _alone(self, prompt_id: str) -> AsyncIterator[None]:
        """Two tasks do not send one id at the same time."""
        lock = self._sending.setdefault(prompt_id, asyncio.Lock())
        async with lock:
            yield

    async def _send(
        self,
        body: Mapping[str, Any],
        titles: Mapping[str, str],
        *,
        maybe_sent: bool,
        before_send: BeforeSend | None,
    ) -> Submission:
        follower = self._following()
        await follower.connected()
        if not (follower.roster.live or self._answered):
            await self._meet()
        tracker = Tracker(body["prompt_id"], self._poll, titles)
        follower.add(tracker)
        try:
            submission = await send_once(
                self._api,
                self._looker,
                body,
                ambiguous=self.ambiguous,
                maybe_sent=maybe_sent,
                before_send=before_send,
                departed=follower.is_gone,
            )
        except BaseException:
            follower.forget(tracker.prompt_id)
            raise
        if submission.prompt_id != tracker.prompt_id:  # before 0.3.45: the server made its own id
            follower.forget(tracker.prompt_id)
            tracker = Tracker(submission.prompt_id, self._poll, titles)
            follower.add(tracker)
        if submission.answered:
            counted = not {"front", "number"} & body.keys()
            follower.accepted(tracker, submission.number, counted=counted)
        else:
            follower.found(tracker, submission.number)
        return submission

    async def _take_back(self, submission: Submission) -> None:
        rejected = await taken_back(self._api, self._looker, submission)
        self._following().forget(submission.prompt_id)
        raise rejected

    @asynccontextmanager
    async def _folder(self, path: Path | str) -> AsyncIterator[Path]:
        """The folder, made when it is first used, or has gone. Where it cannot be made, saving into it says
        why."""
        folder = Path(path)
        if folder != self._found:
            with suppress(OSError):
                await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except DownloadError:
            self._found = None
            raise
        self._found = folder

    async def _ended(self, prompt_id: str, timeout: float | None) -> Tracker:
        return await self._following().until_end(prompt_id, self._budget(timeout))

    def _budget(self, timeout: float | None) -> float | None:
        return self.timeout.total if timeout is None else timeout

    def _shared_titles(self, graph: Workflow) -> Mapping[str, str]:
        """Titles by node id; jobs of like graphs share one mapping, so that thousands in flight stay
        small."""
        pairs = tuple((node_id, graph.title(node_id)) for node_id in graph.nodes)
        if len(self._titles) > TITLE_SETS:
            self._titles.clear()
        return self._titles.setdefault(pairs, dict(pairs))


def _content_name(data: bytes) -> str:
    return f"comfyflow-{hashlib.sha256(data).hexdigest()[:32]}.png"
