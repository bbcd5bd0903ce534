"""What made a file, as far as its graph tells: the seed, the model, the LoRAs. Pure.

Found by walking from the node that saved the file against the links, nearest nodes first: names of inputs
count, not classes, so nodes of any origin are understood.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .schema import SEED_NAMES
from .upstream import NUMBER_NAMES, is_link
from .workflow import Workflow

Inputs = Mapping[str, Any]


def _names(pattern: str) -> Callable[[str], bool]:
    """Whether an input is called so: the same names come again with every job."""
    like = re.compile(pattern)
    return lru_cache(maxsize=1024)(lambda name: like.fullmatch(name) is not None)


_FILE = re.compile(r".+\.(safetensors|ckpt|sft|gguf|pth?|bin)", re.IGNORECASE | re.DOTALL)
_MODEL_NAME = _names(r"(ckpt|checkpoint|unet|diffusion_model|dit|model)(_?name|_?path|_?file)?")
_MODEL_LINK = _names(r"model(_?\d+)?|(base|refiner|diffusion|high_noise|low_noise)_model|unet")
_LORA = _names(r"lora.*")
# What hangs on a sampler beside its own model: what comes over these links did not paint the picture.
_OTHER_MODEL = _names(r".*(vae|clip|upscale|control|style|encoder|interp|patch|detector|segm|sam_).*")
_SAMPLING = _names(r"positive|conditioning|cond|steps|cfg|seed|noise_seed")
_SWITCHED = _names(r"switch|boolean|condition")
_NO_NOISE = ("disable", False)  # KSamplerAdvanced and SamplerCustom, comfy_extras and nodes.py, 0.27.0


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a file's making. `model` and `loras` are names as the graph spells them."""

    seed: int | None = None
    model: str | None = None
    loras: tuple[str, ...] = ()


def traits(workflow: Workflow, node_id: str) -> Traits:
    """What made the output of this node; nodes that came up while the job ran ("5.0.1") belong to "5".

    The seed is that of the nearest sampler that adds noise, followed over links to where it is written; the
    model is the one on the way of the sampler's `model` link, not the VAE's, the text encoder's or the
    upscaler's. A switch is followed to the side that it stands on.
    """
    graph = workflow.nodes
    start = node_id if node_id in graph else node_id.partition(".")[0]
    if start not in graph:
        return Traits()
    way = [graph[place]["inputs"] for place in _walk(graph, [start], _sources)]
    return Traits(_seed(graph, way), _model(graph, start, way), tuple(dict.fromkeys(_loras(way))))


def _walk(
    graph: Mapping[str, Any], starts: Iterable[str], onward: Callable[[Mapping[str, Any], Inputs], list[str]]
) -> Iterator[str]:
    """Every node from `starts` against the links, nearest first, each once: a circle has an end too."""
    waiting = deque(dict.fromkeys(starts))
    seen = set(waiting)
    while waiting:
        node_id = waiting.popleft()
        yield node_id
        new = [
            source for source in dict.fromkeys(onward(graph, graph[node_id]["inputs"])) if source not in seen
        ]
        seen.update(new)
        waiting.extend(new)


def _links(graph: Mapping[str, Any], inputs: Inputs) -> list[tuple[str, str]]:
    """Names of linked inputs and where they come from; of a switch that is known only the side in use."""
    unused = _unused(graph, inputs)
    return [(name, value[0]) for name, value in inputs.items() if is_link(value) and name != unused]


def _sources(graph: Mapping[str, Any], inputs: Inputs) -> list[str]:
    return [source for _, source in _links(graph, inputs)]


def _unused(graph: Mapping[str, Any], inputs: Inputs) -> str | None:
    """The side of a switch that is not taken (ComfySwitchNode, 0.27.0), None where that is open."""
    if "on_true" not in inputs or "on_false" not in inputs:
        return None
    value: Any = next((inputs[name] for name in inputs if _SWITCHED(name)), None)
    if is_link(value):
        value = graph[value[0]]["inputs"].get("value")
    if not isinstance(value, bool):
        return None
    return "on_false" if value else "on_true"


# the seed


def _seed(graph: Mapping[str, Any], way: Iterable[Inputs]) -> int | None:
    quiet: list[Inputs] = []  # later stages take over the noise of an earlier one; their seed says little
    for inputs in way:
        if inputs.get("add_noise") in _NO_NOISE:
            quiet.append(inputs)
        elif (seed := _seed_of(graph, inputs)) is not None:
            return seed
    return next((seed for inputs in quiet if (seed := _seed_of(graph, inputs)) is not None), None)


def _seed_of(graph: Mapping[str, Any], inputs: Inputs) -> int | None:
    for name in SEED_NAMES:
        value: Any = inputs.get(name)
        found = _written(graph, value[0]) if is_link(value) else _whole(value)
        if found is not None:
            return found
    return None


def _written(graph: Mapping[str, Any], start: str) -> int | None:
    """The number that a linked seed is written as."""
    for node_id in _walk(graph, [start], _sources):
        inputs = graph[node_id]["inputs"]
        numbers = (_whole(inputs.get(name)) for name in NUMBER_NAMES)
        if (found := next((number for number in numbers if number is not None), None)) is not None:
            return found
    return None


def _whole(value: Any) -> int | None:
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# the model


def _model(graph: Mapping[str, Any], start: str, way: Iterable[Inputs]) -> str | None:
    """Along the nearest sampler's link, else along any link to a model, else the first that is named."""
    linked = [(inputs, sources) for inputs in way if (sources := _model_sources(graph, inputs))]
    linked.sort(key=lambda pair: _distance(pair[0]))  # which leaves the nearest of a kind in front
    for _, sources in linked:
        if (name := _first_model(graph, sources, _model_way)) is not None:
            return name
    return _first_model(graph, [start], _painting)


def _distance(inputs: Inputs) -> tuple[bool, bool]:
    """Samplers before other nodes with a model (detectors, ...), and the one that adds the noise before those
    that go on with its work (SDXL's refiner)."""
    return not any(map(_SAMPLING, inputs)), inputs.get("add_noise") in _NO_NOISE


def _first_model(
    graph: Mapping[str, Any], starts: Iterable[str], onward: Callable[[Mapping[str, Any], Inputs], list[str]]
) -> str | None:
    names = (_model_here(graph[node_id]["inputs"]) for node_id in _walk(graph, starts, onward))
    return next((name for name in names if name is not None), None)


def _model_here(inputs: Inputs) -> str | None:
    named = (value for name, value in inputs.items() if _MODEL_NAME(name))
    return next((value for value in named if _is_file(value)), None)


def _model_sources(graph: Mapping[str, Any], inputs: Inputs) -> list[str]:
    return [source for name, source in _links(graph, inputs) if _MODEL_LINK(name)]


def _model_way(graph: Mapping[str, Any], inputs: Inputs) -> list[str]:
    return _model_sources(graph, inputs) or _painting(graph, inputs)


def _painting(graph: Mapping[str, Any], inputs: Inputs) -> list[str]:
    return [source for name, source in _links(graph, inputs) if not _OTHER_MODEL(name)]


# LoRAs


def _loras(way: Iterable[Inputs]) -> Iterator[str]:
    for inputs in way:
        for name, value in inputs.items():
            if _LORA(name):
                yield from _lora_names(value)


def _lora_names(value: Any) -> Iterator[str]:
    match value:
        case str() if _is_file(value):
            yield value
        case {"on": True, "lora": str(name)} if _is_file(name):  # Power Lora Loader of rgthree-comfy
            yield name


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and _FILE.fullmatch(value) is not None
