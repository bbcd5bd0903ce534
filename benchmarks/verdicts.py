"""Does `check` say what a real server says? A script, run by hand against a server of one's own:

    python benchmarks/verdicts.py http://127.0.0.1:8188 GRAPHS.json.xz --base DIRECTORY [--record FILE]

GRAPHS holds {name: API graph}. Each graph is sent as it is, and damaged once by each rule at a random fitting
place (seeded); what the server takes is removed from its queue at once. --base is the server's base
directory (main.py --base-directory): empty model and input files are put there, so that choices exist.
"nodes equal" counts the graphs where the errors are the same for each node, "nodes covered" those where
`check` knows every error that the server names (it tells more where the server stops at the first).
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import sys
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyflow.chains import reached
from comfyflow.check import check
from comfyflow.faults import FaultKind, Verdict
from comfyflow.upstream import is_link

Graph = dict[str, Any]
Info = dict[str, Any]
Place = tuple[str, str]  # node id and input
HUGE = 10**400


@dataclass(frozen=True, slots=True)
class Server:
    url: str

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _json(error.read())

    def judge(self, graph: Graph) -> tuple[bool, dict[str, list[str]]]:
        """Whether it takes the graph, and the types of errors by node ("" is the graph itself)."""
        status, answer = self.post("/prompt", {"prompt": graph})
        if status == 200:
            self.post("/queue", {"clear": True})
            self.post("/interrupt", {})
        errors = {
            node_id: sorted({error["type"].replace("_inner", "") for error in one["errors"]})
            for node_id, one in (answer.get("node_errors") or {}).items()
        }
        error = answer.get("error")
        if isinstance(error, dict) and not errors:
            errors[str(error.get("extra_info", {}).get("node_id", ""))] = [error["type"]]
        return status == 200, errors


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:  # 500 comes as text
        return {}


class Places:
    """Where a graph can be broken: only what its outputs need."""

    def __init__(self, graph: Graph, info: Info) -> None:
        self.graph, self.info = graph, info
        sources = {
            node_id: [link[0] for link in node["inputs"].values() if is_link(link) and link[0] in graph]
            for node_id, node in graph.items()
        }
        outputs = [node_id for node_id, node in graph.items() if self.of(node).get("output_node")]
        self.outputs = outputs
        self.needed = [node_id for node_id in graph if node_id in reached(outputs, sources)]
        self.above = {node_id: reached([node_id], sources) for node_id in self.needed}

    def of(self, node: Any) -> Info:
        found: Info = self.info.get(node["class_type"]) or {}
        return found

    def entries(self, node_id: str) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
        """Section, name, type and options of the inputs that the class lists by name."""
        inputs = self.of(self.graph[node_id]).get("input") or {}
        for section in ("required", "optional"):
            for name, entry in (inputs.get(section) or {}).items():
                yield section, name, entry[0], entry[1] if len(entry) > 1 else {}

    def values(self, *kinds: str, option: str | None = None) -> list[Place]:
        """Widgets of a kind that hold a value."""
        return [
            (node_id, name)
            for node_id in self.needed
            for _, name, kind, options in self.entries(node_id)
            if name in (inputs := self.graph[node_id]["inputs"])
            and not isinstance(inputs[name], list)
            and ("COMBO" if isinstance(kind, list) else kind) in kinds
            and (option is None or option in options)
        ]

    def links(self, *, required: bool | None = None) -> list[Place]:
        return [
            (node_id, name)
            for node_id in self.needed
            for section, name, _, _ in self.entries(node_id)
            if is_link(self.graph[node_id]["inputs"].get(name))
            and (required is None or required == (section == "required"))
        ]

    def dynamic(self) -> list[Place]:
        return self.values("COMFY_DYNAMICCOMBO_V3")

    def grown(self) -> list[Place]:
        return [
            (node_id, name)
            for node_id in self.needed
            for name, value in self.graph[node_id]["inputs"].items()
            if "." in name and isinstance(value, list)
        ]

    def option(self, place: Place, key: str) -> Any:
        return next(options[key] for _, name, _, options in self.entries(place[0]) if name == place[1])


Damage = Callable[[Graph, Places, random.Random], bool]


def put(find: Callable[[Places], list[Place]], value: Callable[[Any, Places, Place], Any]) -> Damage:
    """Another value at a random place, made of the old one."""

    def damage(graph: Graph, places: Places, dice: random.Random) -> bool:
        found = find(places)
        if not found:
            return False
        node_id, name = place = dice.choice(found)
        inputs = graph[node_id]["inputs"]
        inputs[name] = value(inputs[name], places, place)
        return True

    return damage


def drop(find: Callable[[Places], list[Place]]) -> Damage:
    def damage(graph: Graph, places: Places, dice: random.Random) -> bool:
        found = find(places)
        if not found:
            return False
        node_id, name = dice.choice(found)
        del graph[node_id]["inputs"][name]
        return True

    return damage


def on_node(change: Callable[[Graph, str, Places], Any]) -> Damage:
    def damage(graph: Graph, places: Places, dice: random.Random) -> bool:
        if not places.needed:
            return False
        change(graph, dice.choice(places.needed), places)
        return True

    return damage


def relinked(graph: Graph, places: Places, dice: random.Random) -> bool:
    """A link to another node's output, of any type; never one that makes a circle."""
    found = places.links()
    if not found:
        return False
    node_id, name = dice.choice(found)
    fitting = [
        (other, slot)
        for other in graph
        if node_id not in places.above.get(other, {node_id})
        for slot in range(len(places.of(graph[other]).get("output") or ()))
    ]
    if fitting:
        graph[node_id]["inputs"][name] = list(dice.choice(fitting))
    return bool(fitting)


def circle(graph: Graph, places: Places, dice: random.Random) -> bool:
    """A link to a node that needs this one, of the same type: only the circle is wrong."""
    for node_id, name in dice.sample(places.links(), len(places.links())):
        source, slot = graph[node_id]["inputs"][name]
        offered = places.of(graph[source])["output"]
        kind = offered[slot] if slot < len(offered) else None
        for other in dice.sample(places.needed, len(places.needed)):
            outputs = places.of(graph[other]).get("output") or []
            if node_id in places.above[other] and kind in outputs:
                graph[node_id]["inputs"][name] = [other, outputs.index(kind)]
                return True
    return False


def no_outputs(graph: Graph, places: Places, dice: random.Random) -> bool:
    for node_id in places.outputs:
        del graph[node_id]
    return bool(graph)


def broken_elsewhere(graph: Graph, places: Places, dice: random.Random) -> bool:
    graph["9000"] = {"class_type": "KSampler", "inputs": {"steps": "many", "model": ["9001", 7]}}
    return True


def _rename(graph: Graph, node_id: str, places: Places) -> None:
    graph[node_id]["class_type"] += "X"


def numbers(places: Places) -> list[Place]:
    return places.values("INT", "FLOAT")


def models(places: Places) -> list[Place]:
    return [
        place
        for place in places.values("COMBO")
        if str(places.graph[place[0]]["inputs"][place[1]]).endswith((".safetensors", ".pth", ".pt"))
    ]


def _link(change: Callable[[list[Any]], Any]) -> Damage:
    return put(Places.links, lambda old, _p, _w: change(old))


def _value(value: Any, *kinds: str, option: str | None = None) -> Damage:
    return put(lambda places: places.values(*kinds, option=option), lambda _o, _p, _w: value)


def three(graph: Graph, places: Places, dice: random.Random) -> bool:
    return all([RULES[rule](graph, places, dice) for rule in ("a word", "link of three", "unknown choice")])


RULES: dict[str, Damage] = {
    "as it is": lambda *_: True,
    "unknown class": on_node(_rename),
    "no class": on_node(lambda graph, node_id, _: graph[node_id].pop("class_type")),
    "no inputs object": on_node(lambda graph, node_id, _: graph[node_id].pop("inputs")),
    "unknown input": on_node(lambda graph, node_id, _: graph[node_id]["inputs"].update(other=1)),
    "no output node": no_outputs,
    "a circle": circle,
    "a node that nobody needs": broken_elsewhere,
    "required link missing": drop(lambda places: places.links(required=True)),
    "optional link missing": drop(lambda places: places.links(required=False)),
    "number missing": drop(numbers),
    "choice missing": drop(lambda places: places.values("COMBO")),
    "grown input missing": drop(Places.grown),
    "dynamic choice missing": drop(Places.dynamic),
    "dynamic choice unknown": put(Places.dynamic, lambda _o, _p, _w: "no such choice"),
    "other output linked": relinked,
    "link to nothing": _link(lambda old: ["9999", old[1]]),
    "link by number": _link(lambda old: [int(old[0]) if old[0].isdigit() else 1, old[1]]),
    "link to output 99": _link(lambda old: [old[0], 99]),
    "link to output -1": _link(lambda old: [old[0], -1]),
    "link to output 0.0": _link(lambda old: [old[0], 0.0]),
    "link to output true": _link(lambda old: [old[0], True]),
    "link to output '0'": _link(lambda old: [old[0], "0"]),
    "link of three": _link(lambda old: [*old, 0]),
    "link of one": _link(lambda old: old[:1]),
    "text for a link": _link(lambda _old: "text"),
    "null for a link": _link(lambda _old: None),
    "below min": put(
        lambda p: p.values("INT", "FLOAT", option="min"), lambda _o, p, w: p.option(w, "min") - 1
    ),
    "at min": put(lambda p: p.values("INT", "FLOAT", option="min"), lambda _o, p, w: p.option(w, "min")),
    "above max": put(
        lambda p: p.values("INT", "FLOAT", option="max"), lambda _o, p, w: p.option(w, "max") * 2 + 1
    ),
    "number as text": put(numbers, lambda old, _p, _w: str(old)),
    "'1.5'": _value("1.5", "INT", "FLOAT"),
    "1.5": _value(1.5, "INT", "FLOAT"),
    "a word": _value("many", "INT", "FLOAT"),
    "empty text": _value("", "INT", "FLOAT"),
    "null": _value(None, "INT", "FLOAT"),
    "true": _value(True, "INT", "FLOAT"),
    "NaN": _value(float("nan"), "INT", "FLOAT"),
    "Infinity": _value(float("inf"), "INT", "FLOAT"),
    "401 digits": _value(HUGE, "INT", "FLOAT"),
    "an object": _value({"a": 1}, "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"),
    "wrapped": put(
        lambda p: p.values("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"),
        lambda old, _p, _w: {"__value__": old},
    ),
    "wrapped list": _value({"__value__": [1, 2]}, "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"),
    "number for a text": _value(5, "STRING"),
    "null for a text": _value(None, "STRING"),
    "text for yes/no": _value("no", "BOOLEAN"),
    "null for yes/no": _value(None, "BOOLEAN"),
    "unknown choice": _value("no such choice", "COMBO"),
    "number for a choice": _value(3, "COMBO"),
    "null for a choice": _value(None, "COMBO"),
    "missing model": put(models, lambda old, _p, _w: f"other_{old}"),
    "missing upload": put(
        lambda p: p.values("COMBO", option="image_upload"), lambda _o, _p, _w: "not_there.png"
    ),
    "upload in a subfolder": put(
        lambda p: p.values("COMBO", option="image_upload"), lambda _o, _p, _w: "sub/not_there.png"
    ),
    "three faults": three,
}


def provide(base: Path, graphs: dict[str, Graph], info: Info) -> int:
    """Put empty files where `check` misses them; how many."""
    made = 0
    for graph in graphs.values():
        verdict = check(graph, info)
        for kind, value, folder in [
            *((one.kind, one.value, one.folder) for one in verdict.faults),
            *((one.kind, one.value, None) for one in verdict.undecided),
        ]:
            place = base / "input" if kind is FaultKind.MISSING_FILE else base / "models" / (folder or "")
            missing = kind is FaultKind.MISSING_FILE or (kind is FaultKind.MISSING_MODEL and folder)
            if missing and isinstance(value, str) and value:
                path = place / value.partition(" [")[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                made += not path.exists()
                path.touch()
    return made


@dataclass(slots=True)
class Row:
    """The table's line of one rule."""

    graphs: int = 0
    refused: int = 0
    agreed: int = 0
    undecided: int = 0
    wrong: int = 0
    nodes_equal: int = 0
    nodes_covered: int = 0


def ours(verdict: Verdict) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for fault in verdict.faults:
        found[fault.node_id or ""].add(fault.kind.server_type)
    return found


def covered(errors: dict[str, list[str]], verdict: Verdict) -> bool:
    """Whether each error of the server is known to `check`, at its node; circles and exceptions, which end
    the server's search where it happens to be, by the graph."""
    mine = ours(verdict)
    open_ = {one.node_id for one in verdict.undecided}
    kinds = set().union(*mine.values()) if mine else set()
    for node_id, types in errors.items():
        for kind in types:
            by_graph = kind == "dependency_cycle" or kind.startswith("exception") or not node_id
            known = by_graph and (bool(kinds) or bool(open_))
            missing = kind == "custom_validation_failed" and "value_not_in_list" in mine.get(node_id, ())
            if not (known or missing or kind in mine.get(node_id, ()) or node_id in open_):
                return False
    return True


def equal(errors: dict[str, list[str]], verdict: Verdict) -> bool:
    mine = {node_id: sorted(kinds) for node_id, kinds in ours(verdict).items()}
    return mine == errors


def add(row: Row, accepted: bool, errors: dict[str, list[str]], verdict: Verdict) -> bool:
    """Count one comparison; whether it went wrong."""
    row.graphs += 1
    row.refused += not accepted
    row.agreed += verdict.accepted is accepted
    row.undecided += verdict.accepted is None
    wrong = verdict.accepted is not None and verdict.accepted is not accepted
    row.wrong += wrong
    row.nodes_equal += equal(errors, verdict)
    row.nodes_covered += covered(errors, verdict)
    return wrong or not covered(errors, verdict)


def compare(server: Server, graphs: dict[str, Graph], info: Info, seed: int) -> Iterator[dict[str, Any]]:
    for rule, damage in RULES.items():
        for name, graph in graphs.items():
            dice, broken = random.Random(f"{seed} {rule} {name}"), deepcopy(graph)
            if not damage(broken, Places(graph, info), dice):
                continue
            accepted, errors = server.judge(broken)
            yield {"rule": rule, "name": name, "graph": broken, "accepted": accepted, "errors": errors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--base", type=Path, help="without it no files are made: models are missing")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every", type=int, default=1, help="take each n-th graph only")
    parser.add_argument("--record", type=Path, help="write the smallest graph of each rule, and the answers")
    asked = parser.parse_args()
    server = Server(asked.url)
    with lzma.open(asked.graphs) as file:
        graphs: dict[str, Graph] = json.load(file)
    info = server.get("/object_info")
    known = {
        name: graph
        for name, graph in graphs.items()
        if all(node["class_type"] in info for node in graph.values())
    }
    print(f"{len(graphs)} graphs, {len(known)} of them with classes that the server has")
    if asked.base:
        print(f"{provide(asked.base, known, info)} empty files made")
        info = server.get("/object_info")
    rows: dict[str, Row] = defaultdict(Row)
    smallest: dict[str, dict[str, Any]] = {}
    for case in compare(server, dict(list(known.items())[:: asked.every]), info, asked.seed):
        verdict = check(case["graph"], info)
        if add(rows[case["rule"]], case["accepted"], case["errors"], verdict):
            told = [fault.message for fault in verdict.faults] + [one.message for one in verdict.undecided]
            print("DIFFERS", case["rule"], case["name"], case["accepted"], case["errors"], told[:5])
        best = smallest.setdefault(case["rule"], case)
        if len(case["graph"]) < len(best["graph"]):
            smallest[case["rule"]] = case
    if asked.record:
        record(asked.record, server, info, list(smallest.values()))
    table(rows)
    return int(any(row.wrong for row in rows.values()))


def record(file: Path, server: Server, info: Info, cases: list[dict[str, Any]]) -> None:
    """Write what the tests need: the cases, and the classes that they name, without the prose."""
    classes = {str(node.get("class_type")) for case in cases for node in case["graph"].values()}
    kept = ("input", "output", "output_node", "python_module", "search_aliases")
    short = {
        name: {key: _bare(info[name][key]) for key in kept if key in info[name]}
        for name in sorted(classes & info.keys())
    }
    version = server.get("/system_stats")["system"]["comfyui_version"]
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = f'{{"version": "{version}", "object_info":\n{json.dumps(short)},\n"cases": [\n{lines}\n]}}\n'
    file.write_text(text, encoding="utf-8")


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(part) for key, part in value.items() if key not in ("tooltip", "description")}
    return [_bare(part) for part in value] if isinstance(value, list) else value


def table(rows: dict[str, Row]) -> None:
    print("| rule | graphs | refused | agreed | undecided | wrong | nodes equal | nodes covered |")
    print("| --- " * 8 + "|")
    total: Counter[str] = Counter()
    for rule, row in rows.items():
        counts = [getattr(row, field) for field in Row.__slots__]
        total.update(dict(zip(Row.__slots__, counts, strict=True)))
        print("|", rule, "|", " | ".join(map(str, counts)), "|")
    print("| all |", " | ".join(str(total[field]) for field in Row.__slots__), "|")


if __name__ == "__main__":
    sys.exit(main())
