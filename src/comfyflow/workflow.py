"""ComfyUI's API-format graph: load it, check it, patch it, describe it.

Every fault that can be seen without a server is found here and told in one sentence. A `Workflow` never
changes: each patch returns a new one.
"""

# ruff: noqa: PLC0415 - most workflows run whole

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import isfinite
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal

from .errors import WorkflowInvalid
from .fresh import FRESH
from .reference import assigned, input_named, label_of, no_input, node_named, title_of
from .sources import EXPORT, Form, Source, find
from .upstream import is_link, positive_texts, seed_places
from .views import Edit, NodeView

MAX_DEPTH = 100  # levels of nesting; real graphs have about five
MAX_SEED = 2**64 - 1  # ComfyUI nodes.py KSampler, 0.27.0


@dataclass(frozen=True, slots=True)
class Workflow:
    """A checked graph in API format. Make one with `load` or `parse`; it holds at least one node.

    `nodes` maps a node id to `{"class_type", "inputs", "_meta"?}` in the order of the file; treat it as
    read-only and take `to_dict()` for a copy of your own. `name` is the file it came from, for messages;
    `recognised` says what it was, `warnings` what a conversion leaves to be known, and `packs` the pack that
    a node's class comes from, by node id, where the UI format tells it.
    """

    nodes: Mapping[str, Any]
    name: str | None = field(default=None, compare=False)
    recognised: str = field(default=Form.API.described, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    packs: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    # Made when they are asked for: a record asks more than once.
    _digest: str | None = field(default=None, init=False, repr=False, compare=False)
    _prompt_text: str | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | bytes | Mapping[str, Any] | Workflow,
        *,
        object_info: Mapping[str, Any] | None = None,
        links: bool = True,
    ) -> Workflow:
        """Take a file (by its path), the bytes of one, a graph, or a workflow.

        A file or graph is in API format, in UI format, or media that ComfyUI wrote. The UI format is
        converted with `object_info`, what `/object_info` of a server tells. Without `links` those of a graph
        in API format are not looked at: a server takes links to nothing in a part that none of its outputs
        needs, and `Checker` tells which are. Raises WorkflowInvalid, whose `path` is the file's name when
        there is one.
        """
        if isinstance(source, Workflow):
            return source
        return cls.made(find(source), object_info=object_info, links=links)

    @classmethod
    def parse(
        cls, text: bytes | str, *, name: str | None = None, object_info: Mapping[str, Any] | None = None
    ) -> Workflow:
        """Read JSON text (bytes are UTF-8, a byte order mark is fine), or the bytes of media, like `load`.

        Raises WorkflowInvalid with `name` as its path.
        """
        found = find(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), name=name)
        return cls.made(found, object_info=object_info)

    @classmethod
    def made(
        cls, source: Source, *, object_info: Mapping[str, Any] | None = None, links: bool = True
    ) -> Workflow:
        """Make the workflow of a source that was found, like `load`. Raises WorkflowInvalid."""
        try:
            if source.form is Form.API:
                workflow = cls(_checked(source.data), source.name, source.described)
                return workflow.with_sound_links() if links else workflow
            source.check_form()
            if object_info is None:
                raise WorkflowInvalid(
                    "this is in UI format, which is converted with the node classes of a server: give "
                    f"object_info, for example that of ComfyClient.object_info(); or {EXPORT}"
                )
            converted = source.converted(object_info)
            graph = _checked(converted.graph)
            workflow = cls(graph, source.name, source.described, converted.warnings, converted.packs)
            return workflow.with_sound_links()
        except WorkflowInvalid as error:
            raise WorkflowInvalid(error.reason, path=source.name) from error.__cause__

    def with_sound_links(self) -> Workflow:
        """The workflow itself. Raises WorkflowInvalid for a link to a node that is not there, or to what is
        no number of an output."""
        try:
            for node_id, node in self.nodes.items():
                for name in node["inputs"]:
                    _check_link(self.nodes, node_id, name)
        except WorkflowInvalid as error:
            raise WorkflowInvalid(error.reason, path=self.name) from None
        return self

    def to_dict(self) -> dict[str, Any]:
        """A copy of the graph that is the caller's own in every level."""
        return deepcopy(dict(self.nodes))

    def title(self, node_id: str) -> str:
        """What a person calls the node: its title, else its class, else (not in this graph) the id itself.

        A node that came up while the job ran is named after the one it came from: "5.0.1" after "5"
        (recording 27).
        """
        node = self.nodes.get(node_id) or self.nodes.get(node_id.partition(".")[0])
        return title_of(node) if node else node_id

    def label(self, node_id: str) -> str:
        """Title and id, for messages: `"Load Checkpoint" (4)`."""
        return f'"{self.title(node_id)}" ({node_id})'

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is computed: independent of the order of keys and of titles."""
        if self._digest is None:
            object.__setattr__(self, "_digest", self._computed_digest())
        assert self._digest is not None
        return self._digest

    def _computed_digest(self) -> str:
        bare = {
            node_id: {key: part for key, part in node.items() if key != "_meta"}
            for node_id, node in self.nodes.items()
        }
        text = json.dumps(bare, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def prompt_text(self) -> str | None:
        """The positive prompt, one text a line, or None: what flows into the samplers' `positive` inputs.

        Links are followed upstream through conditioning and text nodes, whatever their classes are. Where
        nothing samples here (nodes that call a service) it is what the inputs named `prompt` hold.
        """
        if self._prompt_text is None:
            texts = dict.fromkeys(text.strip() for text in positive_texts(self.nodes) if text.strip())
            object.__setattr__(self, "_prompt_text", "\n".join(texts))
        return self._prompt_text or None

    # Without this a loop over a workflow would ask for the nodes 0, 1, 2, ...
    __iter__: ClassVar[None] = None

    def __getitem__(self, reference: str) -> NodeView[Workflow]:
        """A node by its id, title or class, to read. Raises WorkflowInvalid for none, or more than one."""
        return NodeView(self, self.node_id(reference))

    def edit(self) -> Edit[Workflow]:
        """Begin an edit: `edit["KSampler"].inputs["seed"] = 7`, then `edit.done()` is a new workflow."""
        return Edit(self)

    def node_id(self, reference: str) -> str:
        """The id of the one node that has this id, title or class; a title may stand in quotes.

        Raises WorkflowInvalid, naming candidates, for none, or more than one.
        """
        return node_named(self.nodes, reference)

    def set_at(self, node_id: str, name: str, value: Any) -> Workflow:
        """Like `set`, for a node by its id. Raises WorkflowInvalid."""
        if name not in self.nodes[node_id]["inputs"]:
            raise WorkflowInvalid(no_input(self.nodes, node_id, name))
        return self._replaced(node_id, name, value)

    def only(self, *references: str) -> Workflow:
        """The workflow with these nodes, and all that they need, alone.

        Raises WorkflowInvalid, also when none is named.
        """
        from . import parts

        return replace(self, nodes=parts.only(self.nodes, map(self.node_id, references)))

    def mute(self, *references: str) -> Workflow:
        """The workflow without these nodes; inputs that were linked to them are gone.

        Raises WorkflowInvalid, also when nothing is left.
        """
        from . import parts

        return replace(self, nodes=parts.mute(self.nodes, map(self.node_id, references)))

    def bypass(self, *references: str, object_info: Mapping[str, Any]) -> Workflow:
        """The workflow without these nodes; what they got goes straight to who took from them.

        Types are taken from `object_info`. Raises WorkflowInvalid for a node of an unknown class.
        """
        from . import parts

        chosen = [self.node_id(reference) for reference in references]
        labels = {node_id: self.label(node_id) for node_id in chosen}
        return replace(self, nodes=parts.bypass(self.nodes, chosen, object_info, labels))

    def set(self, target: str, value: Any) -> Workflow:
        """Return a workflow whose input `target` (NODE.INPUT) is `value`.

        NODE is a node id, else a title, else a class name that one node alone has; ids, titles and inputs may
        contain dots. A number replaces a number, a text a text; an input that is a link takes any value.
        Raises WorkflowInvalid, naming the nearest candidates, when target or kind of value does not fit.
        """
        node_id, name = input_named(self.nodes, target)
        return self._replaced(node_id, name, value)

    def set_text(self, assignment: str) -> Workflow:
        """Like `set`, from one text `NODE.INPUT=VALUE`; the value is read as the kind that the input has.

        Numbers, `true`/`false`, lists and objects are read as JSON, a text as it is. Raises WorkflowInvalid.
        """
        return self.set_text_at(*self.assignment(assignment))

    def set_text_at(self, node_id: str, name: str, text: str) -> Workflow:
        """Like `set_text`, for a node by its id. Raises WorkflowInvalid."""
        return self._replaced(node_id, name, _read_as(self.nodes[node_id]["inputs"][name], text))

    def seed(self, value: int | Literal["random"]) -> Workflow:
        """Return a workflow whose every `seed` and `noise_seed` is `value`: 0 .. 2**64-1, or "random".

        A seed that comes over a link is changed where it is written. Raises WorkflowInvalid without a seed.
        """
        number = random_seed() if value == "random" else value
        if type(number) is not int or not 0 <= number <= MAX_SEED:
            raise WorkflowInvalid(f"a seed is a whole number from 0 to {MAX_SEED} or 'random', not {value!r}")
        places = list(dict.fromkeys(seed_places(self.nodes)))
        if not places:
            raise WorkflowInvalid("there is no seed to set: no node has a number as 'seed' or 'noise_seed'")
        workflow = self
        for node_id, name in places:
            workflow = workflow._replaced(node_id, name, number)
        return workflow

    def _replaced(self, node_id: str, name: str, value: Any) -> Workflow:
        node = self.nodes[node_id]
        place = f"input '{name}' of node {self.label(node_id)}"
        fitted = _fitted(node["inputs"][name], value, place)
        graph = {**self.nodes, node_id: {**node, "inputs": {**node["inputs"], name: fitted}}}
        _check_link(graph, node_id, name)
        return replace(self, nodes=graph)

    def assignment(self, assignment: str) -> tuple[str, str, str]:
        """Node id, input and text of `NODE.INPUT=VALUE`. Raises WorkflowInvalid."""
        return assigned(self.nodes, assignment)


def random_seed() -> int:
    """A seed below 2**31: repeats are rare, and nodes that call a service take no more (98 classes of
    0.27.0)."""
    return secrets.randbelow(2**31)


def _checked(data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise WorkflowInvalid(f"this holds {_kind(data)}, but a workflow is a JSON object of nodes: {EXPORT}")
    if not data:
        raise WorkflowInvalid("this is an empty workflow: it has no nodes")
    return {_node_id(node_id): _checked_node(node_id, node) for node_id, node in data.items()}


def _node_id(node_id: Any) -> str:
    if isinstance(node_id, str):
        return node_id
    raise WorkflowInvalid(f"node id {node_id!r} must be a text, as all ids of ComfyUI are: {str(node_id)!r}")


def _checked_node(node_id: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise WorkflowInvalid(f"node '{node_id}' is {_kind(node)}, not an object with a class_type: {EXPORT}")
    class_type = node.get("class_type")
    if not isinstance(class_type, str) or not class_type:
        raise WorkflowInvalid(f"node '{node_id}' has no class_type, which says what it does: {EXPORT}")
    label = f'"{title_of(node)}" ({node_id})'
    if not isinstance(node.get("inputs"), Mapping):
        raise WorkflowInvalid(f"node {label} has no inputs object; a node without inputs needs an empty one")
    checked: dict[str, Any] = {}
    for key, part in node.items():
        # ComfyUI writes `is_changed: NaN` beside the inputs (execution.py, 0.3.64); no server reads it back.
        if key == "inputs" or _finite(part):
            checked[key] = _copied(part, f"{key} of node {label}")
    checked["inputs"].pop(FRESH, None)  # ours, from when it was sent
    return checked


def _check_link(graph: Mapping[str, Any], node_id: str, name: str) -> None:
    value = graph[node_id]["inputs"][name]
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return
    source, slot = value
    place = f"input '{name}' of node {label_of(graph, node_id)}"
    if source not in graph and is_link(value):
        raise WorkflowInvalid(f"{place} is linked to node '{source}', which the workflow does not have")
    if source in graph and (type(slot) is not int or slot < 0):
        other = label_of(graph, source)
        raise WorkflowInvalid(f"{place} is linked to slot {slot!r} of node {other}: slots are 0, 1, 2, ...")


def _copied(value: Any, place: str, depth: int = 0) -> Any:
    """Copy a JSON value; lists and objects are new, so nobody outside can change the graph."""
    if depth > MAX_DEPTH:
        raise WorkflowInvalid(_too_deep(place))
    match value:
        case None | str() | int():
            return value
        case float():
            if isfinite(value):
                return value
            raise WorkflowInvalid(f"{place} is {value}, which is no JSON number: give it a value")
        case Mapping():
            pairs = value.items()
            return {_key(key, place): _copied(part, f"{place}, {key}", depth + 1) for key, part in pairs}
        case list() | tuple():
            return [_copied(part, place, depth + 1) for part in value]
    raise WorkflowInvalid(f"{place} is {_kind(value)}, which cannot be written as JSON")


def _key(key: Any, place: str) -> str:
    if isinstance(key, str):
        return key
    raise WorkflowInvalid(f"{place} has the key {key!r}, which is not a text")


def _finite(value: Any) -> bool:
    """Whether no NaN or infinity hides in a value; what is too deep is left to the copy, which says so."""
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return True
        if not all(isfinite(part) for part in level if isinstance(part, float)):
            return False
        level = [part for parent in level for part in _children(parent)]
    return True


def _children(value: Any) -> Iterable[Any]:
    match value:
        case Mapping():
            return value.values()
        case list() | tuple():
            return value
    return ()


def _too_deep(place: str) -> str:
    parts = place.split(", ")  # of which the first tell where to look
    place = ", ".join([*parts[:4], "..."] if len(parts) > 4 else parts)
    return f"{place} is nested more than {MAX_DEPTH} levels deep, which no workflow is"


_KINDS: tuple[tuple[type | UnionType, str], ...] = (
    (NoneType, "null"),
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "a text"),
    (list | tuple, "a list"),
    (Mapping, "an object"),
)


def _kind(value: Any) -> str:
    names = (name for kind, name in _KINDS if isinstance(value, kind))
    return next(names, f"a Python {type(value).__name__}")


def _fitted(current: Any, value: Any, place: str) -> Any:
    """`value` as the successor of `current`; a whole number stays an int where there was one."""
    new = _copied(value, place)
    match current:
        case None:
            return new
        # ComfyUI's page wraps lists that are no links.
        case {"__value__": inner} if not isinstance(new, dict):
            return {"__value__": _fitted(inner, new, place)}
    if is_link(current):
        return new
    if _kind(current) != _kind(new):
        raise WorkflowInvalid(f"{place} takes {_kind(current)}, like {_brief(current)}; {_brief(new)} is not")
    return int(new) if isinstance(current, int) and isinstance(new, float) and new.is_integer() else new


def _read_as(current: Any, text: str) -> Any:
    """Read a text as the kind that `current` has; one that cannot be read so stays, and will not fit."""
    match current:
        case {"__value__": inner}:
            return _read_as(inner, text)
        case str():
            return text
        case bool():
            return _json_or_text(text.lower(), text)
    return _json_or_text(text, text)


def _json_or_text(text: str, otherwise: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return otherwise
    # A quoted text in place of a link was most likely meant to keep its quotes.
    return otherwise if isinstance(value, str) else value


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
