"""What POST /prompt checks before it takes a graph (ComfyUI execution.py, 0.27.0; recording 07)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .catalog import CATALOG
from .profiles import Profile

Graph = dict[str, Any]
Error = dict[str, Any]
_LISTED = 20  # options shown in a message; a longer list is only counted


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error` is None for a graph that is taken; `outputs` are the output nodes that will run."""

    outputs: tuple[str, ...]
    error: Error | None
    node_errors: dict[str, Any]


def _refusal(kind: str, message: str, details: str = "", extra: Mapping[str, Any] | None = None) -> Error:
    return {"type": kind, "message": message, "details": details, "extra_info": dict(extra or {})}


def no_prompt() -> Error:
    """The refusal of a body without a prompt."""
    return _refusal("no_prompt", "No prompt provided", "No prompt provided")


def bad_prompt_id() -> Error:
    """The refusal of an id that is no canonical UUID (>= 0.25)."""
    details = (
        "prompt_id must be a UUID string in canonical lowercase hyphenated form;"
        " omit it to let the server generate one"
    )
    return _refusal("invalid_prompt_id", "prompt_id must be a valid UUID", details)


def validate(
    graph: Graph,
    profile: Profile,
    targets: Sequence[str] | None = None,
    *,
    files: Callable[[str], bool],
    any_model: bool = False,
) -> Verdict:
    """Check a graph as a server does, and convert its numbers in place.

    `files` tells whether LoadImage would find a file; `any_model` lets every checkpoint name pass.
    """
    outputs = []
    for node_id, node in graph.items():
        unknown = _unknown_class(node_id, node, profile)
        if unknown is not None:
            return Verdict((), unknown, {})
        if CATALOG[node["class_type"]]["output_node"] and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict((), _refusal("prompt_no_outputs", "Prompt has no outputs"), {})
    return _Check(graph, profile, files, any_model).run(outputs)


def _unknown_class(node_id: str, node: Any, profile: Profile) -> Error | None:
    kind = node.get("class_type") if isinstance(node, dict) else None
    if kind in CATALOG:
        return None
    details = f"Node ID '#{node_id}'"
    if not profile.missing_node_type:
        message = f"Cannot execute because node {kind} does not exist."
        if kind is None:
            message = "Cannot execute because a node is missing the class_type property."
        return _refusal("invalid_prompt", message, details)
    title = node.get("_meta", {}).get("title") or kind if isinstance(node, dict) else None
    message = (
        f"Node 'ID #{node_id}' has no class_type. The workflow may be corrupted or a custom node is missing."
        if kind is None
        else f"Node '{title}' not found. The custom node may not be installed."
    )
    return _refusal(
        "missing_node_type", message, details, {"node_id": node_id, "class_type": kind, "node_title": title}
    )


@dataclass(slots=True)
class _Check:
    graph: Graph
    profile: Profile
    files: Callable[[str], bool]
    any_model: bool
    seen: dict[str, tuple[bool, list[Error]]] = field(default_factory=dict)

    def run(self, outputs: Iterable[str]) -> Verdict:
        good: list[str] = []
        bad: list[str] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            valid, reasons = self._output(output)
            if valid:
                good.append(output)
                continue
            bad += [f"{reason['message']}: {reason['details']}" for reason in reasons]
            self._collect(output, node_errors)
        if good:
            return Verdict(tuple(good), None, node_errors)
        error = _refusal(
            "prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(bad)
        )
        return Verdict((), error, node_errors)

    def _output(self, output: str) -> tuple[bool, list[Error]]:
        cycle = self._cycle(output, [])
        if cycle:
            self._blame_cycle(cycle)
            return False, []
        try:
            return self._node(output)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            self.seen[output] = (
                False,
                [_exception("exception_during_validation", "Exception when validating node", error)],
            )
            return self.seen[output]

    def _collect(self, output: str, node_errors: dict[str, Any]) -> None:
        for node_id, (valid, reasons) in self.seen.items():
            if valid or not reasons:
                continue
            kind = self.graph[node_id]["class_type"]
            entry = node_errors.setdefault(
                node_id, {"errors": reasons, "dependent_outputs": [], "class_type": kind}
            )
            entry["dependent_outputs"].append(output)

    def _cycle(self, node_id: str, path: list[str]) -> list[str]:
        if node_id in path:
            return path[path.index(node_id) :]
        if node_id in self.seen:
            return []
        inputs = self.graph.get(node_id, {}).get("inputs")
        links = [value[0] for value in inputs.values() if _is_link(value)] if isinstance(inputs, dict) else []
        found = (self._cycle(link, [*path, node_id]) for link in links)
        return next(filter(None, found), [])

    def _blame_cycle(self, cycle: Sequence[str]) -> None:
        shown = [f"{node_id} ({self.graph[node_id]['class_type']})" for node_id in [*cycle, cycle[0]]]
        for node_id in cycle:
            extra = {"node_id": node_id, "cycle_nodes": list(cycle)}
            reason = _refusal("dependency_cycle", "Dependency cycle detected", " -> ".join(shown), extra)
            self.seen[node_id] = False, [reason] if self.profile.dependency_cycle else []

    def _node(self, node_id: str) -> tuple[bool, list[Error]]:
        if node_id in self.seen:
            return self.seen[node_id]
        node = self.graph[node_id]
        given = node["inputs"]
        info = CATALOG[node["class_type"]]["input"]
        errors: list[Error] = []
        sound = True
        for group in ("required", "optional"):
            for name, config in info.get(group, {}).items():
                if name in given:
                    sound &= self._input(node, name, config, errors)
                elif group == "required":
                    errors.append(
                        _input_error("required_input_missing", "Required input is missing", name, name)
                    )
        self.seen[node_id] = sound and not errors, errors
        return self.seen[node_id]

    def _input(self, node: Graph, name: str, config: Sequence[Any], errors: list[Error]) -> bool:
        """Check one input; False when what it links to is not valid (that node has the errors)."""
        value = node["inputs"][name]
        if isinstance(value, list):
            return self._link(name, value, config, errors)
        error = self._value(node, name, config)
        if error is not None:
            errors.append(error)
        return True

    def _link(self, name: str, value: list[Any], config: Sequence[Any], errors: list[Error]) -> bool:
        shown = _config(config)
        if len(value) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            errors.append(
                _input_error(
                    "bad_linked_input", message, name, name, input_config=shown, received_value=value
                )
            )
            return True
        source, slot = value
        received = tuple(CATALOG[self.graph[source]["class_type"]]["output"])[slot]
        if not _fits(received, config[0]):
            details = f"{name}, received_type({received}) mismatch input_type({config[0]})"
            message = "Return type mismatch between linked nodes"
            errors.append(
                _input_error("return_type_mismatch", message, details, name,
                             input_config=shown, received_type=received, linked_node=value)
            )  # fmt: skip
            return True
        try:
            return self._node(source)[0]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            message = "Exception when validating inner node"
            self.seen[source] = False, [_exception("exception_during_inner_validation", message, error)]
            return False

    def _value(self, node: Graph, name: str, config: Sequence[Any]) -> Error | None:
        kind, options = config[0], config[1] if len(config) > 1 else {}
        value = node["inputs"][name]
        if isinstance(value, dict) and "__value__" in value:
            value = node["inputs"][name] = value["__value__"]
        if isinstance(kind, str) and kind in _CONVERTERS:
            try:
                value = node["inputs"][name] = _CONVERTERS[kind](value)
            except (ValueError, TypeError, OverflowError) as error:
                return _not_converted(name, value, config, error)
            return _out_of_bounds(name, value, config, options)
        if node["class_type"] == "LoadImage":
            return self._image(name, value)
        choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
        if choices is None or value in choices or (self.any_model and name == "ckpt_name"):
            return None
        return _not_listed(name, value, config, choices)

    def _image(self, name: str, value: Any) -> Error | None:
        if self.files(str(value)):
            return None
        details = f"{name} - Invalid image file: {value}"
        return _input_error("custom_validation_failed", "Custom validation failed for node", details, name)


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _fits(received: str, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return received == "COMBO"
    return "*" in (received, wanted) or received in wanted.split(",")


def _config(config: Sequence[Any]) -> list[Any]:
    return [config[0], config[1] if len(config) > 1 else {}]


def _not_converted(name: str, value: Any, config: Sequence[Any], error: Exception) -> Error:
    message = f"Failed to convert an input value to a {config[0]} value"
    extra = {"input_config": _config(config), "received_value": value, "exception_message": str(error)}
    return _input_error("invalid_input_type", message, f"{name}, {value}, {error}", name, **extra)


def _out_of_bounds(name: str, value: Any, config: Sequence[Any], options: Mapping[str, Any]) -> Error | None:
    extra = {"input_config": _config(config), "received_value": value}
    if "min" in options and value < options["min"]:
        message = f"Value {value} smaller than min of {options['min']}"
        return _input_error("value_smaller_than_min", message, name, name, **extra)
    if "max" in options and value > options["max"]:
        message = f"Value {value} bigger than max of {options['max']}"
        return _input_error("value_bigger_than_max", message, name, name, **extra)
    return None


def _not_listed(name: str, value: Any, config: Sequence[Any], choices: Sequence[Any]) -> Error:
    long = len(choices) > _LISTED
    shown = f"(list of length {len(choices)})" if long else str(list(choices))
    details = f"{name}: {value!r} not in {shown}"
    extra = {"input_config": None if long else _config(config), "received_value": value}
    return _input_error("value_not_in_list", "Value not in list", details, name, **extra)


def _input_error(kind: str, message: str, details: str, name: str, **extra: Any) -> Error:
    return _refusal(kind, message, details, {"input_name": name, **extra})


def _exception(kind: str, message: str, error: Exception) -> Error:
    where = ['  File "/comfyui/execution.py", line 921, in validate_inputs\n']
    return _refusal(kind, message, str(error), {"exception_type": type(error).__name__, "traceback": where})
