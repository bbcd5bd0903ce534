"""What is found upstream: the positive prompt, and where seeds are written."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import classic, node

from comfyflow.upstream import is_link, positive_texts, seed_places


@pytest.mark.parametrize(
    ("value", "linked"),
    [(["4", 0], True), (["4", True], False), (["4"], False), ("4", False), ([4, 0], False)],
)
def test_a_link_is_an_id_and_a_slot(value: Any, linked: bool) -> None:
    assert is_link(value) is linked


# the positive prompt


def _with(node_id: str, given: Any) -> dict[str, Any]:
    return {**classic(), node_id: given}


def _texts(graph: dict[str, Any]) -> list[str]:
    return [text.strip() for text in positive_texts(graph) if text.strip()]


def test_the_prompt_is_the_text_behind_the_positive_input() -> None:
    assert _texts(classic()) == ["a red fox"]


def test_the_prompt_is_followed_through_conditioning_nodes_and_never_to_the_negative_side() -> None:
    graph = _with("10", node("ControlNetApplyAdvanced", positive=["11", 0], negative=["7", 0]))
    graph["11"] = node(
        "ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["12", 0], clip=["4", 1]
    )
    graph["12"] = node("CLIPTextEncodeSDXL", text_g="global", text_l="  ", width=1, clip=["4", 1])
    graph["3"]["inputs"]["positive"] = ["10", 0]
    assert _texts(graph) == ["a red fox", "global"]


def test_the_prompt_may_be_written_in_a_primitive_node_behind_a_plain_one() -> None:
    graph = _with("20", node("PrimitiveStringMultiline", value="a cat"))
    graph["21"] = node("Reroute", anything=["20", 0])
    graph["6"]["inputs"]["text"] = ["21", 0]
    assert _texts(graph) == ["a cat"]


def test_a_node_that_two_passes_come_by_is_read_once() -> None:
    graph = _with("30", node("KSampler", positive=["6", 0], latent_image=["3", 0]))
    assert _texts(graph) == ["a red fox"]


def test_a_guider_takes_the_place_of_a_sampler() -> None:
    graph = {
        "1": node("BasicGuider", conditioning=["2", 0], model=["4", 0]),
        "2": node("FluxGuidance", conditioning=["3", 0]),
        "3": node("CLIPTextEncodeFlux", clip_l="short", t5xxl="long text"),
        "4": node("UNETLoader", unet_name="flux"),
    }
    assert _texts(graph) == ["short", "long text"]


def test_without_a_sampler_the_prompt_inputs_speak() -> None:
    assert _texts({"1": node("GeminiNode", prompt="a poem", system_prompt="be nice", seed=1)}) == ["a poem"]


def test_links_to_nothing_lead_nowhere() -> None:
    graph = {"1": node("KSampler", positive=["88", 0], seed=["88", 0])}
    assert (_texts(graph), list(seed_places(graph))) == ([], [])


def test_links_in_a_circle_end_the_search_for_a_prompt() -> None:
    graph = {"1": node("KSampler", positive=["2", 0]), "2": node("A", conditioning=["1", 0], x=["2", 0])}
    assert _texts(graph) == []


@pytest.mark.parametrize(
    "graph", [{"1": node("SaveImage")}, {"1": node("A", text="x"), "2": node("B", y=["1", 0])}]
)
def test_without_a_sampler_and_a_prompt_there_is_none(graph: dict[str, Any]) -> None:
    assert _texts(graph) == []


def test_a_chain_of_many_nodes_is_no_trouble() -> None:
    graph = {"0": node("CLIPTextEncode", text="far away"), "k": node("KSampler", positive=["3000", 0])}
    graph |= {str(n): node("ConditioningSet", conditioning=[str(n - 1), 0]) for n in range(1, 3001)}
    assert _texts(graph) == ["far away"]


# seeds


def test_seeds_are_found_by_name_and_behind_links_where_they_are_written() -> None:
    graph = {
        "1": node("KSampler", seed=["2", 0], noise_seed=5),
        "2": node("Reroute", any=["3", 0], other="x"),
        "3": node("PrimitiveInt", value=5, control="fixed"),
        "4": node("KSampler", seed=["3", 0]),
        "5": node("A", seed="fixed", noise_seed=True),
    }
    assert list(seed_places(graph)) == [("3", "value"), ("1", "noise_seed"), ("3", "value")]


def test_links_in_a_circle_end_the_search_for_a_seed() -> None:
    graph = {"1": node("A", seed=["2", 0]), "2": node("B", x=["1", 0], y=["2", 0])}
    assert list(seed_places(graph)) == []
