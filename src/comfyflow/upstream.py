"""What is found upstream in a graph, against its links: the positive prompt, and where seeds are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from .schema import SEED_NAMES

NUMBER_NAMES = (*SEED_NAMES, "value", "int", "number")  # what primitive nodes call their one input

_T = TypeVar("_T")

_PAIR = (list, tuple)  # asked for every value of every node
_TEXT_INPUT = re.compile(
    r"(positive_?)?(text|prompt|string|value|caption)s?(_?([a-z]|\d+|positive))?"
    r"|(.*\.|text_)?prompt|positive|populated_text|tags|lyrics|clip_[lg]|t5xxl|mt5xl|bert|llama"
)
_PROMPT_INPUT = re.compile(r"(.*\.|text_|positive_)?prompt")
_CONDITIONING_INPUT = re.compile(r"positive.*|cond(itioning)?(_.*|\d+)?")


def is_link(value: Any) -> bool:
    """Whether an input is a connection: `["node id", slot]` (comfy_execution/graph_utils.py, 0.27.0)."""
    return (
        isinstance(value, _PAIR)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def seed_places(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Node id and input of every seed; one that comes over a link, where it is written; they may repeat."""
    for node_id, node in graph.items():
        for name in SEED_NAMES:
            value = node["inputs"].get(name)
            if is_link(value):
                yield from _upstream(graph, value[0], _seed_here, set())
            elif _is_number(value):
                yield node_id, name


def _seed_here(node_id: str, inputs: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """The number that a linked seed is written as, else the nodes it may come from."""
    for name in NUMBER_NAMES:
        if _is_number(inputs.get(name)):
            return [(node_id, name)], []
    return [], [value[0] for value in inputs.values() if is_link(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def positive_texts(graph: Mapping[str, Any]) -> Iterator[str]:
    """The texts of the positive prompt, in the order in which links are followed; some may repeat."""
    seen: set[str] = set()
    for start in _positive_starts(graph):
        yield from _upstream(graph, start, _texts_here, seen)


def _positive_starts(graph: Mapping[str, Any]) -> list[str]:
    """In front of every `positive` input, else of the guiders (Flux), else the nodes with a `prompt`."""
    links = [
        (node["class_type"], name, value[0])
        for node in graph.values()
        for name, value in node["inputs"].items()
        if is_link(value)
    ]
    return (
        [source for _, name, source in links if name == "positive"]
        or [
            source for kind, name, source in links if "Guider" in kind and _CONDITIONING_INPUT.fullmatch(name)
        ]
        or [node_id for node_id, node in graph.items() if any(map(_PROMPT_INPUT.fullmatch, node["inputs"]))]
    )


def _texts_here(_: str, inputs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The texts that a node holds, and the nodes in front of it that may hold more of the positive prompt."""
    named = {name: value for name, value in inputs.items() if _TEXT_INPUT.fullmatch(name)}
    texts = [value for value in named.values() if isinstance(value, str)]
    links = {name: value[0] for name, value in inputs.items() if is_link(value) and "neg" not in name}
    likely = [
        source for name, source in links.items() if name in named or _CONDITIONING_INPUT.fullmatch(name)
    ]
    return texts, likely if likely or texts else list(links.values())


def _upstream(
    graph: Mapping[str, Any],
    start: str,
    look: Callable[[str, Mapping[str, Any]], tuple[list[_T], list[str]]],
    seen: set[str],
) -> Iterator[_T]:
    """Walk from node to node against the links, depth first; `look` says what is found and where to go on."""
    waiting = [start]
    while waiting:
        node_id = waiting.pop()
        if node_id in seen:
            continue
        seen.add(node_id)
        if node_id not in graph:  # a link to nothing, in a part that no output may need
            continue
        found, further = look(node_id, graph[node_id]["inputs"])
        yield from found
        waiting.extend(reversed(further))
