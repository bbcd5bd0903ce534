"""A node class as the server validates it: which inputs count for a node, and which rules hold. Pure.

Sources: ComfyUI execution.py validate_inputs, comfy_execution/validation.py and graph.py,
comfy_api/latest/_io.py get_finalized_class_inputs; 0.3.64, 0.27.0 and 0.33.0 read and introspected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .schema import AUTOGROW, DYNAMIC_COMBO

DYNAMIC_SLOT = "COMFY_DYNAMICSLOT_V3"
COMBO = "COMBO"
_ANY = frozenset({"*", "COMFY_MATCHTYPE_V3"})
_DYNAMIC = frozenset({AUTOGROW, DYNAMIC_COMBO, DYNAMIC_SLOT})
_HEARD_OF = _ANY | {AUTOGROW, DYNAMIC_COMBO}  # no class has a dynamic slot yet
_NEWER = re.compile(r"COMFY_\w+_V\d+")
_OWN_MODULES = ("nodes", "comfy_extras", "comfy_api_nodes")
_DEEPEST = 50  # levels of inputs in inputs; real classes have two

# Inputs that a class of ComfyUI takes in its VALIDATE_INPUTS: the server checks neither range nor choices of
# these. /object_info does not tell it; introspected in 0.3.64, 0.27.0 and 0.33.0.
_TAKEN: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("LoadImage", "LoadImageMask", "LoadImageOutput", "WebcamCapture"), frozenset({"image"})),
    "LoadLatent": frozenset({"latent"}),
    "LoadAudio": frozenset({"audio"}),
    "LoadVideo": frozenset({"file"}),
    **dict.fromkeys(("SelectModelDevice", "SelectCLIPDevice", "SelectVAEDevice"), frozenset({"device"})),
    "ModelAttentionBackend": frozenset({"attention"}),
    "FluxProUltraImageNode": frozenset({"aspect_ratio"}),
    "KlingCameraControls": frozenset(
        {"horizontal_movement", "vertical_movement", "pan", "tilt", "roll", "zoom"}
    ),
    "ComfySoftSwitchNode": frozenset({"switch", "on_false", "on_true"}),
}
_TAKE_ALL = frozenset({"Load3D", "Load3DAdvanced", "CustomCombo"})  # **kwargs
_TAKE_TYPES = frozenset({"TripoConversionNode"})  # `input_types`: links are its own matter
_ALWAYS_RIGHT = frozenset(
    {"SelectModelDevice", "SelectCLIPDevice", "SelectVAEDevice", "ModelAttentionBackend", "CustomCombo"}
)
# The input of a class that is the name of a file, and the check is that it exists (any folder, any type).
FILE_INPUTS: Mapping[str, str] = {
    **dict.fromkeys(("LoadImage", "LoadImageMask", "LoadImageOutput", "WebcamCapture"), "image"),
    "LoadLatent": "latent",
    "LoadAudio": "audio",
    "LoadVideo": "file",
    "Load3D": "model_file",
    "Load3DAdvanced": "model_file",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One input as the class describes it: `type` is a text, or the list of choices itself (old layout)."""

    required: bool
    type: Any
    options: Mapping[str, Any]

    @property
    def unheard_of(self) -> bool:
        """Whether it is a dynamic input of a kind that is newer than this module."""
        kind = self.type
        return isinstance(kind, str) and bool(_NEWER.fullmatch(kind)) and kind not in _HEARD_OF

    @property
    def is_choice(self) -> bool:
        """Whether its value is one of a list."""
        return isinstance(self.type, list) or self.type == COMBO

    @property
    def choices(self) -> Any:
        """The choices as the server has them; a COMBO without any counts as an empty list."""
        return self.type if isinstance(self.type, list) else self.options.get("options", [])


class ServedClass:
    """One class of `/object_info`, read once for all its nodes; what is malformed counts as empty."""

    def __init__(self, name: str, info: Any) -> None:
        self.name = name
        self.info: Mapping[str, Any] = info if isinstance(info, Mapping) else {}
        self._members: dict[int, tuple[Any, frozenset[Any]]] = {}

    @cached_property
    def output_node(self) -> bool:
        """Whether the server runs it for its own sake."""
        return self.info.get("output_node") is True

    @cached_property
    def outputs(self) -> Sequence[Any]:
        """The types of its outputs: texts, or lists of choices."""
        outputs = self.info.get("output")
        return outputs if isinstance(outputs, list | tuple | str) else ()

    @cached_property
    def own(self) -> bool:
        """Whether it is ComfyUI's own; what others made may check inputs in a way that nobody can see."""
        module = self.info.get("python_module", "nodes")
        return isinstance(module, str) and module.partition(".")[0] in _OWN_MODULES

    @property
    def file_input(self) -> str | None:
        """The input that is right when it names a file that exists."""
        return FILE_INPUTS.get(self.name) if self.own else None

    @property
    def judges_types(self) -> bool:
        """Whether it looks at the types of its links itself."""
        return self.own and self.name in _TAKE_TYPES

    @property
    def judges(self) -> bool:
        """Whether it has a check of its own that is more than the existence of a file."""
        known = self.name in _TAKEN or self.name in _TAKE_ALL or self.name in _TAKE_TYPES
        return self.own and known and self.name not in _ALWAYS_RIGHT and self.name not in FILE_INPUTS

    def takes(self, name: str) -> bool:
        """Whether range and choices of the input are left to the class."""
        return self.own and (self.name in _TAKE_ALL or name in _TAKEN.get(self.name, ()))

    @cached_property
    def _fixed(self) -> dict[str, Entry]:
        return {} if self.dynamic else dict(_expanded(self._sections, {}))

    @cached_property
    def dynamic(self) -> bool:
        """Whether a node's own values decide which inputs it has."""
        return any(
            isinstance(kind := _first(entry), str) and kind in _DYNAMIC
            for section in self._sections.values()
            for entry in section.values()
        )

    @cached_property
    def _combos(self) -> list[tuple[str, Entry]]:
        return [
            (name, _entry(raw, section == "required"))
            for section, entries in self._sections.items()
            for name, raw in entries.items()
            if _first(raw) == DYNAMIC_COMBO
        ]

    @cached_property
    def _sections(self) -> dict[str, Mapping[str, Any]]:
        return _sections(self.info.get("input"))

    def inputs(self, given: Mapping[str, Any]) -> Mapping[str, Entry]:
        """The inputs that the server looks at in a node with these values; it ignores all others."""
        return dict(_expanded(self._sections, given)) if self.dynamic else self._fixed

    def odd_choices(self, given: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        """Dynamic combos of which the server knows no inputs: their names, and whether a value is given.

        Up to 0.33 such a node passes; 0.38 refuses it (`invalid_dynamic_input`).
        """
        for name, entry in self._combos:
            keys = [option.get("key") for option in _options(entry.options)]
            if (name in given or entry.required) and given.get(name) not in keys:
                yield name, name in given

    def listed(self, entry: Entry, value: Any) -> bool:
        """Whether the value is one of the choices, by Python's own equality as on the server."""
        choices = entry.choices
        if not isinstance(value, str | int | float):
            return value in choices
        if id(choices) not in self._members:
            hashable = frozenset(one for one in choices if isinstance(one, str | int | float))
            self._members[id(choices)] = (choices, hashable)
        return value in self._members[id(choices)][1]


def fits(received: Any, wanted: Any) -> bool:
    """Whether an output of type `received` may go into an input of type `wanted`; types are "A,B", "*", or
    a list of choices."""
    if received == wanted or (isinstance(received, list) and wanted == COMBO):
        return True
    ends = [kind for kind in (received, wanted) if isinstance(kind, str)]
    names = [frozenset(part.strip() for part in kind.split(",")) for kind in ends]
    if any(kind in _ANY for kind in ends) or any("*" in parts for parts in names):
        return True
    return len(names) == 2 and not names[0].isdisjoint(names[1])


def _expanded(
    sections: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    """Required inputs first; one of the same name counts before an optional one, as on the server."""
    found: dict[bool, dict[str, Entry]] = {False: {}, True: {}}
    open_: list[tuple[str, Mapping[str, Mapping[str, Any]]]] = [("", sections)]
    while open_:
        prefix, parts = open_.pop()
        for full, entry in _named(prefix, parts):
            if not (isinstance(entry.type, str) and entry.type in _DYNAMIC):
                found[entry.required][full] = entry
                continue
            added, nested = _grown(full, entry, given)
            for key, one in added.items():
                found[one.required][key] = one
            open_ += nested if full.count(".") < _DEEPEST else ()
    yield from found[True].items()
    yield from ((name, entry) for name, entry in found[False].items() if name not in found[True])


def _named(prefix: str, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Entry]]:
    for section, entries in parts.items():
        for name, raw in entries.items():
            yield prefix + name, _entry(raw, section == "required")


_Nested = list[tuple[str, Mapping[str, Mapping[str, Any]]]]


def _grown(full: str, entry: Entry, given: Mapping[str, Any]) -> tuple[dict[str, Entry], _Nested]:
    """The inputs that a dynamic input brings by itself, and those that it opens, by the given values."""
    if entry.type == AUTOGROW:
        return _autogrown(full, entry.options.get("template"), given)
    if full not in given:
        return {}, []
    if entry.type == DYNAMIC_SLOT:
        return {full: entry}, [(f"{full}.", _sections(entry.options.get("inputs")))]
    for option in _options(entry.options):
        if option.get("key") == given[full]:
            return {full: entry}, [(f"{full}.", _sections(option.get("inputs")))]
    return {}, []


def _autogrown(full: str, template: Any, given: Mapping[str, Any]) -> tuple[dict[str, Entry], _Nested]:
    pattern = template if isinstance(template, Mapping) else {}
    base = next(
        (
            (part, raw)
            for part, entries in _sections(pattern.get("input")).items()
            for raw in entries.values()
        ),
        None,
    )
    if base is None:
        return {}, []
    required, least = base[0] == "required", pattern.get("min", 0)
    found: dict[str, Entry] = {}
    nested: _Nested = []
    for place, name in enumerate(_grown_names(pattern)):
        entry = _entry(base[1], required and place < least)
        if isinstance(entry.type, str) and entry.type in _DYNAMIC and f"{full}.{name}" in given:
            nested.append((f"{full}.", {"required" if entry.required else "optional": {name: base[1]}}))
        found[f"{full}.{name}"] = entry
    return found, nested


def _grown_names(pattern: Mapping[str, Any]) -> Sequence[str]:
    names = pattern.get("names")
    if isinstance(names, list):
        return names
    most = pattern.get("max", 0)
    return [f"{pattern.get('prefix', '')}{place}" for place in range(min(most, 100))]


def _sections(raw: Any) -> dict[str, Mapping[str, Any]]:
    parts = raw if isinstance(raw, Mapping) else {}
    return {name: part for name in ("optional", "required") if isinstance(part := parts.get(name), Mapping)}


def _options(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = options.get("options")
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _first(raw: Any) -> Any:
    return raw[0] if isinstance(raw, list | tuple | str) and raw else None


def _entry(raw: Any, required: bool) -> Entry:
    options = raw[1] if isinstance(raw, list | tuple) and len(raw) > 1 else {}
    return Entry(required, _first(raw), options if isinstance(options, Mapping) else {})
