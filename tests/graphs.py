"""Workflows in API format for tests, small enough to run in milliseconds."""

from __future__ import annotations

import itertools
from typing import Any

Graph = dict[str, dict[str, Any]]
_seeds = itertools.count(1)


def image(*, batch: int = 1, prefix: str = "test") -> Graph:
    """One picture (or a batch), never the same twice, so that no server answers it from its cache."""
    made = {"width": 64, "height": 64, "batch_size": batch, "color": next(_seeds)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": made, "_meta": {"title": "Canvas"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def steps(count: int = 3) -> Graph:
    """A sampler that reports its steps, and its picture."""
    inputs = {
        "seed": next(_seeds),
        "steps": count,
        "delay": 0.0,
        "preview": "PNG",
        "width": 64,
        "height": 64,
        "batch": 1,
    }
    return {
        "3": {"class_type": "RecSteps", "inputs": inputs, "_meta": {"title": "Stand-in sampler"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "steps"}},
    }


def alone(class_type: str, **inputs: Any) -> Graph:
    """One output node."""
    return {"1": {"class_type": class_type, "inputs": inputs, "_meta": {"title": f"my {class_type}"}}}


def partly_valid() -> Graph:
    """A server accepts this with 200 and would run only the first output."""
    graph = image()
    graph["3"] = {
        "class_type": "SaveImage",
        "inputs": {"filename_prefix": "no image"},
        "_meta": {"title": "Broken"},
    }
    return graph
