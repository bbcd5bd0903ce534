"""What each node class takes and gives, in the shape of ComfyUI's /object_info (0.27.0, recording 21).

Two generations of node definitions describe themselves with different keys; both are here. The texts are our
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Info = dict[str, Any]
Inputs = Mapping[str, Sequence[Any]]

MAX_SEED = 0xFFFFFFFFFFFFFFFF
CHECKPOINTS = ["sim.safetensors", "v1-5-pruned-emaonly.safetensors", "sd_xl_base_1.0.safetensors"]
MODEL_FOLDERS = [
    "checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision",
    "style_models",
    "embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "hypernetworks",
    "photomaker",
]  # fmt: skip
EXTENSIONS = ["/extensions/core/groupNode.js", "/extensions/core/widgetInputs.js"]

_SAMPLERS = [
    "euler", "euler_cfg_pp", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm", "ipndm",
    "deis",
    "res_multistep", "er_sde", "sa_solver", "ddim", "uni_pc", "uni_pc_bh2",
]  # fmt: skip
_SCHEDULERS = [
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
]  # fmt: skip
_UPSCALERS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
_PREFIX_TIP = (
    "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or"
    " %Empty Latent Image.width% to include values from nodes."
)
_MESH = "MESH,FILE_3D_GLB,FILE_3D_GLTF,FILE_3D_OBJ,FILE_3D_FBX,FILE_3D_STL,FILE_3D_USDZ,FILE_3D_PLY,FILE_3D"


def _int(default: int, low: int | None = None, high: int | None = None, **more: Any) -> list[Any]:
    return ["INT", _bounds(default, low, high) | more]


def _float(default: float, low: float | None = None, high: float | None = None, **more: Any) -> list[Any]:
    return ["FLOAT", _bounds(default, low, high) | more]


def _bounds(default: float, low: float | None, high: float | None) -> dict[str, Any]:
    bounds: dict[str, Any] = {"default": default}
    if low is not None:
        bounds["min"] = low
    if high is not None:
        bounds["max"] = high
    return bounds


def _bool(default: bool) -> list[Any]:
    return ["BOOLEAN", {"default": default}]


def _text(default: str = "", **more: Any) -> list[Any]:
    return ["STRING", {"default": default, **more}]


def _combo(*options: str, default: str | None = None) -> list[Any]:
    start = {} if default is None else {"default": default}
    return ["COMBO", {**start, "multiselect": False, "options": list(options)}]


def _node(
    name: str,
    title: str,
    required: Inputs,
    output: Sequence[str] = (),
    *,
    optional: Inputs | None = None,
    names: Sequence[str] | None = None,
    saves: bool = False,
    files: bool = False,
    new: bool = False,
    category: str = "sim",
) -> tuple[str, Info]:
    """One entry. `saves`: an output node. `files`: it writes the graph into its files. `new`: a V3 class."""
    inputs: Info = {"required": {key: list(value) for key, value in required.items()}}
    if optional:
        inputs["optional"] = {key: list(value) for key, value in optional.items()}
    if files:
        hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        inputs["hidden"] = {key: [value] for key, value in hidden.items()} if new else hidden
    info: Info = {
        "input": inputs,
        "input_order": {kind: list(group) for kind, group in inputs.items()},
        "is_input_list": False,
        "output": list(output),
        "output_is_list": [False] * len(output),
        "output_name": list(names or output),
    }
    described = {
        "name": name,
        "display_name": title,
        "description": "",
        "python_module": "comfy_extras.nodes_sim" if new else "nodes",
        "category": category,
        "output_node": saves,
    }
    return name, info | (_new(described, len(output)) if new else _old(described))


def _old(described: Info) -> Info:
    return described | {"has_intermediate_output": False, "search_aliases": []}


def _new(described: Info, outputs: int) -> Info:
    flags = {
        "deprecated": False,
        "experimental": False,
        "dev_only": False,
        "api_node": False,
        "price_badge": None,
    }
    first = {"output_tooltips": [None] * outputs, "output_matchtypes": None}
    last = {"search_aliases": None, "essentials_category": None, "has_intermediate_output": False}
    return first | described | flags | last


_SIZE = {"min": 16, "max": 16384, "step": 8}
_PIXELS = {"default": 512, "min": 1, "max": 16384, "step": 1}
_SCALED = {"default": 512, "min": 0, "max": 16384, "step": 1}
_ANY_IMAGE: Inputs = {"image": ["IMAGE"]}
_PREFIX = _text("ComfyUI", multiline=False)

CORE: Mapping[str, Info] = dict([
    _node("CheckpointLoaderSimple", "Load Checkpoint", {"ckpt_name": [CHECKPOINTS, {}]}, ["MODEL", "CLIP",
          "VAE"]),
    _node("CLIPTextEncode", "CLIP Text Encode (Prompt)",
          {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}], "clip": ["CLIP", {}]},
           ["CONDITIONING"]),
    _node("EmptyLatentImage", "Empty Latent Image",
          {"width": ["INT", {"default": 512, **_SIZE}], "height": ["INT", {"default": 512, **_SIZE}],
           "batch_size": _int(1, 1, 4096)}, ["LATENT"]),
    _node("KSampler", "KSampler",
          {"model": ["MODEL", {}], "seed": _int(0, 0, MAX_SEED, control_after_generate=True),
           "steps": _int(20, 1, 10000), "cfg": _float(8.0, 0.0, 100.0, step=0.1, round=0.01),
           "sampler_name": [_SAMPLERS, {}], "scheduler": [_SCHEDULERS, {}], "positive": ["CONDITIONING", {}],
           "negative": ["CONDITIONING", {}], "latent_image": ["LATENT", {}],
           "denoise": _float(1.0, 0.0, 1.0, step=0.01)}, ["LATENT"]),
    _node("KSamplerAdvanced", "KSampler (Advanced)",
          {"model": ["MODEL"], "add_noise": [["enable", "disable"], {"advanced": True}],
           "noise_seed": _int(0, 0, MAX_SEED, control_after_generate=True), "steps": _int(20, 1, 10000),
           "cfg": _float(8.0, 0.0, 100.0, step=0.1, round=0.01), "sampler_name": [_SAMPLERS],
           "scheduler": [_SCHEDULERS], "positive": ["CONDITIONING"], "negative": ["CONDITIONING"],
           "latent_image": ["LATENT"], "start_at_step": _int(0, 0, 10000, advanced=True),
           "end_at_step": _int(10000, 0, 10000, advanced=True),
           "return_with_leftover_noise": [["disable", "enable"], {"advanced": True}]}, ["LATENT"]),
    _node("VAEDecode", "VAE Decode", {"samples": ["LATENT", {}], "vae": ["VAE", {}]}, ["IMAGE"]),
    _node("VAEEncode", "VAE Encode", {"pixels": ["IMAGE"], "vae": ["VAE"]}, ["LATENT"]),
    _node("LoadImage", "Load Image", {"image": [[], {"image_upload": True}]}, ["IMAGE", "MASK"]),
    _node("EmptyImage", "Empty Image",
          {"width": ["INT", _PIXELS], "height": ["INT", _PIXELS], "batch_size": _int(1, 1, 4096),
           "color": _int(0, 0, 0xFFFFFF, step=1, display="color")}, ["IMAGE"]),
    _node("ImageScale", "Upscale Image",
          {"image": ["IMAGE"], "upscale_method": [_UPSCALERS], "width": ["INT", _SCALED], "height": ["INT",
           _SCALED],
           "crop": [["disabled", "center"]]}, ["IMAGE"]),
    _node("ImageInvert", "Invert Image Colors", {"image": ["IMAGE"]}, ["IMAGE"]),
    _node("ImageBatch", "Batch Images", {"image1": ["IMAGE"], "image2": ["IMAGE"]}, ["IMAGE"]),
    _node("GetImageSize", "Get Image Size", {"image": ["IMAGE", {}]}, ["INT", "INT", "INT"],
          names=["width", "height", "batch_size"], new=True),
    _node("SaveImage", "Save Image",
          {"images": ["IMAGE", {"tooltip": "The images to save."}],
           "filename_prefix": _text("ComfyUI", tooltip=_PREFIX_TIP)},
          ["IMAGE"], names=["images"], saves=True, files=True),
    _node("PreviewImage", "Preview Image", {"images": ["IMAGE"]}, ["IMAGE"], names=["images"], saves=True,
          files=True),
    _node("SaveAnimatedWEBP", "Save Animated WEBP",
          {"images": ["IMAGE", {}], "filename_prefix": _PREFIX, "fps": _float(6.0, 0.01, 1000.0, step=0.01),
           "lossless": _bool(True), "quality": _int(80, 0, 100), "method": _combo("default", "fastest",
           "slowest")},
          ["IMAGE"], names=["images"], saves=True, files=True, new=True),
    _node("SaveAnimatedPNG", "Save Animated PNG",
          {"images": ["IMAGE", {}], "filename_prefix": _PREFIX, "fps": _float(6.0, 0.01, 1000.0, step=0.01),
           "compress_level": _int(4, 0, 9, advanced=True)},
          ["IMAGE"], names=["images"], saves=True, files=True, new=True),
    _node("SaveWEBM", "Save WEBM",
          {"images": ["IMAGE", {}], "filename_prefix": _PREFIX, "codec": _combo("vp9", "av1"),
           "fps": _float(24.0, 0.01, 1000.0, step=0.01), "crf": _float(32.0, 0, 63.0, step=1)},
          ["IMAGE"], names=["images"], saves=True, files=True, new=True),
    _node("CreateVideo", "Create Video",
          {"images": ["IMAGE", {}], "fps": _float(30.0, 1.0, 120.0, step=1.0)}, ["VIDEO"],
          optional={"audio": ["AUDIO", {}]}, new=True),
    _node("SaveVideo", "Save Video",
          {"video": ["VIDEO", {}], "filename_prefix": _text("video/ComfyUI", multiline=False),
           "format": _combo("auto", "mp4", default="auto"), "codec": _combo("auto", "h264", default="auto")},
          ["VIDEO"], names=["video"], saves=True, files=True, new=True),
    _node("EmptyAudio", "Empty Audio",
          {"duration": _float(60.0, 0.0, MAX_SEED, step=0.01), "sample_rate": _int(44100, 1, 192000),
           "channels": _int(2, 1, 2)}, ["AUDIO"], new=True),
    _node("SaveAudio", "Save Audio (FLAC)",
          {"audio": ["AUDIO", {}], "filename_prefix": _text("audio/ComfyUI", multiline=False)},
          ["AUDIO"], names=["audio"], saves=True, files=True, new=True),
    _node("SaveAudioMP3", "Save Audio (MP3)",
          {"audio": ["AUDIO", {}], "filename_prefix": _text("audio/ComfyUI", multiline=False),
           "quality": _combo("V0", "128k", "320k", default="V0")},
          ["AUDIO"], names=["audio"], saves=True, files=True,
           new=True),
    _node("SaveAudioOpus", "Save Audio (Opus)",
          {"audio": ["AUDIO", {}], "filename_prefix": _text("audio/ComfyUI", multiline=False),
           "quality": _combo("64k", "96k", "128k", "192k", "320k")},
          ["AUDIO"], names=["audio"], saves=True, files=True, new=True),
    _node("PreviewAudio", "Preview Audio", {"audio": ["AUDIO", {}]}, ["AUDIO"], names=["audio"], saves=True,
          files=True, new=True),
    _node("SaveGLB", "Save 3D Model",
          {"mesh": [_MESH, {}], "filename_prefix": _text("3d/ComfyUI", multiline=False)},
          saves=True, files=True, new=True),
    _node("Preview3D", "Preview 3D & Animation",
          {"model_file": ["STRING,FILE_3D_GLB,FILE_3D", {"default": "", "widgetType": "STRING",
           "multiline": False}]},
          saves=True, files=True, new=True),
    _node("PreviewAny", "Preview as Text", {"source": ["*", {}]}, ["STRING"], saves=True),
    _node("PrimitiveString", "Text String", {"value": ["STRING", {"multiline": False}]}, ["STRING"],
          new=True),
])  # fmt: skip

# Nodes of the simulator alone: each can stand alone (an output node) or be put into a graph (it hands its
# image on).
SIM: Mapping[str, Info] = dict([
    _node("SimSleep", "Sleep", {"seconds": _float(1.0, 0.0, 3600.0)}, ["IMAGE"], optional=_ANY_IMAGE,
          saves=True),
    _node("SimNoInterrupt", "Sleep without looking at the interrupt", {"seconds": _float(1.0, 0.0,
          3600.0)}, ["IMAGE"],
          optional=_ANY_IMAGE, saves=True),
    _node("SimFail", "Raise", {"message": _text("it failed"), "exception": _text("ValueError")}, ["IMAGE"],
          optional=_ANY_IMAGE, saves=True),
    _node("SimDie", "Kill the worker", {}, ["IMAGE"], optional=_ANY_IMAGE, saves=True),
    _node("SimBlocker", "Block what follows", {"message": _text("blocked")}, ["IMAGE"], optional=_ANY_IMAGE),
    _node("SimNaN", "Give NaN and Infinity", {}, saves=True),
    _node("SimText", "Give a text", {"text": _text("hello")}, ["STRING"], saves=True),
    _node("SimBigOutput", "Give a large text", {"size": _int(1_048_576, 0, 1 << 30)}, saves=True),
    _node("SimFile", "Write a file of any size",
          {"filename_prefix": _text("sim/file"), "suffix": _text("bin"), "size": _int(1024, 0, 1 << 40)},
           saves=True),
    _node("SimMesh", "A 3D model", {"seed": _int(0, 0, MAX_SEED)}, ["MESH"]),
    _node("SimOutput", "Report exactly this", {"ui": _text("{}")}, saves=True),
])  # fmt: skip

# The nodes that the recordings were made with.
RECORDED: Mapping[str, Info] = dict([
    _node("RecSteps", "RecSteps",
          {"seed": _int(0, 0, MAX_SEED), "steps": _int(4, 1, 10000), "delay": _float(0.05, 0.0, 60.0),
           "preview": [["none", "JPEG", "PNG"]], "width": _int(64, 8, 8192), "height": _int(64, 8, 8192),
           "batch": _int(1, 1, 64)}, ["IMAGE"], optional=_ANY_IMAGE),
    _node("RecSleep", "RecSleep",
          {"seconds": _float(5.0, 0.0, 600.0), "cooperative": _bool(True), "seed": _int(0, 0, MAX_SEED)},
           ["IMAGE"],
          optional=_ANY_IMAGE),
    _node("RecSleepOut", "RecSleepOut", {"seconds": _float(2.0), "seed": _int(0)}, saves=True),
    _node("RecFail", "RecFail",
          {"image": ["IMAGE"], "fail_at": _int(2, 0, 100), "message": _text("recorder: deliberate failure"),
           "kind": [["ValueError", "RuntimeError", "OOM", "SystemExit"]]}, ["IMAGE"]),
    _node("RecBlock", "RecBlock",
          {"image": ["IMAGE"], "message": _text("recorder: blocked"), "silent": _bool(False)}, ["IMAGE"]),
    _node("RecCustomEvent", "RecCustomEvent", {"seed": _int(0)}, saves=True),
    _node("RecProgressText", "RecProgressText",
          {"text": _text("working é中"), "count": _int(3, 1, 50), "seed": _int(0)}, ["STRING"], saves=True),
    _node("RecOddUI", "RecOddUI", {"kind": [["nan", "unserialisable"]], "seed": _int(0)}, saves=True),
    _node("RecOutputs", "RecOutputs", {"prefix": _text("rec/media"), "seed": _int(0)}, saves=True),
    _node("RecBigUI", "RecBigUI", {"kib": _int(64, 1, 1048576), "seed": _int(0)}, saves=True),
    _node("RecAsync", "RecAsync", {"steps": _int(3, 1, 100), "delay": _float(0.05), "seed": _int(0)},
          ["IMAGE"]),
    _node("RecExpand", "RecExpand", {"seed": _int(0), "steps": _int(2)}, ["IMAGE"]),
])  # fmt: skip

CATALOG: Mapping[str, Info] = {**CORE, **SIM, **RECORDED}
