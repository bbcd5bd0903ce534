"""Every fault of an API graph against `/object_info`, as the server's own validation would find it.

The rules are those of ComfyUI's execution.py (validate_prompt, validate_inputs), 0.27.0 and 0.3.64: only
nodes in front of an output are looked at, values are converted before they are judged, inputs that a class
does not know are passed over. What a class may decide by itself (VALIDATE_INPUTS, which `/object_info` does
not show) is never a fault here: it is listed as undecided.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from .expected import Expected, expected
from .inventory import MODEL_SUFFIXES
from .schema import is_custom

MAX_NEAR = 20  # faults for which near matches are looked for: each costs a walk through a list
DEEP = 150  # nodes in a row; ComfyUI validates by recursion and gives up somewhere behind that

# Inputs that classes of ComfyUI itself judge on their own (0.3.64 to 0.28; found by asking the classes).
_OWN: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("LoadImage", "LoadImageMask", "LoadImageOutput", "WebcamCapture"), frozenset({"image"})),
    "LoadLatent": frozenset({"latent"}),
    "LoadAudio": frozenset({"audio"}),
    "LoadVideo": frozenset({"file"}),
    **dict.fromkeys(("SelectModelDevice", "SelectCLIPDevice", "SelectVAEDevice"), frozenset({"device"})),
    **dict.fromkeys(("Load3D", "Load3DAdvanced", "CustomCombo"), frozenset({"*"})),
    "ModelAttentionBackend": frozenset({"attention"}),
    "FluxProUltraImageNode": frozenset({"aspect_ratio"}),
    "KlingCameraControls": frozenset(
        {"horizontal_movement", "vertical_movement", "pan", "tilt", "roll", "zoom"}
    ),
    "TripoConversionNode": frozenset({"input_types"}),
}
_FILES = frozenset({"LoadImage", "LoadImageMask", "LoadImageOutput", "LoadLatent", "LoadAudio", "LoadVideo"})
_FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "vae_name": "vae",
    "unet_name": "diffusion_models",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "audio_encoder_name": "audio_encoders",
    "photomaker_model_name": "photomaker",
    "CLIPVisionLoader.clip_name": "clip_vision",
    "UpscaleModelLoader.model_name": "upscale_models",
    "LatentUpscaleModelLoader.model_name": "latent_upscale_models",
    "ModelPatchLoader.name": "model_patches",
    **dict.fromkeys(("clip_name", "clip_name1", "clip_name2", "clip_name3", "clip_name4"), "text_encoders"),
}


class Rule(StrEnum):
    """What is wrong, in the server's own terms where it has one."""

    UNKNOWN_CLASS = "missing_node_type"
    NO_OUTPUT = "prompt_no_outputs"
    MISSING = "required_input_missing"
    BAD_LINK = "bad_linked_input"
    WRONG_TYPE = "return_type_mismatch"
    NOT_CONVERTIBLE = "invalid_input_type"
    TOO_SMALL = "value_smaller_than_min"
    TOO_BIG = "value_bigger_than_max"
    NOT_LISTED = "value_not_in_list"
    CYCLE = "dependency_cycle"
    OWN_CHECK = "custom_validation_failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or one thing that only the server can decide.

    `message` is one sentence that names the node by its title. `missing` is `model` or `file` where a file is
    what is missing, and `value` is its name then.
    """

    node_id: str | None
    class_type: str | None
    input: str | None
    rule: Rule
    message: str
    missing: str | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a server would say. `outputs` are the output nodes that it would run, `refused` the others."""

    faults: tuple[Finding, ...]
    undecided: tuple[Finding, ...]
    outputs: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether a server would queue it; `partial` when without some outputs."""
        return bool(self.outputs)

    @property
    def partial(self) -> bool:
        """Whether a server would run a part only."""
        return bool(self.outputs and self.refused)


def check(
    nodes: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    packs: Mapping[str, str] | None = None,
    replaced: Collection[str] = (),
    files: Mapping[str, bool] | None = None,
    targets: Collection[str] | None = None,
) -> Verdict:
    """Look for all faults of a graph that `Workflow` has taken.

    `packs` names the pack of a node by its id, for messages; `replaced` are unknown classes that the server
    has a replacement for (GET /node_replacements); `files` tells of input files whether the server has them;
    `targets` are the output nodes that alone are to run. Takes time linear in the size of the graph.
    """
    return _Check(nodes, object_info, packs or {}, replaced, files or {}).verdict(targets)


@dataclass(frozen=True, slots=True)
class _At:
    """One input of one node that is looked at."""

    key: str
    name: str
    given: Expected


class _Check:
    def __init__(
        self,
        nodes: Mapping[str, Any],
        info: Mapping[str, Any],
        packs: Mapping[str, str],
        replaced: Collection[str],
        files: Mapping[str, bool],
    ) -> None:
        self._nodes, self._info, self._packs, self._replaced = nodes, info, packs, replaced
        self._files = files
        self._found: dict[str, list[Finding]] = {}
        self._undecided: dict[tuple[str | None, str | None, Rule], Finding] = {}
        self._links: dict[str, list[str]] = {}
        self._near = MAX_NEAR

    def verdict(self, targets: Collection[str] | None) -> Verdict:
        unknown = [key for key, node in self._nodes.items() if node["class_type"] not in self._info]
        faults = [fault for key in unknown for fault in self._unknown(key)]
        outputs = [key for key in self._nodes if self._is_output(key) and (targets is None or key in targets)]
        if not outputs and not unknown:
            faults.append(self._no_output(targets))
        seen = self._walked(outputs)
        for key, way in self._cycles(seen).items():
            self._found[key].append(way)
        bad = self._invalid(seen)
        faults += [fault for key in self._nodes if key in seen for fault in self._found[key]]
        good = () if faults and any(fault.rule is Rule.UNKNOWN_CLASS for fault in faults) else outputs
        runs = tuple(key for key in good if key not in bad)
        rest = tuple(key for key in outputs if key not in runs)
        return Verdict(tuple(faults), tuple(self._undecided.values()), runs, rest)

    # the whole graph

    def _is_output(self, key: str) -> bool:
        info = self._info.get(self._nodes[key]["class_type"])
        return isinstance(info, Mapping) and info.get("output_node") is True

    def _walked(self, outputs: Iterable[str]) -> dict[str, int]:
        """Every node in front of the outputs, each looked at once; the number is how far from them."""
        seen: dict[str, int] = dict.fromkeys(outputs, 0)
        waiting = list(seen)
        for key in waiting:  # it grows while it is walked
            links: list[str] = []
            self._links[key] = links
            self._found[key] = list(self._node(key, links))
            for source in links:
                if source not in seen and source in self._nodes:
                    seen[source] = seen[key] + 1
                    waiting.append(source)
                    if seen[source] == DEEP:
                        self._doubt(source, Rule.OWN_CHECK, _DEEP_TEXT)
        return seen

    def _invalid(self, seen: Mapping[str, int]) -> set[str]:
        """Nodes with faults, and all nodes behind them."""
        behind: dict[str, list[str]] = {}
        for key in seen:
            for source in self._links[key]:
                behind.setdefault(source, []).append(key)
        waiting = [key for key in seen if self._found[key]]
        waiting += [key for key in behind if key not in self._found]  # unknown classes
        bad = set(waiting)
        while waiting:
            for key in behind.get(waiting.pop(), ()):
                if key not in bad:
                    bad.add(key)
                    waiting.append(key)
        return bad

    def _cycles(self, seen: Mapping[str, int]) -> dict[str, Finding]:
        """Nodes that are in front of themselves: what is left when all ends are taken away."""
        links = {key: {source for source in self._links[key] if source in seen} for key in seen}
        for _ in range(2):  # what is in front of circles goes in one round, what is behind in the other
            links = _without_ends(_reversed(links))
        found: dict[str, Finding] = {}
        for key in links:
            if key not in found:
                way = _circle(key, links)
                text = " -> ".join(self._label(one) for one in way)
                for one in way:
                    found.setdefault(one, self._finding(one, Rule.CYCLE, f"it waits for itself: {text}"))
        return found

    def _no_output(self, targets: Collection[str] | None) -> Finding:
        text = (
            "no node of this workflow saves or shows anything, so nothing would run: add an output node, for "
            "example Save Image"
        )
        if targets is not None:
            text = "none of the chosen nodes is an output node: choose one that saves or shows something"
        return Finding(None, None, None, Rule.NO_OUTPUT, text)

    def _unknown(self, key: str) -> Iterator[Finding]:
        kind = self._nodes[key]["class_type"]
        if kind in self._replaced:
            self._doubt(key, Rule.UNKNOWN_CLASS, f"the server replaces its class {kind!r} by another")
            return
        pack = self._packs.get(key)
        hint = f"; it is of the pack {pack}" if pack and pack != "comfy-core" else ""
        near = self._nearest(kind, self._info)
        text = f"the server does not have its class {kind!r}{hint}{near}"
        yield replace(self._finding(key, Rule.UNKNOWN_CLASS, text), value=kind)

    # one node

    def _node(self, key: str, links: list[str]) -> Iterator[Finding]:
        held = self._nodes[key]["inputs"]
        info = self._info.get(self._nodes[key]["class_type"])
        for name, given in expected(info, held).items() if isinstance(info, Mapping) else ():
            at = _At(key, name, given)
            if name not in held:
                if given.required:
                    yield self._at(at, Rule.MISSING, f"its required input {name!r} is missing")
                continue
            link = isinstance(held[name], list)
            fault = self._link(at, held[name], links) if link else self._value(at, held[name])
            if fault is None:
                continue
            if self._own_rule(at, fault):
                self._undecided[key, name, fault.rule] = fault
            else:
                yield fault

    def _own_rule(self, at: _At, fault: Finding) -> bool:
        """Whether the server may see it otherwise, for a reason that `/object_info` does not show.

        A pack's class may judge values itself, and its types may fit all others; servers before 0.4 do not
        look at lists of the kind COMBO.
        """
        node = self._nodes[at.key]
        info = self._info[node["class_type"]]
        if fault.rule is Rule.WRONG_TYPE:
            source = self._info[self._nodes[node["inputs"][at.name][0]]["class_type"]]
            own = "input_types" in _OWN.get(node["class_type"], ())
            return is_custom(info) or is_custom(source) or own
        old = at.given.type == "COMBO" and "is_input_list" not in info
        if fault.rule is Rule.NOT_LISTED and old:
            return True
        return fault.rule in (Rule.TOO_SMALL, Rule.TOO_BIG, Rule.NOT_LISTED) and is_custom(info)

    def _link(self, at: _At, value: list[Any], links: list[str]) -> Finding | None:
        if len(value) != len(("node", "slot")):
            what = f"a list of {len(value)}, and a list is read as a link of two parts"
            return self._at(at, Rule.BAD_LINK, f"its input {at.name!r} is {what}")
        source, slot = value
        other = self._nodes.get(source) if isinstance(source, str) else None
        if other is None:
            return self._at(at, Rule.BAD_LINK, f"its input {at.name!r} is linked to no node: {_brief(value)}")
        links.append(source)
        info = self._info.get(other["class_type"])
        gives = info.get("output") if isinstance(info, Mapping) else None
        if not isinstance(gives, list):
            return None
        if not isinstance(slot, int) or not -len(gives) <= slot < len(gives):
            place = f"output {slot!r} of {self._label(source)}, which has {len(gives)}"
            return self._at(at, Rule.BAD_LINK, f"its input {at.name!r} is linked to {place}")
        if fits(gives[slot], at.given.type):
            return None
        wanted = f"its input {at.name!r} takes {_type_text(at.given.type)}"
        text = f"{wanted}, and {self._label(source)} gives {_type_text(gives[slot])} there"
        return self._at(at, Rule.WRONG_TYPE, text)

    def _value(self, at: _At, value: Any) -> Finding | None:
        if isinstance(value, Mapping) and "__value__" in value:
            value = value["__value__"]
        try:
            value = _converted(value, at.given.type)
        except (TypeError, ValueError, OverflowError):
            text = f"its input {at.name!r} must be {_KINDS[at.given.type]}, not {_brief(value)}"
            return self._at(at, Rule.NOT_CONVERTIBLE, text)
        own = _OWN.get(self._nodes[at.key]["class_type"], frozenset())
        if at.name in own or "*" in own:
            return self._own(at, value)
        return self._range(at, value) or self._choice(at, value)

    def _own(self, at: _At, value: Any) -> Finding | None:
        """What the class judges by itself: files, as far as it is known whether they are there."""
        kind = self._nodes[at.key]["class_type"]
        if kind not in _FILES or not isinstance(value, str):
            text = f"its class {kind} judges {at.name!r} by itself"
            self._undecided[at.key, at.name, Rule.OWN_CHECK] = self._at(at, Rule.OWN_CHECK, text)
            return None
        there = value in (at.given.choices or ()) or self._files.get(value)
        if there:
            return None
        text = f"its file {value!r} ({at.name}) is not on the server: upload it, or name another"
        if there is False:
            return self._at(at, Rule.OWN_CHECK, text, missing="file", value=value)
        text = f"its file {value!r} ({at.name}) is not among those that the server lists: is it uploaded?"
        doubt = self._at(at, Rule.OWN_CHECK, text, missing="file", value=value)
        self._undecided[at.key, at.name, Rule.OWN_CHECK] = doubt
        return None

    def _range(self, at: _At, value: Any) -> Finding | None:
        for option, rule, word in (("min", Rule.TOO_SMALL, "least"), ("max", Rule.TOO_BIG, "most")):
            bound = at.given.options.get(option)
            if bound is None:
                continue
            try:
                outside = value < bound if option == "min" else value > bound
            except TypeError:
                text = f"its input {at.name!r} must be a number, not {_brief(value)}"
                return self._at(at, Rule.NOT_CONVERTIBLE, text)
            if outside:
                text = f"its input {at.name!r} is {_brief(value)}, and must be at {word} {bound}"
                return self._at(at, rule, text)
        return None

    def _choice(self, at: _At, value: Any) -> Finding | None:
        choices = at.given.choices
        if choices is None:
            return None
        if isinstance(value, str) and self._files.get(value):
            return None
        many = at.given.options.get("multiselect") and isinstance(value, list)
        strange = [one for one in (value if many else [value]) if one not in choices]
        if not strange:
            return None
        value = strange[0]
        near = self._nearest(value, choices) if isinstance(value, str) else ""
        if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
            kind = self._nodes[at.key]["class_type"]
            folder = _FOLDERS.get(f"{kind}.{at.name}") or _FOLDERS.get(at.name)
            place = f" in its folder {folder}" if folder else ""
            text = f"the server has no model {value!r}{place} ({at.name}){near}"
            return self._at(at, Rule.NOT_LISTED, text, missing="model", value=value)
        some = near or f": it takes {_listed(choices)}"
        text = f"its input {at.name!r} has no choice {_brief(value)}{some}"
        return self._at(at, Rule.NOT_LISTED, text, value=value)

    # how it is told

    def _label(self, key: str) -> str:
        node = self._nodes[key]
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else None
        return f'"{title or node["class_type"]}" ({key})'

    def _at(
        self, at: _At, rule: Rule, text: str, *, missing: str | None = None, value: Any = None
    ) -> Finding:
        return replace(self._finding(at.key, rule, text), input=at.name, missing=missing, value=value)

    def _finding(self, key: str, rule: Rule, text: str) -> Finding:
        kind = self._nodes[key]["class_type"]
        return Finding(key, kind, None, rule, f"node {self._label(key)}: {text}")

    def _doubt(self, key: str, rule: Rule, text: str) -> None:
        self._undecided[key, None, rule] = self._finding(key, rule, text)

    def _nearest(self, value: str, known: Iterable[Any]) -> str:
        if self._near <= 0:
            return ""
        self._near -= 1
        names = [name for name in known if isinstance(name, str)]
        near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
        base = value.replace("\\", "/").rpartition("/")[2]
        near = list(dict.fromkeys([*(name for name in names if _base(name) == base), *near]))[:3]
        return f"; near: {', '.join(map(repr, near))}" if near else ""


_DEEP_TEXT = f"more than {DEEP} nodes stand in a row behind it, and the server, which recurses, may give up"
_KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def fits(given: Any, wanted: Any) -> bool:
    """Whether an output of type `given` may feed an input of type `wanted` (validate_node_input, 0.27.0)."""
    if given == wanted or {"*", "COMFY_MATCHTYPE_V3"} & {str(given), str(wanted)}:
        return True
    if isinstance(given, list) and wanted == "COMBO":
        return True
    if not isinstance(given, str) or not isinstance(wanted, str):
        return False
    given_types = {part.strip() for part in given.split(",")}
    wanted_types = {part.strip() for part in wanted.split(",")}
    return bool("*" in given_types | wanted_types or given_types & wanted_types)


def _converted(value: Any, kind: Any) -> Any:
    """The value as the server makes it before it judges. Raises TypeError, ValueError, OverflowError."""
    match kind:
        case "INT":
            return int(value)
        case "FLOAT":
            return float(value)
        case "STRING":
            return str(value)
        case "BOOLEAN":
            return bool(value)
    return value


def _reversed(links: Mapping[str, set[str]]) -> dict[str, set[str]]:
    back: dict[str, set[str]] = {key: set() for key in links}
    for key, sources in links.items():
        for source in sources:
            back[source].add(key)
    return back


def _without_ends(links: dict[str, set[str]]) -> dict[str, set[str]]:
    """Take away what has no links, again and again: circles and what leads into them stay."""
    back = _reversed(links)
    waiting = [key for key, sources in links.items() if not sources]
    for key in waiting:  # it grows while it is walked
        for one in back[key]:
            links[one].discard(key)
            if not links[one]:
                waiting.append(one)
        del links[key]
    return links


def _circle(start: str, links: Mapping[str, set[str]]) -> list[str]:
    """One way from a node of a circle back to where it was."""
    way: dict[str, None] = {}
    while start not in way:
        way[start] = None
        start = min(links[start])
    steps = list(way)
    return steps[steps.index(start) :]


def _type_text(kind: Any) -> str:
    return "a choice of a list" if isinstance(kind, list) else str(kind)


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(choices: list[Any]) -> str:
    shown = ", ".join(_brief(one) for one in choices[:8])
    return (shown or "nothing: its list is empty") + (
        f" and {len(choices) - 8} more" if len(choices) > 8 else ""
    )
