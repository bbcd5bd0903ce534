"""Would a server take it? Asked of simulated servers, and of one that tells what the test wants."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from comfyflow import Checker, ComfyClient, MemoryStore, Runner, Workflow, checking
from comfyflow.checking import Judged, judge, judge_by, made
from comfyflow.errors import BadAnswer, ServerUnreachable, WorkflowFaulty, WorkflowInvalid
from comfyflow.nodeinfo import NodeInfo
from comfyflow.sim import Sim
from comfyflow.sources import find

INFO: dict[str, Any] = {
    "Load": {"input": {"required": {"name": [["a"]]}}, "output": ["IMAGE"], "python_module": "nodes"},
    "LoadImage": {
        "input": {"required": {"image": [["x.png"], {"image_upload": True}]}},
        "output": ["IMAGE"],
        "python_module": "nodes",
    },
    "Save": {
        "input": {"required": {"images": ["IMAGE"]}},
        "output": [],
        "output_node": True,
        "python_module": "nodes",
    },
    "Mine": {
        "input": {"required": {"n": ["INT"]}},
        "output_node": True,
        "python_module": "custom_nodes.mine",
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYFLOW_CACHE", str(tmp_path / "cache"))


def graph(**load: Any) -> Workflow:
    return Workflow.load(
        {
            "1": {"class_type": "Load", "inputs": load},
            "2": {"class_type": "Save", "inputs": {"images": ["1", 0]}},
        }
    )


class Server:
    """A server that tells what it is given."""

    def __init__(
        self, info: Any = None, *, url: str = "http://a", files: Any = (), old: bool = False
    ) -> None:
        self.info, self.addresses, self.files, self.old = info or INFO, (url,), set(files), old
        self.asked: list[str] = []
        self.versions = 0  # how often it was asked for that
        self.away = False

    def brings(self, workflow: Workflow) -> frozenset[str]:
        return frozenset({"brought.png"})

    async def system_stats(self) -> dict[str, Any]:
        self.versions += 1
        await asyncio.sleep(0)
        if self.away:
            raise ServerUnreachable("away", method="GET", url=self.addresses[0])
        return {}

    async def object_info_text(self) -> bytes:
        self.asked.append("classes")
        return json.dumps(self.info).encode()

    async def node_replacements(self) -> dict[str, Any]:
        self.asked.append("replacements")
        if self.old:
            raise BadAnswer("404", method="GET", url="u", status=404)
        return {"Old": [{"new_node_id": "Load"}]}

    async def has_file(self, name: str, *, type: str = "input", subfolder: str = "") -> bool:
        self.asked.append(f"{type}:{subfolder}/{name}")
        return f"{subfolder}/{name}" in self.files


class One:
    """A client of these servers."""

    def __init__(self, *servers: Server) -> None:
        self.clients = servers


async def test_what_is_right_is_taken_and_nothing_more_is_asked() -> None:
    server = Server()
    found = await judge([server], graph(name="a"))
    assert (found.verdict.accepted, found.source, found.partial) == (True, "http://a", False)
    assert found.refusal(graph(name="a"), allow_partial=False) is None
    assert server.asked == ["classes"]


async def test_nothing_is_refused_because_of_a_kept_answer() -> None:
    await judge([Server()], graph(name="a"))
    newer = Server({**INFO, "Load": {**INFO["Load"], "input": {"required": {"name": [["a", "new"]]}}}})
    assert (await judge([newer], graph(name="new"))).verdict.accepted is True
    assert newer.asked == ["classes"]


async def test_many_checks_ask_once() -> None:
    await judge([Server()], graph(name="a"))  # which is kept on disk
    server = Server()
    checker = Checker(One(server))
    for _ in range(2):
        await asyncio.gather(*(checker(graph(name="a")) for _ in range(5)))
    assert (server.versions, server.asked) == (1, [])


async def test_many_doubts_are_one_question() -> None:
    server = Server()
    checker = Checker(One(server))
    await checker(graph(name="a"))
    server.info = {**INFO, "Load": {**INFO["Load"], "input": {"required": {"name": [["a", "new"]]}}}}
    server.asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "JUST", -1.0)
        await asyncio.gather(*(checker(graph(name="new")) for _ in range(5)))
    assert server.asked == ["classes"]


async def test_every_fault_is_told_with_the_file_it_is_in() -> None:
    workflow = graph(name="b")
    refusal = (await judge([Server()], workflow)).refusal(workflow, allow_partial=True)
    assert isinstance(refusal, WorkflowFaulty)
    assert "http://a would refuse this: 1 fault" in str(refusal)
    assert [fault.input for fault in refusal.faults] == ["name"]


async def test_a_part_is_refused_unless_it_is_allowed() -> None:
    nodes = graph(name="a").to_dict() | {"3": {"class_type": "Save", "inputs": {}}}
    workflow = Workflow.load(nodes)
    found = await judge([Server()], workflow)
    assert found.partial
    assert "would run a part of this only" in str(found.refusal(workflow, allow_partial=False))
    assert found.refusal(workflow, allow_partial=True) is None


@pytest.mark.parametrize("old", [False, True])
async def test_classes_that_the_server_replaces_are_asked_for(old: bool) -> None:
    workflow = Workflow.load({**graph(name="a").nodes, "1": {"class_type": "Old", "inputs": {"name": "a"}}})
    server = Server({**INFO, "Load": {**INFO["Load"], "search_aliases": []}}, old=old)
    assert (await judge([server], workflow)).verdict.accepted is (False if old else None)
    assert "replacements" in server.asked


def picture(name: str) -> Workflow:
    return Workflow.load({**graph().nodes, "1": {"class_type": "LoadImage", "inputs": {"image": name}}})


@pytest.mark.parametrize(
    ("name", "accepted", "asked"),
    [
        ("x.png", True, []),
        ("brought.png", True, []),
        ("sub/there.png", True, ["input:sub/there.png"]),
        ("sub/gone.png", False, ["input:sub/gone.png"]),
        ("there.png [output]", True, ["output:/there.png"]),
        ("sub/", False, []),
    ],
)
async def test_files_are_asked_for_where_the_classes_do_not_tell(
    name: str, accepted: bool, asked: list[str]
) -> None:
    server = Server(files=["sub/there.png", "/there.png"])
    assert (await judge([server], picture(name))).verdict.accepted is accepted
    assert server.asked[1:] == asked


async def test_of_several_servers_one_that_takes_it_is_enough() -> None:
    away = Server(url="http://b")
    away.away = True
    less = Server({"Save": INFO["Save"], "Load": INFO["Load"]}, url="http://c")
    found = await judge([away, less, Server()], picture("x.png"))
    assert (found.source, found.verdict.accepted) == ("http://a", True)
    assert (await judge([less, away], picture("x.png"))).verdict.accepted is False
    with pytest.raises(ServerUnreachable):
        await judge([away], graph(name="a"))


async def test_a_server_that_takes_all_goes_before_one_that_takes_a_part() -> None:
    both = graph(name="a").to_dict() | {
        "3": {"class_type": "Load", "inputs": {"name": "b"}},
        "4": {"class_type": "Save", "inputs": {"images": ["3", 0]}},
    }
    servers = [
        Server({**INFO, "Load": {**INFO["Load"], "input": {"required": {"name": [names]}}}}, url=url)
        for url, names in (("http://none", ["c"]), ("http://part", ["a"]), ("http://all", ["a", "b"]))
    ]
    found = await judge(servers, Workflow.load(both))
    assert (found.source, found.partial) == ("http://all", False)
    assert (await judge(servers[:2], Workflow.load(both))).source == "http://part"
    assert (await judge(servers[1::-1], Workflow.load(both))).source == "http://part"


async def test_what_is_refused_everywhere_is_told_by_the_server_with_the_fewest_faults() -> None:
    less = Server({"Load": INFO["Load"]}, url="http://less")
    for servers in ([less, Server()], [Server(), less]):
        assert (await judge(servers, graph(name="b"))).source == "http://a"


async def test_what_is_refused_everywhere_is_told_with_what_is_wrong_where() -> None:
    less, same = Server({"Load": INFO["Load"]}, url="http://less"), Server(url="http://same")
    checker = Checker(One(less, same, Server()))
    with pytest.raises(WorkflowFaulty) as raised:
        await checker(graph(name="b"))
    error = raised.value
    assert str(error) == (
        "http://same, http://a would refuse this: 1 fault; http://less would refuse this: 2 faults"
    )
    kinds = {url: [str(fault.kind) for fault in faults] for url, faults in error.servers.items()}
    wrong = "value_not_in_list"
    assert kinds == {"http://same": [wrong], "http://a": [wrong], "http://less": [wrong, "missing_node_type"]}
    assert error.faults == error.servers["http://same"]


async def test_with_one_server_there_is_no_where() -> None:
    with pytest.raises(WorkflowFaulty) as raised:
        await Checker(One(Server()))(graph(name="b"))
    assert (raised.value.servers, len(raised.value.faults)) == ({}, 1)


async def test_where_each_server_lacks_something_a_part_is_refused_with_all_of_them() -> None:
    nodes = graph(name="a").to_dict() | {"3": {"class_type": "Save", "inputs": {}}}
    none = Server({"Load": INFO["Load"]}, url="http://none")
    with pytest.raises(WorkflowFaulty) as raised:
        await Checker(One(none, Server()))(Workflow.load(nodes))
    assert str(raised.value) == (
        "http://a would run a part of this only: 1 fault; http://none would refuse this: 2 faults"
    )
    await Checker(One(none, Server()), allow_partial=True)(Workflow.load(nodes))


async def test_a_checker_asks_a_server_once_for_many_workflows(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    checker = Checker(One(server))
    for _ in range(3):
        await checker(graph(name="a"))
    assert server.asked == ["classes"]
    mine = Workflow.load({"1": {"class_type": "Mine", "inputs": {"n": 5}}})
    for _ in range(3):
        await checker(mine)  # which the server alone can judge
    with pytest.raises(WorkflowFaulty):
        await checker(graph(name="b"))
    assert server.asked == ["classes"]
    monkeypatch.setattr(checking, "JUST", -1.0)
    with pytest.raises(WorkflowFaulty):
        await checker(graph(name="b"))
    assert server.asked == ["classes"] * 2  # asked anew before it was refused


async def test_a_checker_decides_nothing_when_nobody_answers() -> None:
    server = Server()
    server.away = True
    await Checker(One(server))(graph(name="b"))


async def test_links_to_nothing_are_refused_where_an_output_needs_them_and_when_nobody_answers() -> None:
    nodes = graph(name="a").to_dict()
    stray = {"class_type": "Load", "inputs": {"name": ["88", 0]}}
    workflow = Workflow.load({**nodes, "3": stray}, links=False)
    nodes["2"]["inputs"]["images"] = ["88", 0]
    needed = Workflow.load(nodes, links=False)
    server = Server()
    await Checker(One(server))(workflow)
    with pytest.raises(WorkflowFaulty):
        await Checker(One(server))(needed)
    server.away = True
    with pytest.raises(WorkflowInvalid, match="linked to node '88', which the workflow does not have"):
        await Checker(One(server))(workflow)


async def test_a_saved_answer_needs_no_server() -> None:
    info = NodeInfo(INFO, "info.json")
    with pytest.raises(WorkflowFaulty, match=r"info\.json would refuse this"):
        await Checker(One(), info=info)(graph(name="b"))
    assert isinstance(judge_by(info, graph(name="a")), Judged)


async def test_a_runner_sends_nothing_that_is_refused(comfyui: Sim, tmp_path: Path) -> None:
    workflow = Workflow.load({"1": {"class_type": "EmptyImage", "inputs": {"width": 0}}})
    async with ComfyClient(comfyui.url) as client:
        store = MemoryStore()
        async with Runner(client, store, tmp_path, check=Checker(client)) as runner:
            with pytest.raises(WorkflowInvalid):
                await runner.submit(workflow)
        assert [job async for job in store.unfinished()] == []
    assert comfyui.executed.total() == 0


UI = {"nodes": [{"id": 1, "type": "Load", "widgets_values": ["a"]}], "links": []}


async def test_a_graph_in_ui_format_is_made_by_the_first_server_that_answers() -> None:
    away = Server(url="http://b")
    away.away = True
    found = await made([away, Server()], find(UI))
    assert found.to_dict()["1"]["inputs"] == {"name": "a"}
    with pytest.raises(ServerUnreachable):
        await made([away], find(UI))
    assert (await made([away], find({"1": {"class_type": "A", "inputs": {}}}))).nodes


async def test_a_kept_answer_makes_comfyuis_own_classes_alone() -> None:
    await made([Server()], find(UI))
    server = Server()
    await made([server], find(UI))
    assert server.asked == []
    mine = {"nodes": [{"id": 1, "type": "Mine", "widgets_values": [5]}], "links": []}
    await made([server], find(mine))
    assert server.asked == ["classes"]
    lost = {"nodes": [{"id": 1, "type": "Lost", "widgets_values": [5]}], "links": []}
    with pytest.raises(WorkflowInvalid, match="'Lost' is unknown"):
        await made([server], find(lost))
    assert server.asked == ["classes"] * 2


async def test_a_server_that_is_away_might_take_what_the_others_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away, there = Server(url="http://b"), Server()
    away.away = True
    checker = Checker(One(away, there))
    await checker(graph(name="b"))
    found = await judge([away, there], graph(name="b"))
    assert (found.complete, found.verdict.accepted) == (False, False)
    away.away = False
    await checker(graph(name="b"))  # it is left out for a while
    assert away.asked == []
    monkeypatch.setattr(checking, "REST", -1.0)
    with pytest.raises(WorkflowFaulty):
        await checker(graph(name="b"))
