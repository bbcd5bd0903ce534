"""What a file is and whether it is whole, told from its bytes as they pass by, in constant memory.

No picture is decoded: the containers themselves say where they end, and PNG and Ogg carry checksums. What
that finds:

- PNG, APNG, Ogg: a cut anywhere, a changed byte anywhere. GLB, safetensors: a cut anywhere.
- JPEG, GIF, WebP, BMP, WAV, AVI, MP4, MOV, AVIF, WebM, Matroska: a cut anywhere, except where a file says
  that its own length is unknown (a live WebM, a streamed WAV or RF64, an MP4 box "to the end") or where a
  fragmented MP4 is cut exactly between two fragments.
- FLAC, MP3: only a damaged beginning (and an MP3 shorter than its Xing header says); they do not say where
  they end.
- EXR, TIFF, AAC and others: only that the file begins as its name says. Texts and unknown kinds: no verdict.

Bytes behind the end of a PNG, JPEG, GIF, BMP or RIFF file are accepted, as every decoder accepts them: tools
append data there (motion photos, archives), and a download's length is checked elsewhere. GLB, MP4, WebM and
Ogg must end where they say.
"""

from __future__ import annotations

from .inspector import Inspector, MediaInfo
from .sniffing import HEAD_SIZE, media_type_of, sniff, suffix_of
from .tape import Damaged

__all__ = ["HEAD_SIZE", "Damaged", "Inspector", "MediaInfo", "media_type_of", "sniff", "suffix_of"]
