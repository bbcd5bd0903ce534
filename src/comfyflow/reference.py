"""What people call nodes and inputs: `6.text`, `"Positive prompt".text`, `CLIPTextEncode.text`.

A node is named by its id, else its title (which may stand in quotes), else its class, if one node alone has
that. What fits nothing, or more than one, is answered with the candidates.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from .errors import WorkflowInvalid

Graph = Mapping[str, Any]
_LISTED = 8  # candidates that an error names


def own_title(node: Mapping[str, Any]) -> str | None:
    """The title that a person gave the node."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) and title.strip() else None


def title_of(node: Mapping[str, Any]) -> str:
    """What a person calls the node: its title, else its class."""
    return own_title(node) or str(node["class_type"])


def label_of(nodes: Graph, node_id: str) -> str:
    """Title and id, for messages: `"Load Checkpoint" (4)`."""
    return f'"{title_of(nodes[node_id])}" ({node_id})'


def node_named(nodes: Graph, reference: str) -> str:
    """The id of the one node that is called so. Raises WorkflowInvalid for none, or more than one."""
    for named in (_by_id, _by_title, _by_class):
        found = named(nodes, reference)
        if len(found) == 1:
            return found[0]
        if found:
            labels = _some([label_of(nodes, node_id) for node_id in found])
            raise WorkflowInvalid(f"{reference!r} fits more than one node; use an id: {labels}")
    raise WorkflowInvalid(_no_node(nodes, reference))


def input_named(nodes: Graph, target: str) -> tuple[str, str]:
    """Node id and input of a target NODE.INPUT. Ids, titles and inputs may hold dots. Raises
    WorkflowInvalid."""
    splits = list(_splits(target, "."))
    if not splits:
        raise WorkflowInvalid(f"{target!r} must be written NODE.INPUT, for example 6.text")
    found: list[tuple[str, str]] = []
    for named in (_by_id, _by_title, _by_class):
        hits = [(node_id, name) for reference, name in splits for node_id in named(nodes, reference)]
        there = [(node_id, name) for node_id, name in hits if name in nodes[node_id]["inputs"]]
        if len(there) == 1:
            return there[0]
        if there:
            listed = _some([f"{node_id}.{name} ({title_of(nodes[node_id])})" for node_id, name in there])
            raise WorkflowInvalid(f"{target!r} fits more than one node; use an id: {listed}")
        found += hits
    raise WorkflowInvalid(no_input(nodes, *found[0]) if found else _no_node(nodes, splits[-1][0]))


def assigned(nodes: Graph, assignment: str) -> tuple[str, str, str]:
    """Node id, input and text of `NODE.INPUT=VALUE`. Raises WorkflowInvalid."""
    # The first "=" with a known target in front of it is the one meant: titles may contain "=" too.
    first: WorkflowInvalid | None = None
    for target, text in _splits(assignment, "="):
        try:
            return (*input_named(nodes, target), text)
        except WorkflowInvalid as error:
            first = first or error
    raise first or WorkflowInvalid(f"{assignment!r} must be NODE.INPUT=VALUE, for example 6.text=a cat")


def no_input(nodes: Graph, node_id: str, name: str) -> str:
    """The sentence for an input that a node has not got."""
    inputs = _some(_near(name, nodes[node_id]["inputs"])) or "none"
    return f"node {label_of(nodes, node_id)} has no input {name!r}; its inputs are: {inputs}"


def _no_node(nodes: Graph, reference: str) -> str:
    names = {key: (key, title_of(node), node["class_type"]) for key, node in nodes.items()}
    near = _near(reference, chain.from_iterable(names.values()))
    rank = {name: place for place, name in enumerate(near)}
    ids = sorted(names, key=lambda node_id: min(rank[name] for name in names[node_id]))
    labels = _some([label_of(nodes, node_id) for node_id in ids])
    return f"there is no node {reference!r}; there are: {labels}"


def _by_id(nodes: Graph, reference: str) -> list[str]:
    return [reference] if reference in nodes else []


def _by_title(nodes: Graph, reference: str) -> list[str]:
    quoted = len(reference) > 1 and reference[0] == reference[-1] == '"'
    wanted = {reference, reference[1:-1]} if quoted else {reference}
    return [node_id for node_id, node in nodes.items() if own_title(node) in wanted]


def _by_class(nodes: Graph, reference: str) -> list[str]:
    return [node_id for node_id, node in nodes.items() if node["class_type"] == reference]


def _splits(text: str, mark: str) -> Iterator[tuple[str, str]]:
    for index, letter in enumerate(text):
        if letter == mark and index:
            yield text[:index], text[index + 1 :]


def _near(wanted: str, known: Iterable[str]) -> list[str]:
    """All of `known` once each, the likeliest misspellings first."""
    names = list(dict.fromkeys(known))
    lower = {name: name.lower() for name in names}
    return sorted(names, key=lambda name: -difflib.SequenceMatcher(None, wanted.lower(), lower[name]).ratio())


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
