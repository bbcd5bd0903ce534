"""The inputs that a server's own validation expects of one node, given what the node holds.

Dynamic inputs (Autogrow, DynamicCombo, DynamicSlot) are expanded as ComfyUI does it for each prompt.
Source: comfy_api/latest/_io.py, get_finalized_class_inputs and the dynamic types, 0.27.0. Servers without
such inputs (0.3.64) give no such types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .schema import AUTOGROW, DYNAMIC_COMBO

DYNAMIC_SLOT = "COMFY_DYNAMICSLOT_V3"
MAX_DEPTH = 20  # dynamic inputs inside of dynamic inputs
MAX_GROWN = 1000  # inputs that one Autogrow may have


@dataclass(frozen=True, slots=True)
class Expected:
    """One input: its type (a text, or a list of choices), its options, and whether it must be there."""

    type: Any
    options: Mapping[str, Any]
    required: bool

    @property
    def choices(self) -> list[Any] | None:
        """What a value must be one of, or None."""
        if isinstance(self.type, list):
            return self.type
        if self.type != "COMBO":
            return None
        listed = self.options.get("options")
        return listed if isinstance(listed, list) else []


def expected(info: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Expected]:
    """The inputs of a class, as `/object_info` describes it, for a node that holds the inputs `held`."""
    found: dict[str, Expected] = {}
    _expand(info.get("input"), held, "", found, 0)
    return found


def _expand(
    sections: Any, held: Mapping[str, Any], prefix: str, found: dict[str, Expected], depth: int
) -> None:
    for section in ("required", "optional"):
        entries = sections.get(section) if isinstance(sections, Mapping) else None
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            kind, options = _entry(entry)
            dynamic = _DYNAMIC.get(kind) if isinstance(kind, str) else None
            if dynamic is None:
                found[prefix + name] = Expected(kind, options, section == "required")
            elif depth < MAX_DEPTH:
                one = Expected(kind, options, section == "required")
                dynamic(one, held, prefix + name, found, depth + 1)


def _entry(entry: Any) -> tuple[Any, Mapping[str, Any]]:
    if not isinstance(entry, list | tuple) or not entry:
        return "*", {}
    options = entry[1] if len(entry) > 1 and isinstance(entry[1], Mapping) else {}
    return entry[0], options


def _autogrow(
    one: Expected, held: Mapping[str, Any], path: str, found: dict[str, Expected], depth: int
) -> None:
    template = one.options.get("template")
    template = template if isinstance(template, Mapping) else {}
    grown = _grown(template.get("input"))
    if grown is None:
        return
    entry, required = grown
    least = template.get("min")
    for place, name in enumerate(_names(template)):
        must = required and isinstance(least, int) and place < least
        _expand({"required" if must else "optional": {name: entry}}, held, f"{path}.", found, depth)


def _names(template: Mapping[str, Any]) -> Iterator[str]:
    names, prefix, most = template.get("names"), template.get("prefix"), template.get("max")
    if isinstance(names, list):
        yield from map(str, names[:MAX_GROWN])
    elif isinstance(most, int):
        yield from (f"{prefix}{place}" for place in range(min(most, MAX_GROWN)))


def _grown(sections: Any) -> tuple[Any, bool] | None:
    """The one input that grows, and whether it is a required one."""
    for section, entries in sections.items() if isinstance(sections, Mapping) else ():
        for entry in entries.values() if isinstance(entries, Mapping) else ():
            return entry, section == "required"
    return None


def _combo(one: Expected, held: Mapping[str, Any], path: str, found: dict[str, Expected], depth: int) -> None:
    """An unknown choice, or none, expects nothing at all: not even itself."""
    options = one.options.get("options")
    for option in options if isinstance(options, list) and path in held else ():
        if isinstance(option, Mapping) and option.get("key") == held[path]:
            _expand(option.get("inputs"), held, f"{path}.", found, depth)
            found[path] = one
            return


def _slot(one: Expected, held: Mapping[str, Any], path: str, found: dict[str, Expected], depth: int) -> None:
    if path in held:
        _expand(one.options.get("inputs"), held, f"{path}.", found, depth)
        found[path] = one


_DYNAMIC: Mapping[str, Callable[[Expected, Mapping[str, Any], str, dict[str, Expected], int], None]] = {
    AUTOGROW: _autogrow,
    DYNAMIC_COMBO: _combo,
    DYNAMIC_SLOT: _slot,
}
