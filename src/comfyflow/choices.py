"""Whether a server takes a value for an input: conversion, range, choices, model files and uploads. Pure.

Source: ComfyUI execution.py validate_inputs, 0.3.64 to 0.33; folder_paths.py for names of files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .faults import FaultKind, Near, Rule, hint, told
from .inventory import MODEL_SUFFIXES
from .served import Entry, ServedClass

# The models folder that an input chooses from (get_filename_list in nodes.py and comfy_extras, 0.33.0).
_FOLDERS: Mapping[str, str] = {
    "ckpt_name": "checkpoints",
    "config_name": "configs",
    "lora_name": "loras",
    "existing_lora": "loras",
    "vae_name": "vae",
    "unet_name": "diffusion_models",
    **dict.fromkeys(
        ("clip_name", "clip_name1", "clip_name2", "clip_name3", "clip_name4", "text_encoder"),
        "text_encoders",
    ),
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
    "CLIPVisionLoader.clip_name": "clip_vision",
    "ModelPatchLoader.name": "model_patches",
    "UpscaleModelLoader.model_name": "upscale_models",
    "LatentUpscaleModelLoader.model_name": "latent_upscale_models",
    "LoadMediaPipeFaceLandmarker.model_name": "detection",
    "OpticalFlowLoader.model_name": "optical_flow",
    "LoadDA3Model.model_name": "geometry_estimation",
    "LoadMoGeModel.model_name": "geometry_estimation",
    "FrameInterpolationModelLoader.model_name": "frame_interpolation",
}
# Files in the input folder that the list of a class surely shows: their kind is known on every system.
_SHOWN_FILES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("LoadImage", "LoadImageMask"), (".png", ".jpg", ".jpeg", ".gif", ".bmp")),
    "LoadAudio": (".mp3", ".wav"),
    "LoadVideo": (".mp4", ".webm"),
    "LoadLatent": (".latent",),
}
# Choices that 0.3.64 has as a tuple, which it does not check; in JSON they look like any others.
_TUPLES = frozenset({"FluxKontextMultiReferenceLatentMethod.reference_latents_method", "LoraSave.lora_type"})
_UNLISTED = frozenset("/\\[]:")  # subfolders, drives, and "name.png [output]"
_NUMBERS = {"INT": int, "FLOAT": float}
_CALLED = {"INT": "whole number", "FLOAT": "number", "STRING": "text"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one input; with a `rule` only the server can decide it."""

    kind: FaultKind | None
    message: str
    value: Any = None
    near: tuple[str, ...] = ()
    folder: str | None = None
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges values.

    `uploads` are names of files that are or will be in the server's input folder, `absent` of files that are
    certainly nowhere, and `modern` tells a server that checks the choices of a COMBO too (0.27.0 does, 0.3.64
    does not).
    """

    modern: bool
    uploads: Collection[str] = ()
    absent: Collection[str] = ()
    near: Near = field(default_factory=Near)

    def findings(self, served: ServedClass, name: str, entry: Entry, value: Any) -> Iterator[Finding]:
        """What the server says of a value that is no link: at most one thing."""
        plain = value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value
        try:
            converted = _converted(entry.type, plain)
        except (TypeError, ValueError, OverflowError):
            wanted = _CALLED[entry.type]
            yield Finding(
                FaultKind.INVALID_INPUT_TYPE, f"{name} must be a {wanted}, not {told(plain)}", plain
            )
            return
        if name == served.file_input:
            yield from self._file(served, name, entry, converted)
        elif not served.takes(name):
            found = _range(name, entry, converted) or self._choice(served, name, entry, converted)
            if found:
                yield found if served.own or found.rule else of_other_makers(found)

    def _file(self, served: ServedClass, name: str, entry: Entry, value: Any) -> Iterator[Finding]:
        choices = [one for one in entry.choices if isinstance(one, str)] if entry.is_choice else []
        if served.name.startswith("Load3D") and (not value or value == "none"):
            return
        if not isinstance(value, str):
            message = f"{name} must be the name of a file, not {told(value)}"
            yield Finding(FaultKind.MISSING_FILE, message, value)
        elif value not in choices and value not in self.uploads:
            near = self.near.find(value, choices, f"{served.name}.{name}")
            told_ = f"the file {told(value)} ({name})"
            sure = value in self.absent or _would_be_listed(served.name, value, choices)
            message = (
                f"{told_} is not uploaded to the server"
                if sure
                else (f"{told_} is not in the server's list, and subfolders and outputs are not listed")
            )
            rule = None if sure else Rule.FILE
            yield Finding(FaultKind.MISSING_FILE, message + hint(near), value, near, rule=rule)

    def _choice(self, served: ServedClass, name: str, entry: Entry, value: Any) -> Finding | None:
        if not entry.is_choice or not isinstance(entry.choices, list):
            return None
        several = bool(entry.options.get("multiselect")) and isinstance(value, list)
        wrong = [one for one in (value if several else [value]) if not served.listed(entry, one)]
        if not wrong or _uploaded(entry, wrong, self.uploads):
            return None
        found = self._unlisted(served, name, entry, wrong[0])
        if entry.options.get("remote"):
            return replace(found, rule=Rule.LIST)
        by_name = not isinstance(entry.type, list) or f"{served.name}.{name}" in _TUPLES
        old = not self.modern and by_name
        return replace(found, rule=Rule.VERSION) if old else found

    def _unlisted(self, served: ServedClass, name: str, entry: Entry, value: Any) -> Finding:
        near = self.near.find(value, entry.choices, f"{served.name}.{name}")
        folder = _FOLDERS.get(f"{served.name}.{name}") or _FOLDERS.get(name)
        if any(option.endswith("_upload") and entry.options[option] for option in entry.options):
            message = f"the file {told(value)} ({name}) is not uploaded to the server{hint(near)}"
            return Finding(FaultKind.MISSING_FILE, message, value, near)
        if isinstance(value, str) and (folder or value.lower().endswith(MODEL_SUFFIXES)):
            where = f" in its folder models/{folder}" if folder else ""
            message = f"the server has no model {told(value)}{where} ({name}){hint(near)}"
            return Finding(FaultKind.MISSING_MODEL, message, value, near, folder)
        message = f"{name} is {told(value)}, which is not one of its {len(entry.choices)} choices{hint(near)}"
        return Finding(FaultKind.VALUE_NOT_IN_LIST, message, value, near)


def of_other_makers(finding: Finding) -> Finding:
    """The same, left to the server: a class of a custom node pack may check its inputs by itself, which
    takes the place of the server's check."""
    message = f"{finding.message} (the server may see it otherwise: this is a class of a custom node pack)"
    return replace(finding, message=message, rule=Rule.OWN_CHECK)


def _converted(kind: Any, value: Any) -> Any:
    if isinstance(kind, str) and kind in _NUMBERS:
        return _NUMBERS[kind](value)
    if kind == "STRING" and not isinstance(value, str):
        return str(value)
    return bool(value) if kind == "BOOLEAN" else value


def _range(name: str, entry: Entry, value: Any) -> Finding | None:
    options = entry.options
    try:
        if "min" in options and value < options["min"]:
            message = f"{name} is {told(value)}, below its least value {told(options['min'])}"
            return Finding(FaultKind.VALUE_SMALLER_THAN_MIN, message, value)
        if "max" in options and value > options["max"]:
            message = f"{name} is {told(value)}, above its greatest value {told(options['max'])}"
            return Finding(FaultKind.VALUE_BIGGER_THAN_MAX, message, value)
    except TypeError:
        message = f"{name} is {told(value)}, which cannot be compared with its limits"
        return Finding(FaultKind.INCOMPARABLE_VALUE, message, value)
    return None


def _uploaded(entry: Entry, values: list[Any], uploads: Collection[str]) -> bool:
    offered = any(option.endswith("_upload") and entry.options[option] for option in entry.options)
    return offered and all(isinstance(one, str) and one in uploads for one in values)


def _would_be_listed(class_name: str, value: str, choices: list[str]) -> bool:
    suffixes = _SHOWN_FILES.get(class_name, ())
    folded = value.casefold()
    return (
        value.endswith(suffixes)
        and value.strip() == value
        and _UNLISTED.isdisjoint(value)
        and not any(choice.casefold() == folded for choice in choices)  # some systems do not mind case
    )
