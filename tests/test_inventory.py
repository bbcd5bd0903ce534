"""What a server has, and what a workflow names that it has not."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import Graph, image
from recorded import scenario

from comfyflow import Workflow
from comfyflow.inventory import Inventory, Missing

FILES = ["a.safetensors", "b.ckpt"]
INFO: dict[str, Any] = {
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [FILES, {"tooltip": "which"}]}}},
    "LoraLoader": {
        "input": {
            "required": {"lora_name": ["COMBO", {"options": ["l.safetensors"]}], "model": ["MODEL"]},
            "optional": {"mode": [["fast", "slow"]]},
        }
    },
    "LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}},
    "Load3D": {"input": {"required": {"model_file": [["x.bin"], {"file_upload": True}]}}},
    "Dynamic": {
        "input": {"required": {"model": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {}}]}]}}
    },
    "Remote": {"input": {"required": {"model": ["COMBO", {"remote": {"route": "/models"}, "options": []}]}}},
}


def graph(class_type: str, **inputs: Any) -> Workflow:
    return Workflow.load({"1": {"class_type": class_type, "inputs": inputs}})


@pytest.mark.parametrize(
    ("workflow", "missing", "strange"),
    [
        (graph("CheckpointLoaderSimple", ckpt_name="a.safetensors"), [], 0),
        (
            graph("CheckpointLoaderSimple", ckpt_name="c.safetensors"),
            ["'c.safetensors' (CheckpointLoaderSimple.ckpt_name)"],
            0,
        ),
        (graph("LoraLoader", lora_name="L.SAFETENSORS"), ["'L.SAFETENSORS' (LoraLoader.lora_name)"], 0),
        (graph("LoraLoader", lora_name="l.safetensors", mode="odd"), [], 1),
        (graph("LoraLoader", lora_name=["1", 0], mode=7), [], 0),
        (graph("LoadImage", image="new.png"), [], 0),
        (graph("Load3D", model_file="new.bin"), [], 0),
        (graph("Dynamic", model="a.bin"), [], 0),
        (graph("Dynamic", model="a"), [], 0),
        (graph("Remote", model="any.safetensors"), [], 0),
        (graph("Nowhere", text="c.safetensors"), ["the node class 'Nowhere'"], 0),
    ],
)
def test_what_a_workflow_names_that_the_server_does_not_have(
    workflow: Workflow, missing: list[str], strange: int
) -> None:
    inventory = Inventory.of(INFO)
    assert [str(one) for one in inventory.missing(workflow)] == missing
    assert inventory.strange(workflow) == strange


def test_each_is_told_once_in_the_order_of_the_workflow() -> None:
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "c.ckpt"}}
    nodes: Graph = {"1": loader, "2": loader, "3": {"class_type": "Nowhere", "inputs": {}}}
    found = Inventory.of(INFO).missing(Workflow.load(nodes))
    assert found == (Missing("Nowhere"), Missing("CheckpointLoaderSimple", "ckpt_name", "c.ckpt"))


def test_its_model_files_are_told_by_the_input_that_takes_them() -> None:
    assert Inventory.of(INFO).models == {
        "CheckpointLoaderSimple.ckpt_name": ("a.safetensors", "b.ckpt"),
        "LoraLoader.lora_name": ("l.safetensors",),
    }


def test_what_is_no_description_of_nodes_is_a_node_without_lists() -> None:
    nonsense: dict[str, Any] = {
        "A": None,
        "B": {"input": []},
        "C": {"input": {"required": ["x"], "optional": None}},
        "D": {"input": {"required": {"x": None, "y": [], "z": [[1, None, "a.bin"]], "w": ["COMBO", 3]}}},
    }
    inventory = Inventory.of(nonsense)
    assert inventory.node_classes == {"A", "B", "C", "D"}
    assert inventory.models == {"D.z": ("a.bin",)}
    assert not inventory.missing(graph("D", x="b.bin", w="c.bin"))


def test_a_recorded_server_has_what_its_recordings_ran() -> None:
    inventory = Inventory.of(scenario("21").http[0]["response_json"])
    assert not inventory.missing(Workflow.load(image()))
    assert inventory.missing(graph("EmptyImages")) == (Missing("EmptyImages"),)


def test_servers_may_have_the_same() -> None:
    one, two = Inventory.of(INFO), Inventory.of(INFO)
    assert one.same(two)
    assert not one.same(Inventory.of({**INFO, "More": {}}))
    other = {"input": {"required": {"ckpt_name": [["a.safetensors"]]}}}
    assert not one.same(Inventory.of({**INFO, "CheckpointLoaderSimple": other}))
