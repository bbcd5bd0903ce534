"""What made a file: found in graphs as people have them. Graphs named so are ComfyUI's own templates
(comfyui-workflow-templates 0.9, as its frontend 1.45.20 exports them), without titles and long texts."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow.traits import Traits, traits
from comfyflow.workflow import Workflow

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def with_inputs(graph: Graph, node_id: str, **inputs: Any) -> Graph:
    return {**graph, node_id: node(graph[node_id]["class_type"], **{**graph[node_id]["inputs"], **inputs})}


def advanced(add_noise: str, noise_seed: int, model: str, latent: str) -> dict[str, Any]:
    return node(
        "KSamplerAdvanced", add_noise=add_noise, noise_seed=noise_seed, steps=25, cfg=8, sampler_name="euler",
        model=[model, 0], positive=["6", 0], negative=["7", 0], latent_image=[latent, 0],
    )  # fmt: skip


# sdxl_simple_example: two samplers, the second goes on with the work of the first
SDXL = {
    "4": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
    "5": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
    "6": node("CLIPTextEncode", text="evening sunset scenery", clip=["4", 1]),
    "7": node("CLIPTextEncode", text="text, watermark", clip=["4", 1]),
    "10": advanced("enable", 721897303308196, "4", "5"),
    "11": advanced("disable", 0, "12", "10"),
    "12": node("CheckpointLoaderSimple", ckpt_name="sd_xl_refiner_1.0.safetensors"),
    "17": node("VAEDecode", samples=["11", 0], vae=["12", 2]),
    "19": node("SaveImage", filename_prefix="ComfyUI", images=["17", 0]),
}

# image_krea2_turbo_t2i, without the part that rewrites the prompt: a switch takes or leaves a LoRA
KREA = {
    "29": node("SaveImage", filename_prefix="Krea2_turbo", images=["30:8", 0]),
    "30:6": node("CLIPTextEncode", text=["30:19", 0], clip=["30:11", 0]),
    "30:5": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
    "30:3": node(
        "KSampler", seed=735915477938686, steps=8, cfg=1, sampler_name="euler", scheduler="simple", denoise=1,
        model=["30:22", 0], positive=["30:6", 0], negative=["30:13", 0], latent_image=["30:5", 0],
    ),
    "30:8": node("VAEDecode", samples=["30:3", 0], vae=["30:12", 0]),
    "30:10": node("UNETLoader", unet_name="krea2_turbo_fp8_scaled.safetensors", weight_dtype="default"),
    "30:11": node("CLIPLoader", clip_name="qwen3vl_4b_fp8_scaled.safetensors", type="krea2"),
    "30:12": node("VAELoader", vae_name="qwen_image_vae.safetensors"),
    "30:13": node("ConditioningZeroOut", conditioning=["30:6", 0]),
    "30:15": node(
        "LoraLoaderModelOnly", lora_name="krea2_darkbrush.safetensors", strength_model=0.8, model=["30:10", 0]
    ),
    "30:19": node("PrimitiveStringMultiline", value="a human hand"),
    "30:22": node("ComfySwitchNode", switch=["30:23", 0], on_false=["30:10", 0], on_true=["30:15", 0]),
    "30:23": node("PrimitiveBoolean", value=False),
}  # fmt: skip

# sd3.5_large_depth: the picture that steers it is itself made by a model, and previewed
DEPTH = {
    "4": node("CheckpointLoaderSimple", ckpt_name="sd3.5_large_fp8_scaled.safetensors"),
    "8": node("VAEDecode", samples=["56", 0], vae=["4", 2]),
    "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    "45": node("LoadImage", image="sd3.5_large_depth_input_image.png"),
    "46": node("ControlNetLoader", control_net_name="sd3.5_large_controlnet_depth.safetensors"),
    "56": node(
        "KSampler", seed=1020711502084247, steps=20, cfg=8, sampler_name="euler", scheduler="normal",
        denoise=1, model=["4", 0], positive=["61", 0], negative=["61", 1], latent_image=["77", 0],
    ),
    "57": node("CLIPTextEncode", text="a baby dragon", clip=["4", 1]),
    "58": node("ConditioningZeroOut", conditioning=["57", 0]),
    "61": node(
        "ControlNetApplyAdvanced", strength=0.7, start_percent=0, end_percent=1, positive=["57", 0],
        negative=["58", 0], control_net=["46", 0], image=["68:99", 0], vae=["4", 2],
    ),
    "70": node("ImageScaleToTotalPixels", upscale_method="lanczos", megapixels=1, image=["45", 0]),
    "73": node("PreviewImage", images=["68:99", 0]),
    "77": node("VAEEncode", pixels=["68:99", 0], vae=["4", 2]),
    "68:92": node(
        "SamplerCustomAdvanced", noise=["68:93", 0], guider=["68:94", 0], sampler=["68:100", 0],
        sigmas=["68:101", 0], latent_image=["68:97", 0],
    ),
    "68:94": node("BasicGuider", model=["68:87", 0], conditioning=["68:96", 0]),
    "68:95": node("BasicScheduler", scheduler="normal", steps=1, denoise=1, model=["68:87", 0]),
    "68:96": node("LotusConditioning"),
    "68:97": node("VAEEncode", pixels=["70", 0], vae=["68:89", 0]),
    "68:93": node("DisableNoise"),
    "68:98": node("VAEDecode", samples=["68:92", 0], vae=["68:89", 0]),
    "68:99": node("ImageInvert", image=["68:98", 0]),
    "68:89": node("VAELoader", vae_name="vae-ft-mse-840000-ema-pruned.safetensors"),
    "68:87": node("UNETLoader", unet_name="lotus-depth-d-v1-1.safetensors", weight_dtype="default"),
    "68:101": node("SetFirstSigma", sigma=10000, sigmas=["68:95", 0]),
    "68:100": node("KSamplerSelect", sampler_name="euler"),
}  # fmt: skip

# utility-gan_upscaler, its core: nothing is sampled
UPSCALED = {
    "1": node("LoadImage", image="in.png"),
    "2": node("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors"),
    "3": node("ImageUpscaleWithModel", upscale_model=["2", 0], image=["1", 0]),
    "4": node("SaveImage", filename_prefix="up", images=["3", 0]),
}


def found(graph: Graph, node_id: str) -> Traits:
    return traits(Workflow.load(graph), node_id)


@pytest.mark.parametrize(
    ("graph", "node_id", "seed", "model"),
    [
        (SDXL, "19", 721897303308196, "sd_xl_base_1.0.safetensors"),
        (KREA, "29", 735915477938686, "krea2_turbo_fp8_scaled.safetensors"),
        (DEPTH, "9", 1020711502084247, "sd3.5_large_fp8_scaled.safetensors"),
        (DEPTH, "73", None, "lotus-depth-d-v1-1.safetensors"),
        (UPSCALED, "4", None, None),
    ],
)
def test_seed_and_model_of_real_graphs(
    graph: Graph, node_id: str, seed: int | None, model: str | None
) -> None:
    assert found(graph, node_id) == Traits(seed, model)


def test_a_switch_is_followed_to_the_side_that_it_stands_on() -> None:
    assert found(KREA, "29").loras == ()
    lora = ("krea2_darkbrush.safetensors",)
    assert found(with_inputs(KREA, "30:23", value=True), "29").loras == lora
    assert found(with_inputs(KREA, "30:22", switch=True), "29").loras == lora
    assert found(with_inputs(KREA, "30:22", switch=["30:19", 0]), "29").loras == lora  # it cannot be known


def test_loras_are_told_once_each_nearest_first_whoever_loads_them() -> None:
    stack = node(
        "Power Lora Loader (rgthree)",
        lora_1={"on": True, "lora": "c.safetensors", "strength": 1},
        lora_2={"on": False, "lora": "off.safetensors", "strength": 1},
        lora_3={"on": True, "lora": "None", "strength": 1},
        lora_count=2,
        model=["30:10", 0],
    )
    graph = {
        **with_inputs(KREA, "30:3", model=["a", 0]),
        "a": node("LoraLoader", lora_name="b.safetensors", model=["b", 0], clip=["b", 1]),
        "b": node("LoraLoader", lora_name="b.safetensors", model=["c", 0], clip=["30:11", 0]),
        "c": stack,
    }
    made = found(graph, "29")
    assert made.loras == ("b.safetensors", "c.safetensors")
    assert made.model == "krea2_turbo_fp8_scaled.safetensors"


def test_nodes_that_came_up_at_run_time_belong_to_the_one_they_came_from() -> None:
    assert found(KREA, "30:8.0.0.1") == found(KREA, "30:8") != Traits()


def test_of_a_node_that_is_not_in_the_graph_nothing_is_known() -> None:
    assert found(KREA, "99") == Traits(None, None, ())


def test_a_linked_seed_is_followed_to_where_it_is_written() -> None:
    graph = {
        **with_inputs(KREA, "30:3", seed=["s", 0]),
        "s": node("Reroute", a=["t", 0]),
        "t": node("PrimitiveInt", value=42, control_after_generate="fixed"),
    }
    assert found(graph, "29").seed == 42
    assert found({**graph, "t": node("RandomNumber")}, "29").seed is None


@pytest.mark.parametrize(
    ("value", "seed"), [(7.0, 7), (7.5, None), (True, None), ("1K", None), (2**64 - 1, 2**64 - 1), (0, 0)]
)
def test_a_seed_is_a_whole_number(value: Any, seed: int | None) -> None:
    assert found(with_inputs(KREA, "30:3", seed=value), "29").seed == seed


def test_the_seed_of_a_stage_without_noise_of_its_own_is_better_than_none() -> None:
    only = with_inputs(with_inputs(SDXL, "10", add_noise="disable"), "11", noise_seed=5)
    assert found(only, "19").seed == 5
    assert (
        found(with_inputs(with_inputs(only, "10", noise_seed="?"), "11", noise_seed="?"), "19").seed is None
    )


def test_a_detector_nearer_than_the_sampler_does_not_pass_for_the_model() -> None:
    graph = {
        **with_inputs(KREA, "29", images=["d", 0]),
        "d": node("FaceDetailer", image=["30:8", 0], model=["e", 0]),
        "e": node("LoadDetector", model_name="face_yolov8m.pt"),
    }
    assert found(graph, "29").model == "krea2_turbo_fp8_scaled.safetensors"


def test_without_a_link_called_model_the_first_named_one_counts() -> None:
    graph = {
        "1": node("EfficientLoader", ckpt_name="dream.CKPT", vae_name="v.pt"),
        "2": node("EfficientSampler", seed=3, pipe=["1", 0]),
        "3": node("SaveImage", images=["2", 5]),
    }
    assert found(graph, "3") == Traits(3, "dream.CKPT")


def test_a_link_to_a_model_without_a_name_leaves_the_others_to_be_asked() -> None:
    graph = {
        "1": node("SomeModel", model="gpt-image-1"),
        "2": node("KSampler", seed=3, steps=2, model=["1", 0], basic_pipe=["4", 0]),
        "3": node("SaveImage", images=["2", 0]),
        "4": node("Pipe", unet_name="x.gguf"),
    }
    assert found(graph, "3") == Traits(3, "x.gguf")


def test_a_circle_ends() -> None:
    graph = {
        "1": node("Loop", model=["2", 0], seed=["2", 0]),
        "2": node("Loop", model=["1", 0], on_true=["1", 0], on_false=["2", 0]),
        "3": node("SaveImage", images=["1", 0]),
    }
    assert found(graph, "3") == Traits()
