"""Reading nodes one by one, and changing them in an edit; the workflow itself never changes."""

from __future__ import annotations

import pytest
from graphs import classic, node

from comfyflow.errors import WorkflowInvalid
from comfyflow.workflow import Workflow


def _workflow() -> Workflow:
    return Workflow.load(classic())


def test_a_node_is_read_by_id_title_or_class() -> None:
    workflow = _workflow()
    for name in ("4", "Load Checkpoint", "CheckpointLoaderSimple"):
        view = workflow[name]
        assert (view.id, view.class_type, view.title) == ("4", "CheckpointLoaderSimple", "Load Checkpoint")
        assert view.inputs == {"ckpt_name": "sd15.safetensors"}
    assert repr(workflow["3"]) == "NodeView('3', 'KSampler', 'KSampler')"


def test_inputs_are_a_mapping_and_links_are_told_apart() -> None:
    positive = _workflow()["Positive"]
    assert (list(positive.inputs), len(positive.inputs)) == (["text", "clip"], 2)
    assert dict(positive.inputs) == {"text": "a red fox", "clip": ["4", 1]}
    assert positive.links == {"clip": ("4", 1)}
    assert "nothing" not in positive.inputs
    with pytest.raises(KeyError):
        positive.inputs["nothing"]


def test_an_unknown_or_ambiguous_name_is_refused() -> None:
    with pytest.raises(WorkflowInvalid, match="there is no node"):
        _workflow()["Upscaler"]
    with pytest.raises(WorkflowInvalid, match="more than one"):
        _workflow().edit()["CLIPTextEncode"]


def test_an_assignment_to_a_workflow_says_how_it_is_done() -> None:
    workflow = _workflow()
    with pytest.raises(WorkflowInvalid, match=r"with_inputs\(seed=\.\.\.\) gives a new one"):
        workflow["KSampler"].inputs["seed"] = 7
    assert workflow == _workflow()


def test_what_is_read_is_a_copy() -> None:
    workflow = _workflow()
    workflow["KSampler"].inputs["model"][0] = "9"
    workflow.edit()["KSampler"].inputs["model"][0] = "9"
    assert workflow == _workflow()


def test_with_inputs_gives_a_new_workflow() -> None:
    workflow = _workflow()
    changed = workflow["KSampler"].with_inputs(seed=7, cfg=2.5)
    assert (changed["3"].inputs["seed"], changed["3"].inputs["cfg"]) == (7, 2.5)
    assert workflow == _workflow()


def test_inputs_of_any_name_can_be_given() -> None:
    workflow = Workflow.load({"1": node("A", **{"resize.width": 1, "self": 2})})
    changed = workflow["A"].with_inputs(**{"resize.width": 5, "self": 6})
    assert dict(changed["A"].inputs) == {"resize.width": 5, "self": 6}


def test_an_edit_takes_assignments_and_leaves_the_workflow_as_it_was() -> None:
    workflow = _workflow()
    edit = workflow.edit()
    inputs = edit["KSampler"].inputs
    inputs["seed"] = 7
    edit["Positive"].inputs["text"] = "a cat"
    inputs["steps"] = inputs["seed"] + 1
    assert edit["KSampler"].id == "3"
    assert (inputs["seed"], inputs["steps"], len(inputs), next(iter(inputs))) == (7, 8, 7, "seed")
    changed = edit.done()
    assert (changed["3"].inputs["seed"], changed["6"].inputs["text"]) == (7, "a cat")
    assert workflow == _workflow()
    assert edit.done().digest != workflow.digest


def test_an_edit_is_checked_at_once_and_keeps_what_was_right() -> None:
    edit = _workflow().edit()
    inputs = edit["KSampler"].inputs
    inputs["seed"] = 7
    with pytest.raises(WorkflowInvalid, match="takes a number"):
        inputs["steps"] = "many"
    with pytest.raises(WorkflowInvalid, match="has no input 'sed'"):
        inputs["sed"] = 5
    with pytest.raises(WorkflowInvalid, match="'seed' cannot be taken away"):
        del inputs["seed"]
    assert edit.done() == _workflow()["KSampler"].with_inputs(seed=7)


def test_an_edit_can_be_gone_on_with_after_it_was_taken() -> None:
    edit = _workflow().edit()
    edit["KSampler"].inputs["seed"] = 1
    first = edit.done()
    edit["KSampler"].inputs["seed"] = 2
    assert (first["3"].inputs["seed"], edit.done()["3"].inputs["seed"]) == (1, 2)
