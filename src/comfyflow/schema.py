"""What `/object_info` says of a node class: which inputs are widgets, in which order, with which defaults.

The order is the page's: required inputs, then optional ones, each expanded in place where the choice of one
brings further inputs (dynamic combos). Sources: ComfyUI nodes.py and comfy_api/latest/_io.py, 0.27.0;
the official frontend 1.45.20 (litegraphService, dynamicWidgets, widgets).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
SEED_NAMES = ("seed", "noise_seed")
# Types for which the page has a widget (scripts/widgets.ts, 1.45.20); lists of choices are COMBO.
WIDGET_TYPES = frozenset(
    {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "MARKDOWN", "COLOR", "COLORS", "BOUNDING_BOX"}
    | {"BOUNDING_BOXES", "CURVE", "IMAGECOMPARE", "LOAD_3D", "WEBCAM", "AUDIO_RECORD", "TEXTAREA"}
    | {"CHART", "GALLERIA", "PAINTER", "RANGE", "HISTOGRAM", DYNAMIC_COMBO}
)
# What the page starts with where the class names no default.
_EMPTY: Mapping[str, Any] = {
    "INT": 0,
    "FLOAT": 0,
    "BOOLEAN": False,
    "STRING": "",
    "TEXTAREA": "",
    "MARKDOWN": "",
    "LOAD_3D": "",
    "IMAGECOMPARE": ["", ""],
    "AUDIO_UI": "",
    "PREVIEW_3D": "",
}
# Widgets that the page gives to classes of its own accord, behind the required ones: they are sent, and the
# server ignores them (extensions Comfy.AudioWidget, Comfy.Preview3D and Comfy.SaveGLB, 1.45.20).
PAGE_TYPES = frozenset({"AUDIO_UI", "PREVIEW_3D", "LOAD_3D"})
_PAGE_INPUTS = {
    **dict.fromkeys(
        ("LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"),
        ("audioUI", "AUDIO_UI"),
    ),
    **dict.fromkeys(("Preview3D", "SaveGLB"), ("image", "PREVIEW_3D")),
}
_UPLOADS = ("image_upload", "video_upload", "animated_image_upload", "file_upload", "audio_upload")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a class: its name as it is sent, its type, and the options that came with it."""

    name: str
    type: str
    options: Mapping[str, Any]
    required: bool
    choices: tuple[Any, ...] | None = None

    @property
    def is_widget(self) -> bool:
        """Whether a person types or picks its value on the node (it may be linked all the same)."""
        if self.options.get("forceInput"):
            return False
        kinds = (self.type, str(self.options.get("widgetType")))
        return any(kind in WIDGET_TYPES or kind in PAGE_TYPES for kind in kinds)

    @property
    def default(self) -> Any:
        """The value on a fresh node: the default, else the first choice, else the type's empty value."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices is not None:
            return self.choices[0] if self.choices else None
        return _EMPTY.get(self.type)

    @property
    def upload(self) -> str | None:
        """`image`, `video`, `audio` or `file` when a person may upload a file for it, else None."""
        for option in _UPLOADS:
            if self.options.get(option):
                return "image" if option.startswith("animated") else option.partition("_")[0]
        return None

    @property
    def controls(self) -> int:
        """How many widgets that are never sent follow it: control_after_generate, and its filter on lists."""
        asked = self.options.get("control_after_generate")
        if self.choices is not None:
            return 2 if asked else 0
        return int(bool(asked) or (self.type == "INT" and self.name in SEED_NAMES and asked is None))

    def chosen(self, key: Any) -> tuple[InputSpec, ...]:
        """The inputs that choosing `key` of a dynamic combo brings, named `<name>.<input>`."""
        for option in _list(self.options.get("options")) if self.type == DYNAMIC_COMBO else ():
            if _is_part(option) and option.get("key") == key:
                return tuple(_listed(option.get("inputs"), f"{self.name}."))
        return ()


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One class of `/object_info`: its inputs in the page's order, and the types of its outputs."""

    class_type: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    output_node: bool
    display_name: str

    def input(self, name: str) -> InputSpec | None:
        """The input `name`, not looking into dynamic ones; None when the class has none."""
        return next((spec for spec in self.inputs if spec.name == name), None)


def node_spec(class_type: str, info: Mapping[str, Any]) -> NodeSpec:
    """Read one class of `/object_info`; parts that are missing or malformed count as empty."""
    outputs = info.get("output")
    return NodeSpec(
        class_type,
        tuple(_with_page(class_type, _listed(info.get("input"), "", info.get("input_order")))),
        tuple("COMBO" if isinstance(kind, list) else str(kind) for kind in _list(outputs)),
        bool(info.get("output_node")),
        str(info.get("display_name") or class_type),
    )


def _with_page(class_type: str, inputs: Iterable[InputSpec]) -> Iterator[InputSpec]:
    listed = list(inputs)
    yield from (spec for spec in listed if spec.required)
    if class_type in _PAGE_INPUTS:
        name, kind = _PAGE_INPUTS[class_type]
        yield InputSpec(name, kind, {}, required=False)
    yield from (spec for spec in listed if not spec.required)


def _listed(sections: Any, prefix: str, order: Any = None) -> Iterator[InputSpec]:
    for section in ("required", "optional"):
        entries, wanted = _part(sections, section), _list(_part(order, section))
        if not isinstance(entries, Mapping):
            continue
        first = [name for name in wanted if isinstance(name, str) and name in entries]
        for name in dict.fromkeys([*first, *entries]):
            yield _input(prefix + name, entries[name], section == "required")


def _input(name: str, entry: Any, required: bool) -> InputSpec:
    kind = entry[0] if isinstance(entry, list | tuple) and entry else entry
    options = entry[1] if isinstance(entry, list | tuple) and len(entry) > 1 else {}
    options = options if isinstance(options, Mapping) else {}
    if isinstance(kind, list):
        return InputSpec(name, "COMBO", options, required, tuple(kind))
    if kind == DYNAMIC_COMBO:
        keys = tuple(option.get("key") for option in _list(options.get("options")) if _is_part(option))
        return InputSpec(name, kind, options, required, keys)
    choices = tuple(_list(options.get("options"))) if kind == "COMBO" else None
    return InputSpec(name, str(kind), options, required, choices)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping)


def _part(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None
