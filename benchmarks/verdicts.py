"""Does `comfyflow.check` say what a real server says? Run by hand:

    python benchmarks/verdicts.py http://127.0.0.1:8188 [--graphs 50] [--seed 1] [--record FILE]

Every golden graph, and graphs damaged by one rule each, are checked with the server's own /object_info and then
sent to its POST /prompt; what it takes is thrown out of the queue at once. Use a server that may be disturbed,
without GPU, with empty files in the place of models: `--models DIR` makes those first (start the server with that
folder for all kinds of models, then run this).
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from comfyflow.check import Rule, Verdict, check
from comfyflow.expected import expected
from comfyflow.inventory import MODEL_SUFFIXES

GOLDEN = Path(__file__).parent.parent / "tests" / "recordings" / "golden"
Graph = dict[str, Any]
Place = tuple[str, str]


def main() -> None:
    """Print the table of agreement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    golden = json.loads(lzma.decompress((GOLDEN / "api_by_frontend_1.45.20.json.xz").read_bytes()))
    if asked.models:
        make_models(golden.values(), asked.models)
        return
    info = fetch(f"{asked.server}/object_info")
    replaced = set(fetch(f"{asked.server}/node_replacements", {}))
    table: dict[str, Counter[str]] = {}
    records = []
    chance = random.Random(asked.seed)
    for rule, graph in cases(list(golden.values())[: asked.graphs], info, chance):
        verdict = check(graph, info, replaced=replaced)
        status, answer = send(asked.server, graph)
        word = judged(verdict, status, answer)
        table.setdefault(rule, Counter())[word] += 1
        if word in ("refused wrongly", "accepted wrongly"):
            print(rule, word, json.dumps(answer)[:300], [f.message for f in verdict.faults][:3])
        records.append({"rule": rule, "graph": graph, "status": status, "answer": answer})
    print_table(table)
    if asked.record:
        asked.record.write_text(json.dumps(records))


def judged(verdict: Verdict, status: int, answer: Mapping[str, Any]) -> str:
    """One word for how check and server agree."""
    if verdict.undecided and verdict.accepted and status != 200:
        return "undecided, refused"
    if verdict.accepted != (status == 200):
        return "refused wrongly" if status == 200 else "accepted wrongly"
    theirs = {(key, one["type"]) for key, node in answer.get("node_errors", {}).items() for one in node["errors"]}
    ours = {(fault.node_id, fault.rule.value) for fault in verdict.faults}
    return "same" if theirs <= ours or not theirs else "same verdict, other errors"


def cases(golden: list[Graph], info: Graph, chance: random.Random) -> Iterator[tuple[str, Graph]]:
    """The graphs as they are, then each damaged by each rule where it fits."""
    for graph in golden:
        yield "as it is", deepcopy(graph)
        for rule, damage in DAMAGES.items():
            broken = deepcopy(graph)
            places = [(key, name) for key, node in broken.items() for name in node["inputs"]]
            chance.shuffle(places)
            if any(damage(broken, place, info, chance) for place in places):
                yield rule, broken


def spec_of(graph: Graph, place: Place, info: Graph) -> Any:
    """What the class expects there, or None."""
    node = graph[place[0]]
    return expected(info.get(node["class_type"], {}), node["inputs"]).get(place[1])


def no_class(graph: Graph, place: Place, *_: Any) -> bool:
    """A class that no server has."""
    graph[place[0]]["class_type"] += "X"
    return True


def no_input(graph: Graph, place: Place, info: Graph, _: random.Random) -> bool:
    """A required input is gone."""
    spec = spec_of(graph, place, info)
    return bool(spec and spec.required and graph[place[0]]["inputs"].pop(place[1], None) is not None)


def other_link(graph: Graph, place: Place, info: Graph, chance: random.Random) -> bool:
    """A link comes from somewhere else: of another type, or in a circle."""
    if not isinstance(graph[place[0]]["inputs"][place[1]], list):
        return False
    graph[place[0]]["inputs"][place[1]] = [chance.choice(list(graph)), 0]
    return True


def far_slot(graph: Graph, place: Place, *_: Any) -> bool:
    """An output that the node does not have."""
    value = graph[place[0]]["inputs"][place[1]]
    if isinstance(value, list):
        value[1] = 77
    return isinstance(value, list)


def value_of(kinds: tuple[str, ...], value: Any) -> Callable[..., bool]:
    """A value in the place of one of these types."""

    def damage(graph: Graph, place: Place, info: Graph, _: random.Random) -> bool:
        spec = spec_of(graph, place, info)
        if spec is None or spec.type not in kinds or isinstance(graph[place[0]]["inputs"][place[1]], list):
            return False
        graph[place[0]]["inputs"][place[1]] = value
        return True

    return damage


def beyond(option: str, step: int) -> Callable[..., bool]:
    """A number outside of its range."""

    def damage(graph: Graph, place: Place, info: Graph, _: random.Random) -> bool:
        spec = spec_of(graph, place, info)
        bound = spec.options.get(option) if spec else None
        if bound is None or isinstance(graph[place[0]]["inputs"][place[1]], list):
            return False
        graph[place[0]]["inputs"][place[1]] = bound + step
        return True

    return damage


def no_choice(graph: Graph, place: Place, info: Graph, _: random.Random) -> bool:
    """A choice that the list does not have."""
    spec = spec_of(graph, place, info)
    if spec is None or spec.choices is None:
        return False
    graph[place[0]]["inputs"][place[1]] = "no such choice"
    return True


def long_list(graph: Graph, place: Place, info: Graph, _: random.Random) -> bool:
    """A list that is no link."""
    if spec_of(graph, place, info) is None:
        return False
    graph[place[0]]["inputs"][place[1]] = ["a", "b", "c"]
    return True


def no_output(graph: Graph, _: Place, info: Graph, __: random.Random) -> bool:
    """All output nodes are gone."""
    for key in [key for key, node in graph.items() if info.get(node["class_type"], {}).get("output_node")]:
        del graph[key]
    return bool(graph)


def circle(graph: Graph, place: Place, *_: Any) -> bool:
    """A node waits for itself."""
    if not isinstance(graph[place[0]]["inputs"][place[1]], list):
        return False
    graph[place[0]]["inputs"][place[1]] = [place[0], 0]
    return True


DAMAGES: dict[str, Callable[..., bool]] = {
    Rule.UNKNOWN_CLASS.value: no_class,
    Rule.MISSING.value: no_input,
    "another link": other_link,
    "no such slot": far_slot,
    Rule.BAD_LINK.value: long_list,
    "text for a number": value_of(("INT", "FLOAT"), "many"),
    "'1.5' for a whole number": value_of(("INT",), "1.5"),
    "1.5 for a whole number": value_of(("INT",), 1.5),
    "'12' for a number": value_of(("INT", "FLOAT"), "12"),
    "null for a number": value_of(("INT", "FLOAT"), None),
    "true for a number": value_of(("INT", "FLOAT"), True),
    "number for a text": value_of(("STRING",), 5),
    "object for a text": value_of(("STRING",), {"a": 1}),
    "text for a boolean": value_of(("BOOLEAN",), "no"),
    "boxed list": value_of(("INT", "FLOAT", "STRING"), {"__value__": [1, 2]}),
    Rule.TOO_SMALL.value: beyond("min", -1),
    Rule.TOO_BIG.value: beyond("max", 1),
    Rule.NOT_LISTED.value: no_choice,
    Rule.CYCLE.value: circle,
    Rule.NO_OUTPUT.value: no_output,
}


def make_models(graphs: Any, folder: Path) -> None:
    """An empty file for each model that a graph names."""
    for graph in graphs:
        for node in graph.values():
            for value in node["inputs"].values():
                if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
                    path = folder / value.replace("\\", "/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()


def fetch(url: str, otherwise: Any = None) -> Any:
    """GET JSON; `otherwise` for a 404."""
    try:
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)
    except urllib.error.HTTPError:
        if otherwise is None:
            raise
        return otherwise


def post(url: str, body: Any) -> tuple[int, Any]:
    """POST JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else {}
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


def send(server: str, graph: Graph) -> tuple[int, Any]:
    """Queue a graph and throw it out again."""
    status, answer = post(f"{server}/prompt", {"prompt": graph})
    if status == 200:
        post(f"{server}/queue", {"clear": True})
        post(f"{server}/interrupt", {})
    return status, answer


def print_table(table: Mapping[str, Counter[str]]) -> None:
    """One line a rule."""
    words = ("same", "same verdict, other errors", "undecided, refused", "refused wrongly", "accepted wrongly")
    print(f"{'rule':32}" + "".join(f"{word:>28}" for word in words))
    for rule, counts in [*table.items(), ("all", sum(table.values(), Counter()))]:
        print(f"{rule:32}" + "".join(f"{counts[word]:28}" for word in words))


if __name__ == "__main__":
    main()
