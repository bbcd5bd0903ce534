"""Figures as people read them: counts, sizes, rates, spans of time. Pure."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def size_text(size: float | None) -> str:
    """A size in bytes for people: 1536 is "1.5 KiB"."""
    if size is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def rate_text(rate: float) -> str:
    """What happens in a second, or in a minute where that is little."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def clock(seconds: float) -> str:
    """A span of time as H:MM:SS."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
