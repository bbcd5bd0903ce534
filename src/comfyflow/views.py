"""The nodes of a workflow one by one: to read, and to change in an edit.

workflow["KSampler"].inputs["cfg"]                 # read: lists and objects are copies
workflow["KSampler"].with_inputs(cfg=7)            # a new workflow
edit = workflow.edit()
edit["KSampler"].inputs["seed"] = 7                # noted in the edit alone
changed = edit.done()                              # a new workflow; the old one is as it was
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import Any, Generic, Protocol, Self, TypeVar

from .errors import WorkflowInvalid
from .upstream import is_link


class Changeable(Protocol):
    """What a view needs of a workflow."""

    @property
    def nodes(self) -> Mapping[str, Any]:
        """The graph."""

    def title(self, node_id: str) -> str:
        """What a person calls a node."""

    def node_id(self, reference: str) -> str:
        """The id of the one node that has this id, title or class."""

    def set_at(self, node_id: str, name: str, value: Any) -> Self:
        """The same with another value."""


W = TypeVar("W", bound=Changeable)


class Inputs(Mapping[str, Any], Generic[W]):
    """The inputs of a node: values, and links `["node id", slot]`. To read only."""

    def __init__(self, workflow: W, node_id: str) -> None:
        self._workflow, self._node_id = workflow, node_id

    def __getitem__(self, name: str) -> Any:
        return deepcopy(self._workflow.nodes[self._node_id]["inputs"][name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._workflow.nodes[self._node_id]["inputs"])

    def __len__(self) -> int:
        return len(self._workflow.nodes[self._node_id]["inputs"])

    def __setitem__(self, name: str, value: Any) -> None:
        raise WorkflowInvalid(
            f"a workflow never changes: with_inputs({name}=...) gives a new one, and so does workflow.edit()"
        )


class NodeView(Generic[W]):
    """One node of a workflow."""

    def __init__(self, workflow: W, node_id: str) -> None:
        self._workflow, self.id = workflow, node_id

    @property
    def class_type(self) -> str:
        """What the node does."""
        return str(self._workflow.nodes[self.id]["class_type"])

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self._workflow.title(self.id)

    @property
    def inputs(self) -> Inputs[W]:
        """Its inputs, to read."""
        return Inputs(self._workflow, self.id)

    @property
    def links(self) -> dict[str, tuple[str, int]]:
        """Its inputs that are connected: to which node's id, and to which output of that."""
        return {name: (value[0], value[1]) for name, value in self.inputs.items() if is_link(value)}

    def with_inputs(self, /, **values: Any) -> W:
        """A new workflow, whose node has these values. Raises WorkflowInvalid for one that does not fit."""
        workflow = self._workflow
        for name, value in values.items():
            workflow = workflow.set_at(self.id, name, value)
        return workflow

    def __repr__(self) -> str:
        return f"NodeView({self.id!r}, {self.class_type!r}, {self.title!r})"


class EditedInputs(Inputs[W], MutableMapping[str, Any]):
    """The inputs of a node in an edit. An assignment is checked at once."""

    def __init__(self, edit: Edit[W], node_id: str) -> None:
        super().__init__(edit.done(), node_id)
        self._edit = edit

    def __getitem__(self, name: str) -> Any:
        return deepcopy(self._edit.done().nodes[self._node_id]["inputs"][name])

    def __setitem__(self, name: str, value: Any) -> None:
        self._edit.take(self._edit.done().set_at(self._node_id, name, value))

    def __delitem__(self, name: str) -> None:
        raise WorkflowInvalid(f"input {name!r} cannot be taken away: a node keeps its inputs")


class EditedNode(Generic[W]):
    """One node of an edit."""

    def __init__(self, edit: Edit[W], node_id: str) -> None:
        self._edit, self.id = edit, node_id

    @property
    def inputs(self) -> EditedInputs[W]:
        """Its inputs, to read and to assign to."""
        return EditedInputs(self._edit, self.id)


class Edit(Generic[W]):
    """Changes to a workflow, one after the other; the workflow itself stays as it was."""

    def __init__(self, workflow: W) -> None:
        self._workflow = workflow

    def __getitem__(self, node: str) -> EditedNode[W]:
        """A node by its id, title or class. Raises WorkflowInvalid for none, or more than one."""
        return EditedNode(self, self._workflow.node_id(node))

    def take(self, workflow: W) -> None:
        """Go on with this workflow."""
        self._workflow = workflow

    def done(self) -> W:
        """The workflow with all changes up to now."""
        return self._workflow
