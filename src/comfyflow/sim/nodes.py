"""What the node classes do. A node gets an `At` (where it runs) and its inputs, and gives values and a
`ui`."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from . import media
from .folders import Folders
from .pictures import Picture, apng, gif, jpeg, png, png_size

Images = Sequence[Picture]
_LATENT_SIDE = 2048
_PREVIEW_SIDE = 128  # pixels; a real server scales previews to 512
_TICK = 0.1  # seconds between two looks at the interrupt while a node sleeps


class NodeError(Exception):
    """A node fails on purpose; `kind` is the exception's type as the server reports it."""

    def __init__(self, message: str, kind: str = "ValueError") -> None:
        super().__init__(message)
        self.kind = kind


class WorkerDied(Exception):
    """A node raised what is no Exception (SystemExit): the worker is gone, nobody is told (recording 33)."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """The value of an ExecutionBlocker: what it reaches does not run. No message: silently."""

    message: str | None


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview picture; `format` is 1 for JPEG, 2 for PNG, as on the wire."""

    data: bytes
    format: int


@dataclass(frozen=True, slots=True)
class Done:
    """What a node gave: one value for each of its outputs, and what it shows (None: nothing)."""

    values: tuple[Any, ...] = ()
    ui: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Latent:
    """What a LATENT is in here: how the picture will look."""

    width: int
    height: int
    batch: int = 1
    seed: int = 0
    text: str = ""

    def pictures(self) -> tuple[Picture, ...]:
        size = min(self.width, _LATENT_SIDE), min(self.height, _LATENT_SIDE)
        return tuple(Picture(*size, seed=self.seed + number, text=self.text) for number in range(self.batch))


@dataclass(frozen=True, slots=True)
class Video:
    frames: tuple[Picture, ...]
    fps: float


@dataclass(frozen=True, slots=True)
class Audio:
    seconds: float
    seed: int = 0


class At(Protocol):
    """What a node may do while it runs. The engine gives it."""

    node_id: str
    folders: Folders
    step_delay: float
    previews: bool
    graph: Mapping[str, Any]
    extra: Mapping[str, Any]

    async def step(self, value: float, total: float, preview: Preview | None = None) -> None: ...
    async def pause(self, seconds: float) -> None: ...
    async def child(self, number: int, class_type: str, inputs: Mapping[str, Any]) -> tuple[Any, ...]: ...
    def say(self, text: str, *, everyone: bool) -> None: ...
    def send(self, kind: str, data: Any, *, everyone: bool) -> None: ...
    def reported(self, name: str, path: Path) -> str: ...


Node = Callable[..., Awaitable[Done]]
NODES: dict[str, Node] = {}


def _node(*names: str) -> Callable[[Node], Node]:
    def register(function: Node) -> Node:
        NODES.update(dict.fromkeys(names, function))
        return function

    return register


# Text to image


@_node("CheckpointLoaderSimple")
async def _checkpoint(at: At, ckpt_name: str) -> Done:
    return Done((ckpt_name, ckpt_name, ckpt_name))


@_node("CLIPTextEncode")
async def _encode_text(at: At, text: str, clip: Any) -> Done:
    return Done((text,))


@_node("EmptyLatentImage")
async def _empty_latent(at: At, width: int, height: int, batch_size: int) -> Done:
    return Done((Latent(width, height, batch_size),))


@_node("KSampler", "KSamplerAdvanced")
async def _sample(at: At, latent_image: Latent, positive: str, steps: int, **inputs: Any) -> Done:
    seed = inputs["seed"] if "seed" in inputs else inputs["noise_seed"]
    latent = replace(latent_image, seed=seed ^ latent_image.seed, text=positive)
    picture = latent.pictures()[0]
    for step in range(1, steps + 1):
        await at.pause(at.step_delay)
        await at.step(step, steps, preview_of(picture, step / steps) if at.previews else None)
    return Done((latent,))


@lru_cache(maxsize=64)
def _shown(picture: Picture, side: int) -> Preview:
    scale = side / max(picture.width, picture.height)
    return Preview(jpeg(picture.sized(round(picture.width * scale), round(picture.height * scale))), 1)


def preview_of(picture: Picture, part: float) -> Preview:
    """A JPEG preview that gets finer as `part` goes from 0 to 1."""
    return _shown(picture, _PREVIEW_SIDE // (4 if part < 0.34 else 2 if part < 0.67 else 1))


@_node("VAEDecode")
async def _decode(at: At, samples: Latent, vae: Any) -> Done:
    return Done((samples.pictures(),))


@_node("VAEEncode")
async def _encode(at: At, pixels: Images, vae: Any) -> Done:
    first = pixels[0]
    return Done((Latent(first.width, first.height, len(pixels), first.seed, first.text),))


# Images


@_node("LoadImage")
async def _load(at: At, image: str) -> Done:
    data = await asyncio.to_thread(at.folders.loaded(image).read_bytes)
    if not data.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF", b"GIF8")):
        raise NodeError(f"cannot identify image file {image!r}", "PIL.UnidentifiedImageError")
    width, height = png_size(data) or (64, 64)
    picture = Picture(1, 1, seed=zlib.crc32(data)).sized(width, height)
    return Done(((picture,), None))


@_node("EmptyImage")
async def _empty_image(at: At, width: int, height: int, batch_size: int, color: int) -> Done:
    return Done(((Picture(1, 1, color=color).sized(width, height),) * batch_size,))


@_node("ImageScale")
async def _scale(at: At, image: Images, width: int, height: int, **_: Any) -> Done:
    return Done((tuple(each.sized(width or each.width, height or each.height) for each in image),))


@_node("ImageInvert")
async def _invert(at: At, image: Images) -> Done:
    inverted = (
        replace(each, seed=~each.seed, color=None if each.color is None else each.color ^ 0xFFFFFF)
        for each in image
    )
    return Done((tuple(inverted),))


@_node("ImageBatch")
async def _batch(at: At, image1: Images, image2: Images) -> Done:
    return Done(((*image1, *image2),))


@_node("GetImageSize")
async def _size(at: At, image: Images) -> Done:
    width, height, count = image[0].width, image[0].height, len(image)
    at.say(f"width: {width}, height: {height}\n batch size: {count}", everyone=True)
    return Done((width, height, count))


# Saving. SaveImage and its kin write the graph and the UI's workflow into their files (ComfyUI nodes.py).


def _texts(at: At) -> dict[str, str]:
    more = at.extra.get("extra_pnginfo")
    extras = more if isinstance(more, dict) else {}
    return {"prompt": json.dumps(at.graph), **{key: json.dumps(value) for key, value in extras.items()}}


@dataclass(slots=True)
class _Saver:
    """Writes files of one prefix and reports them."""

    at: At
    prefix: str
    kind: str = "output"
    files: list[dict[str, Any]] = field(default_factory=list)

    def save(self, data: bytes, suffix: str, joint: str = "_", **more: Any) -> None:
        spot = self.at.folders.spot(self.prefix, self.kind)
        name = f"{spot.stem}_{spot.counter:05}{joint}.{suffix}"
        self.at.folders.write(spot, name, data)
        shown = self.at.reported(name, spot.folder / name)
        self.files.append({"filename": shown, "subfolder": spot.subfolder, "type": self.kind, **more})


@_node("SaveImage")
async def _save_image(at: At, images: Images, filename_prefix: str) -> Done:
    return _save_images(at, images, _Saver(at, filename_prefix))


@_node("PreviewImage")
async def _preview_image(at: At, images: Images) -> Done:
    return _save_images(at, images, _Saver(at, at.folders.temp_prefix, "temp"))


def _save_images(at: At, images: Images, saver: _Saver) -> Done:
    texts = _texts(at)
    for picture in images:
        saver.save(png(picture, texts), "png")
    return Done((images,), {"images": saver.files})


def _animated(at: At, prefix: str, data: bytes, suffix: str, value: Any) -> Done:
    saver = _Saver(at, prefix)
    saver.save(data, suffix)
    return Done((value,), {"images": saver.files, "animated": (True,)})


@_node("SaveAnimatedWEBP")
async def _save_webp(at: At, images: Images, filename_prefix: str, fps: float, **_: Any) -> Done:
    return _animated(at, filename_prefix, media.webp(images, fps), "webp", images)


@_node("SaveAnimatedPNG")
async def _save_apng(at: At, images: Images, filename_prefix: str, fps: float, **_: Any) -> Done:
    return _animated(at, filename_prefix, apng(images, fps, _texts(at)), "png", images)


@_node("SaveWEBM")
async def _save_webm(at: At, images: Images, filename_prefix: str, fps: float, **_: Any) -> Done:
    return _animated(at, filename_prefix, media.webm(images, fps), "webm", images)


@_node("CreateVideo")
async def _create_video(at: At, images: Images, fps: float, **_: Any) -> Done:
    return Done((Video(tuple(images), fps),))


@_node("SaveVideo")
async def _save_video(at: At, video: Video, filename_prefix: str, **_: Any) -> Done:
    return _animated(at, filename_prefix, media.mp4(video.frames, video.fps), "mp4", video)


@_node("EmptyAudio")
async def _empty_audio(at: At, duration: float, **_: Any) -> Done:
    return Done((Audio(min(duration, 60.0)),))


def _sound(at: At, audio: Audio, saver: _Saver, data: bytes, suffix: str) -> Done:
    saver.save(data, suffix, joint="")
    return Done((audio,), {"audio": saver.files})


@_node("SaveAudio")
async def _save_flac(at: At, audio: Audio, filename_prefix: str) -> Done:
    return _sound(at, audio, _Saver(at, filename_prefix), media.flac(audio.seconds, audio.seed), "flac")


@_node("SaveAudioMP3")
async def _save_mp3(at: At, audio: Audio, filename_prefix: str, **_: Any) -> Done:
    return _sound(at, audio, _Saver(at, filename_prefix), media.mp3(audio.seconds), "mp3")


@_node("SaveAudioOpus")
async def _save_opus(at: At, audio: Audio, filename_prefix: str, **_: Any) -> Done:
    return _sound(at, audio, _Saver(at, filename_prefix), media.opus(audio.seconds), "opus")


@_node("PreviewAudio")
async def _preview_audio(at: At, audio: Audio) -> Done:
    saver = _Saver(at, at.folders.temp_prefix, "temp")
    return _sound(at, audio, saver, media.flac(audio.seconds, audio.seed), "flac")


@_node("SimMesh")
async def _mesh(at: At, seed: int) -> Done:
    return Done((media.glb(seed),))


@_node("SaveGLB")
async def _save_glb(at: At, mesh: bytes, filename_prefix: str) -> Done:
    saver = _Saver(at, filename_prefix)
    saver.save(mesh, "glb")
    return Done((), {"3d": saver.files})


@_node("Preview3D")
async def _preview_3d(at: At, model_file: str) -> Done:
    return Done((), {"result": [model_file, None, None]})


# Text


@_node("PreviewAny")
async def _preview_any(at: At, source: Any) -> Done:
    return Done((str(source),), {"text": (str(source),)})


@_node("PrimitiveString")
async def _string(at: At, value: str) -> Done:
    return Done((value,))


# Nodes of the simulator alone


def _blank(image: Images | None) -> Images:
    return image or (Picture(64, 64, color=0x808080),)


@_node("SimSleep")
async def _sleep(at: At, seconds: float, image: Images | None = None) -> Done:
    await _doze(at, seconds)
    return Done((_blank(image),), {"text": [f"slept {seconds}"]})


async def _doze(at: At, seconds: float) -> None:
    ticks = max(1, round(seconds / _TICK))
    for tick in range(1, ticks + 1):
        await at.pause(seconds / ticks)
        await at.step(tick, ticks)


@_node("SimNoInterrupt")
async def _deaf_sleep(at: At, seconds: float, image: Images | None = None) -> Done:
    await at.pause(seconds)
    return Done((_blank(image),), {"text": [f"slept {seconds}"]})


@_node("SimFail")
async def _fail(at: At, message: str, exception: str, image: Images | None = None) -> Done:
    raise NodeError(message, exception)


@_node("SimDie")
async def _die(at: At, image: Images | None = None) -> Done:
    raise WorkerDied


@_node("SimBlocker")
async def _block(at: At, message: str, image: Images | None = None) -> Done:
    return Done((Blocker(message or None),))


@_node("SimNaN")
async def _nan(at: At) -> Done:
    return Done((), {"values": [float("nan"), float("inf"), 1.5]})


@_node("SimText")
async def _text(at: At, text: str) -> Done:
    return Done((text,), {"text": [text]})


@_node("SimBigOutput")
async def _big(at: At, size: int) -> Done:
    return Done((), {"text": ["x" * size]})


@_node("SimFile")
async def _file(at: At, filename_prefix: str, suffix: str, size: int) -> Done:
    saver = _Saver(at, filename_prefix)
    saver.save(b"", suffix)
    with (at.folders.base("output") / saver.files[0]["subfolder"] / saver.files[0]["filename"]).open(
        "r+b"
    ) as file:
        file.truncate(size)  # a sparse file: a gigabyte costs nothing
    return Done((), {"files": saver.files})


@_node("SimOutput")
async def _output(at: At, ui: str) -> Done:
    return Done((), json.loads(ui))


# The nodes of the recordings


@_node("RecSteps")
async def _rec_steps(
    at: At,
    *,
    seed: int,
    steps: int,
    delay: float,
    preview: str,
    width: int,
    height: int,
    batch: int,
    **_: Any,
) -> Done:
    pictures = Latent(width, height, batch, seed).pictures()
    for step in range(1, steps + 1):
        await at.pause(delay)
        await at.step(step, steps, _rec_preview(pictures[0], preview))
    return Done((pictures,))


def _rec_preview(picture: Picture, kind: str) -> Preview | None:
    if kind == "none":
        return None
    small = picture.sized(min(picture.width, _PREVIEW_SIDE), min(picture.height, _PREVIEW_SIDE))
    return Preview(jpeg(small), 1) if kind == "JPEG" else Preview(png(small), 2)


@_node("RecAsync")
async def _rec_async(at: At, steps: int, delay: float, seed: int) -> Done:
    return await _rec_steps(
        at, seed=seed, steps=steps, delay=delay, preview="none", width=64, height=64, batch=1
    )


@_node("RecExpand")
async def _rec_expand(at: At, seed: int, steps: int) -> Done:
    inputs = {
        "seed": seed,
        "steps": steps,
        "delay": 0.02,
        "preview": "none",
        "width": 64,
        "height": 64,
        "batch": 1,
    }
    values = await at.child(1, "RecSteps", inputs)
    await at.child(2, "PreviewImage", {"images": values[0]})
    return Done(values)


@_node("RecSleep")
async def _rec_sleep(
    at: At, seconds: float, cooperative: bool, seed: int, image: Images | None = None
) -> Done:
    await (_doze(at, seconds) if cooperative else at.pause(seconds))
    return Done((_blank(image),))


@_node("RecSleepOut")
async def _rec_sleep_out(at: At, seconds: float, seed: int) -> Done:
    await at.pause(seconds)
    return Done((), {"text": [f"slept {seconds}"]})


@_node("RecFail")
async def _rec_fail(at: At, image: Images, fail_at: int, message: str, kind: str) -> Done:
    for step in range(1, fail_at + 1):
        await at.pause(0.02)
        await at.step(step, 5)
    if kind == "SystemExit":
        raise WorkerDied
    raise NodeError(message, kind)


@_node("RecBlock")
async def _rec_block(at: At, image: Images, message: str, silent: bool) -> Done:
    return Done((Blocker(None if silent else message),))


@_node("RecCustomEvent")
async def _rec_event(at: At, seed: int) -> Done:
    at.send("rec.broadcast", {"node": at.node_id, "value": seed}, everyone=True)
    at.send("rec.targeted", {"node": at.node_id, "value": seed}, everyone=False)
    at.send("notification", {"value": "hello from a node", "id": str(seed)}, everyone=True)
    return Done()


@_node("RecProgressText")
async def _rec_text(at: At, text: str, count: int, seed: int) -> Done:
    for number in range(1, count + 1):
        await at.pause(0.03)
        at.say(f"{text} {number}/{count}", everyone=False)
    return Done((text,), {"text": [f"{text} done"]})


@_node("RecOddUI")
async def _rec_odd(at: At, kind: str, seed: int) -> Done:
    return await _nan(at)


@_node("RecBigUI")
async def _rec_big(at: At, kib: int, seed: int) -> Done:
    return Done((), {"text": ["x" * (kib * 1024)]})


@_node("RecOutputs")
async def _rec_outputs(at: At, prefix: str, seed: int) -> Done:
    pictures = (Picture(16, 16, seed), Picture(16, 16, seed + 1))
    spot = at.folders.spot(prefix)
    stem = f"{spot.stem}_{spot.counter:05}_"

    def store(data: bytes, suffix: str, **more: Any) -> dict[str, Any]:
        name = f"{stem}.{suffix}"
        at.folders.write(spot, name, data)
        shown = at.reported(name, spot.folder / name)
        return {"filename": shown, "subfolder": spot.subfolder, "type": "output", **more}

    unusable = {"workflow": None, "fullpath": "/server/side/path/not/usable.gif"}
    return Done((), {
        "gifs": [store(gif(pictures, 8), "gif", format="image/gif", frame_rate=8.0, **unusable)],
        "video": [store(media.mp4(pictures, 8), "mp4", format="video/h264-mp4")],
        "audio": [store(media.wav(0.1, seed), "wav")],
        "3d": [store(media.glb(seed), "glb")],
        "text": ["plain text value", '{"a": 1}'],
        "files": [store(b"hello\n", "txt"), store(b"<html>hello</html>", "html"), store(b"{}", "json")],
        "model_file": ["rec/media_as_string.glb"],
        "numbers": [1, 2.5, True, None],
    })  # fmt: skip
