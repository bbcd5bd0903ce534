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


def node(class_type: str, title: str | None = None, /, **inputs: Any) -> dict[str, Any]:
    """A node with these inputs."""
    meta = {} if title is None else {"_meta": {"title": title}}
    return {"class_type": class_type, "inputs": inputs, **meta}


def classic() -> Graph:
    """Text to image, as every page about ComfyUI has it."""
    return {
        "3": node(
            "KSampler",
            seed=42,
            steps=20,
            cfg=8.0,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name="sd15.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", "Positive", text="a red fox", clip=["4", 1]),
        "7": node("CLIPTextEncode", "Negative", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="fox", images=["8", 0]),
    }
