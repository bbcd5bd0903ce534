"""Every fault that a server would find in an API graph, found before it is sent. Pure.

The verdict follows the server's own validation (ComfyUI execution.py validate_prompt and validate_inputs,
0.3.64, 0.27.0 and 0.33.0): only what an output node needs is looked at, and nothing that a server would take
is called a fault. What /object_info cannot tell is `undecided`. Time is linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from .chains import cycles, lengths, reached, users
from .choices import Finding, Judge, of_other_makers
from .faults import Fault, FaultKind, Rule, Undecided, Verdict, hint, kept, title_of, told
from .served import Entry, ServedClass, fits
from .upstream import is_link

# The server walks upstream by recursion, and Python ends that at 1000 calls: a chain of 983 nodes passed,
# one of 984 did not (0.27.0; 984 and 985 in 0.3.64). Other start scripts take some calls too.
LONGEST_CHAIN = 900
# Classes that newer servers put others in place of (comfy_extras/nodes_replacements.py, 0.27.0).
_REPLACED: Mapping[str, str] = {
    "ResizeImagesByLongerEdge": "ImageScaleToMaxDimension",
    "ImageBatch": "BatchImagesNode",
    "ImageScaleBy": "ResizeImageMaskNode",
    "T2IAdapterLoader": "ControlNetLoader",
    "Load3DAnimation": "Load3D",
    "Preview3DAnimation": "Preview3D",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
    "ConditioningAverage ": "ConditioningAverage",
}
_MARKS = ("search_aliases", "has_intermediate_output")  # of a description by a newer server
_SHOWN = 6  # nodes of a cycle that a message names
_STRANGE = 50  # inputs that the class does not have, among which a mistyped name is looked for


def check(
    nodes: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    packs: Mapping[str, str] | None = None,
    uploads: Collection[str] = (),
    absent: Collection[str] = (),
    replacements: Mapping[str, Any] | None = None,
    targets: Collection[str] | None = None,
) -> Verdict:
    """Judge an API graph by a server's `/object_info`; nothing is raised for a bad graph, all is told.

    `packs` names the node pack of a node id, where the file tells it. `uploads` are names of files that are
    in the server's input folder, or will be when the graph is sent; `absent` are names of files that it
    certainly does not have. `replacements` is the answer of
    GET /node_replacements; without it those of ComfyUI itself are assumed. `targets` are the outputs asked
    for (`partial_execution_targets`), None for all.
    """
    return _Check(nodes, object_info, packs or {}, Judge(_modern(object_info), uploads, absent)).verdict(
        _REPLACED if replacements is None else replacements, targets
    )


def _modern(object_info: Mapping[str, Any]) -> bool:
    return any(
        isinstance(info, Mapping) and any(mark in info for mark in _MARKS) for info in object_info.values()
    )


class _Check:
    """One check: what is known of each node, filled in step by step."""

    def __init__(
        self, nodes: Mapping[str, Any], info: Mapping[str, Any], packs: Mapping[str, str], judge: Judge
    ) -> None:
        self.nodes, self.info, self.packs, self.judge = nodes, info, packs, judge
        self.classes: dict[str, ServedClass] = {}
        self.served: dict[str, ServedClass] = {}
        self.findings: dict[str, list[tuple[str | None, Finding]]] = {}
        self.refused: dict[str, None] = {}  # nodes that the server refuses whole graphs for
        self.replaced: dict[str, None] = {}  # kept in order

    def verdict(self, replacements: Mapping[str, Any], targets: Collection[str] | None) -> Verdict:
        for node_id in self.nodes:
            self._recognise(node_id, replacements)
        outputs = [node_id for node_id, served in self.served.items() if served.output_node]
        wanted = [node_id for node_id in outputs if targets is None or node_id in targets]
        wanted += [node_id for node_id in self.replaced if targets is None or node_id in targets]
        sources = self._walk([*wanted, *self.refused])
        depths = lengths(sources)
        looped = [node_id for node_id in sources if node_id not in depths]
        whole = [*_cycle_faults(self.nodes, cycles(sources, looped))]
        if not wanted and not self.refused:
            whole.append(_no_outputs(outputs, targets))
        self._deep(wanted, depths)
        return self._sorted(wanted, users(sources), looped, whole)

    def _recognise(self, node_id: str, replacements: Mapping[str, Any]) -> None:
        node = self.nodes[node_id]
        name = node.get("class_type") if isinstance(node, Mapping) else None
        if isinstance(name, str) and name in self.info:
            if name not in self.classes:
                self.classes[name] = ServedClass(name, self.info[name])
            self.served[node_id] = self.classes[name]
        elif isinstance(name, str) and self._successor(replacements.get(name)):
            message = f"the server has no class {told(name)}, but puts another class in its place"
            self.replaced[node_id] = None
            self._add(node_id, None, Finding(FaultKind.MISSING_NODE_TYPE, message, name, rule=Rule.REPLACED))
        else:
            self.refused[node_id] = None
            self._add(node_id, None, self._unknown(node_id, node, name))

    def _successor(self, listed: Any) -> bool:
        entry = listed[0] if isinstance(listed, list) and listed else listed
        name = entry.get("new_node_id") if isinstance(entry, Mapping) else entry
        return isinstance(name, str) and name in self.info and self.judge.modern

    def _unknown(self, node_id: str, node: Any, name: Any) -> Finding:
        if not isinstance(node, Mapping):
            return Finding(
                FaultKind.MALFORMED_NODE, "this is no node: an object with a class_type is expected"
            )
        if not isinstance(name, str):
            return Finding(FaultKind.MISSING_NODE_TYPE, "the node has no class_type, which says what it does")
        pack = self.packs.get(node_id)
        near = self.judge.near.find(name, self.info, "class")
        where = f"; it is of the pack {told(pack)}: install that on the server" if pack else ""
        return Finding(
            FaultKind.MISSING_NODE_TYPE,
            f"the server has no node class {told(name)}{where}{hint(near)}",
            name,
            near,
        )

    def _add(self, node_id: str, name: str | None, finding: Finding) -> None:
        self.findings.setdefault(node_id, []).append((name, finding))

    def _walk(self, start: list[str]) -> dict[str, list[str]]:
        """Check all that the outputs need; the nodes that each of them takes something from."""
        sources: dict[str, list[str]] = {}
        open_ = list(start)
        while open_:
            node_id = open_.pop()
            if node_id not in sources:
                sources[node_id] = list(dict.fromkeys(self._checked(node_id)))
                open_ += sources[node_id]
        return sources

    def _checked(self, node_id: str) -> Iterator[str]:
        """Check one node; the ids of the nodes that it takes something from."""
        served = self.served.get(node_id)
        if served is None:  # nothing is known of its inputs, but what it is linked to is checked all the same
            yield from self._linked(self.nodes[node_id])
            return
        inputs = self.nodes[node_id].get("inputs")
        if not isinstance(inputs, Mapping):
            message = "the node has no inputs object; a node without inputs needs an empty one"
            self._add(node_id, None, Finding(FaultKind.MALFORMED_NODE, message))
            return
        listed = served.inputs(inputs)
        self._judged_elsewhere(node_id, served, inputs)
        for name, entry in listed.items():
            if entry.unheard_of:
                message = f"{told(name)} is of a kind that is not known here ({entry.type})"
                self._add(node_id, name, Finding(None, message, rule=Rule.VERSION))
            elif name in inputs and isinstance(inputs[name], list | tuple):
                yield from self._link(node_id, served, name, entry, inputs[name])
            elif name in inputs:
                for finding in self.judge.findings(served, name, entry, inputs[name]):
                    self._add(node_id, name, finding)
            elif entry.required:
                self._add(node_id, name, self._missing(served, name, inputs, listed))

    def _linked(self, node: Any) -> Iterator[str]:
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        for value in inputs.values() if isinstance(inputs, Mapping) else ():
            if is_link(value) and value[0] in self.nodes:
                yield value[0]

    def _missing(
        self, served: ServedClass, name: str, inputs: Mapping[str, Any], listed: Mapping[str, Any]
    ) -> Finding:
        strange = list(islice((one for one in inputs if one not in listed), _STRANGE))
        near = self.judge.near.find(name, strange, f"{served.name} {strange}") if strange else ()
        given = f"; the graph gives {told(near[0])}, which the server does not know" if near else ""
        message = f"the required input {told(name)} is missing{given}"
        return Finding(FaultKind.REQUIRED_INPUT_MISSING, message, near=near)

    def _judged_elsewhere(self, node_id: str, served: ServedClass, inputs: Mapping[str, Any]) -> None:
        """What the class decides by code of its own."""
        if not served.own or served.judges:
            message = f"whether its values are right is the class's own matter ({served.name})"
            self._add(node_id, None, Finding(None, message, rule=Rule.OWN_CHECK))
        for name, given in served.odd_choices(inputs):
            what = f"{told(name)} has none of its choices" if given else f"the choice {told(name)} is missing"
            message = f"{what}: servers before 0.38 take that, and the node fails when it runs"
            kind = FaultKind.VALUE_NOT_IN_LIST if given else FaultKind.REQUIRED_INPUT_MISSING
            self._add(node_id, name, Finding(kind, message, inputs.get(name), rule=Rule.VERSION))
        name_of_file = served.file_input
        if isinstance(inputs.get(name_of_file or ""), list | tuple):
            message = f"the name of its file ({name_of_file}) comes over a link, and cannot be checked before"
            self._add(node_id, name_of_file, Finding(FaultKind.MISSING_FILE, message, rule=Rule.FILE))

    def _link(self, node_id: str, served: ServedClass, name: str, entry: Entry, link: Any) -> Iterator[str]:
        if len(link) != 2:
            message = f"{name} is a list of {len(link)}, and a link is a list of two: node id and output"
            self._add(node_id, name, Finding(FaultKind.BAD_LINKED_INPUT, message))
            return
        source, slot = link
        if not isinstance(source, str) or source not in self.nodes:
            self._add(node_id, name, self._no_source(name, source))
            return
        above = self.served.get(source)
        if above is None:  # its outputs are not known, and its class has been told
            yield source
            return
        if not isinstance(slot, int) or not -len(above.outputs) <= slot < len(above.outputs):
            self._add(node_id, name, self._no_slot(name, source, slot, above))
            return
        yield source
        received = above.outputs[slot]
        if not fits(received, entry.type):
            message = f"{name} takes {_kind(entry.type)}, and {self._label(source)} gives {_kind(received)}"
            found = Finding(FaultKind.RETURN_TYPE_MISMATCH, message)
            own = served.own and not served.judges_types and (above.own or not _like_any(received))
            self._add(node_id, name, found if own else of_other_makers(found))

    def _no_source(self, name: str, source: Any) -> Finding:
        message = f"{name} is linked to a node {told(source)}, which is not in the graph"
        if isinstance(source, int) and str(source) in self.nodes:
            message = f"{name} is linked to {source}, but ids of nodes are texts: write '{source}'"
        return Finding(FaultKind.LINK_TO_NOTHING, message, source)

    def _no_slot(self, name: str, source: str, slot: Any, above: ServedClass) -> Finding:
        count = len(above.outputs)
        message = f"{name} is linked to output {told(slot)} of {self._label(source)}, which has {count}"
        return Finding(FaultKind.NO_SUCH_OUTPUT, message, slot)

    def _deep(self, wanted: list[str], depths: Mapping[str, int]) -> None:
        for node_id in wanted:
            if depths.get(node_id, 0) > LONGEST_CHAIN:
                message = f"a chain of {depths[node_id]} nodes ends here; servers refuse one of about 1000"
                self._add(node_id, None, Finding(None, message, rule=Rule.DEPTH))

    def _label(self, node_id: str) -> str:
        return f'"{title_of(self.nodes[node_id], node_id)}" ({node_id})'

    def _sorted(
        self, wanted: list[str], below: Mapping[str, list[str]], looped: list[str], whole: list[Fault]
    ) -> Verdict:
        firm = {
            node_id for node_id, found in self.findings.items() if any(one.rule is None for _, one in found)
        }
        soft = {node_id for node_id, found in self.findings.items() if any(one.rule for _, one in found)}
        bad = reached((firm | set(looped)) & below.keys(), below)
        open_ = reached(soft & below.keys(), below)
        dropped = [one for one in wanted if self.refused or one in bad]
        left = [one for one in wanted if not self.refused and one not in bad]
        unsure = [one for one in left if self.replaced or one in open_]
        runs = [one for one in left if not self.replaced and one not in open_]
        return Verdict(
            (*self._faults(), *whole),
            tuple(self._undecided()),
            tuple(runs),
            tuple(dropped),
            tuple(unsure),
        )

    def _faults(self) -> Iterator[Fault]:
        for node_id, name, found in self._in_order():
            if found.rule is None and found.kind is not None:
                node = self.nodes[node_id]
                yield Fault(
                    found.kind,
                    f"{self._label(node_id)}: {found.message}",
                    node_id,
                    title_of(node, node_id),
                    _class_of(node),
                    name,
                    kept(found.value),
                    found.near,
                    found.folder,
                    self.packs.get(node_id),
                )

    def _undecided(self) -> Iterator[Undecided]:
        told_classes: set[str] = set()  # what is said of a class is said once
        for node_id, name, found in self._in_order():
            if found.rule is None:
                continue
            node_class = _class_of(self.nodes[node_id]) or ""
            if found.kind is None and found.rule is Rule.OWN_CHECK:
                if node_class in told_classes:
                    continue
                told_classes.add(node_class)
            yield Undecided(
                found.rule,
                f"{self._label(node_id)}: {found.message}",
                node_id,
                title_of(self.nodes[node_id], node_id),
                node_class,
                name,
                found.kind,
                kept(found.value),
                found.near,
            )

    def _in_order(self) -> Iterator[tuple[str, str | None, Finding]]:
        for node_id in self.nodes:
            for name, finding in self.findings.get(node_id, ()):
                yield node_id, name, finding


def _cycle_faults(nodes: Mapping[str, Any], found: Iterator[list[str]]) -> Iterator[Fault]:
    for cycle in found:
        first = cycle[0]
        shown = [f'"{title_of(nodes[node_id], node_id)}" ({node_id})' for node_id in cycle[:_SHOWN]]
        rest = [f"({len(cycle) - _SHOWN} more)"] if len(cycle) > _SHOWN else []
        message = f"these nodes wait for each other in a circle: {' <- '.join([*shown, *rest, shown[0]])}"
        title, node_class = title_of(nodes[first], first), _class_of(nodes[first])
        yield Fault(FaultKind.DEPENDENCY_CYCLE, message, first, title, node_class)


def _no_outputs(outputs: list[str], targets: Collection[str] | None) -> Fault:
    message = "no node of the graph is an output: add one that saves or previews something"
    if outputs and targets is not None:
        message = f"none of the nodes asked for is an output; the outputs are {', '.join(outputs[:_SHOWN])}"
    return Fault(FaultKind.PROMPT_NO_OUTPUTS, message)


def _class_of(node: Any) -> str | None:
    name = node.get("class_type") if isinstance(node, Mapping) else None
    return name if isinstance(name, str) else None


def _kind(kind: Any) -> str:
    return f"one of {len(kind)} choices" if isinstance(kind, list) else str(kind)


def _like_any(kind: Any) -> bool:
    """Packs have types that equal every other one, by whatever name; a plain name is what it says."""
    return isinstance(kind, str) and ("any" in kind.casefold() or "*" in kind)
