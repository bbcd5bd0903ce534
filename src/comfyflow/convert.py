"""UI format -> API format, as the official page's own export does it.

Sources: executionUtil.ts (graphToPrompt), saveImageExtraOutput.ts and dynamicPrompts.ts of the official
frontend, 1.45.20; measured on the page's own conversions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import WorkflowInvalid
from .groups import opened
from .resolve import Links, Place, Value
from .texts import Replacements, pick
from .ui import Node, read
from .virtual import refused
from .widgets import Classes

_TOLD = 8  # nodes that one message names
# Their file names may hold %date:yyyy-MM-dd% and %Node.widget% (saveImageExtraOutput.ts).
_SAVERS = frozenset(
    {"SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveAnimatedWEBP", "SaveAnimatedPNG"}
    | {"SaveVideo", "SaveWEBM", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"}
    | {"SaveGLB", "SaveLatent", "CLIPSave", "VAESave", "ModelSave", "LoraSave"}
)


@dataclass(frozen=True, slots=True)
class Converted:
    """The API graph, what the reader should know about how it was made, and packs by node id."""

    graph: dict[str, Any]
    warnings: tuple[str, ...]
    packs: Mapping[str, str]


def convert(
    ui: Mapping[str, Any], object_info: Mapping[str, Any], *, now: datetime | None = None
) -> Converted:
    """Make the API graph of a saved workflow, with the classes that `object_info` tells.

    `now` is the local time for `%date:...%` in file names; without it they stay as they are.
    Raises WorkflowInvalid, naming node and title, for what cannot be converted; nothing is guessed in
    silence: a node whose class is unknown is taken by its own list of inputs, with a warning.
    """
    try:
        return _Conversion(ui, object_info, now).converted()
    except RecursionError as error:
        raise WorkflowInvalid(
            "a value of the workflow, or a node class of /object_info, is nested too deeply to be read"
        ) from error


class _Conversion:
    def __init__(self, ui: Mapping[str, Any], object_info: Mapping[str, Any], now: datetime | None) -> None:
        self._classes = Classes(object_info)
        self._saved = opened(read(ui), self._classes)
        self._links = Links(self._saved, self._classes)
        self._replacements = Replacements(self._saved, self._classes, now)
        self._warnings: dict[str, None] = {}

    def converted(self) -> Converted:
        links = self._links
        ready = [place for place in links.places.values() if links.runs(place)]
        self._check(ready)
        graph = {place.id: self._api(place) for place in ready}
        if not graph:
            raise WorkflowInvalid("no node of this workflow runs: all are muted, bypassed or notes")
        named = {place.id: place.node.pack for place in links.places.values() if place.id in graph}
        packs = {node_id: pack for node_id, pack in named.items() if pack}
        return Converted(graph, tuple(self._warnings), packs)

    def _check(self, places: Iterable[Place]) -> None:
        """All nodes that cannot be converted are told at once."""
        found = [fault for place in places if (fault := self._fault(place.node)) is not None]
        faults = list(dict.fromkeys(found))
        if len(faults) > 1:
            more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
            told = "; ".join(faults[:_TOLD])
            raise WorkflowInvalid(f"{len(faults)} nodes cannot be converted: {told}{more}")
        for fault in faults:
            raise WorkflowInvalid(fault)

    def _fault(self, node: Node) -> str | None:
        reason = refused(node)
        if reason:
            return f"node {node.label}: {reason}"
        try:
            self._classes.filled(node)
        except WorkflowInvalid as error:
            return error.reason
        return None

    def _api(self, place: Place) -> dict[str, Any]:
        node = place.node
        filled = self._classes.filled(node)
        self._warnings |= dict.fromkeys(filled.warnings)
        inputs = {name: self._sent(node, name, value) for name, value in filled.values.items()}
        for index, slot in enumerate(self._classes.slots(node)):
            source = self._links.source(place, index)
            if isinstance(source, Value):
                inputs[slot.name] = _boxed(source.value)
            elif source is not None:
                inputs[slot.name] = [source[0], source[1]]
        spec = self._classes.spec(node.type)
        title = node.title or (spec.display_name if spec else node.type)
        return {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}

    def _sent(self, node: Node, name: str, value: Any) -> Any:
        """A value as the page sends it: a text may hold choices, a file name what is to be replaced."""
        spec = self._classes.spec(node.type)
        given = spec.input(name) if spec and isinstance(value, str) else None
        if given is not None and given.options.get("dynamicPrompts"):
            value, chosen = pick(value, node.id)
            if chosen:
                self._warnings[
                    f"node {node.label}: one of each {{a|b}} in {name!r} was picked, always the same one; "
                    f"set the text yourself to vary it"
                ] = None
        if name == "filename_prefix" and node.type in _SAVERS and isinstance(value, str):
            return self._replacements.applied(value)
        return _boxed(value)


def _boxed(value: Any) -> Any:
    """A list is taken for a link, so the page wraps it, and the server unwraps it (executionUtil.ts)."""
    return {"__value__": value} if isinstance(value, list) else value
