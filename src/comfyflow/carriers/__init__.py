"""The graph that ComfyUI writes into what it makes: `prompt` and `workflow`, as the raw JSON texts.

PNG (tEXt, zTXt, iTXt, and `comf` of animated ones), WebP, JPEG and AVIF (Exif), EXR, MP4 and MOV, WebM, FLAC,
MP3, Opus and Ogg, GLB, SVG and safetensors (latents). Only headers are read: pixels, frames and samples are
stepped over. Every walk is counted and all that is kept is weighed, so a hostile file ends quickly.
Sources: ComfyUI nodes.py, comfy_extras/nodes_images.py, nodes_video.py and nodes_save_3d.py,
comfy_api/latest/_ui.py, 0.27.0 and 0.3.64; the official frontend's readers (src/scripts/metadata, 1.45.20);
recordings/carriers. `media` walks the same containers for another duty: it takes a file once, in pieces, as
it arrives, and looks at pixels too; here the file can be sought, and the payload must not be read.
"""

from __future__ import annotations

from .kinds import Carried, carried

__all__ = ["Carried", "carried"]
