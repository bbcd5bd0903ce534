"""Write the templates, and the page about their webhooks: `./dev n8n`.

With --check nothing is written, and a file that differs is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from alert import alert
from api_page import API, page
from health import health
from jobs import generate, status

FOLDER = Path(__file__).resolve().parent.parent


def files() -> Iterator[tuple[Path, str]]:
    """Each file and what belongs into it."""
    for name, template in (
        ("comfyui-generate", generate()),
        ("comfyui-status", status()),
        ("comfyui-healthcheck", health()),
        ("comfyui-error-alert", alert()),
    ):
        yield FOLDER / f"{name}.json", template.to_json()
    yield API.with_suffix(".md"), page()


def main(arguments: list[str]) -> int:
    """Exit code: 1 when --check found a difference."""
    stale = [
        (path, text)
        for path, text in files()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if arguments != ["--check"]:
        for path, text in stale:
            path.write_text(text, encoding="utf-8")
        return 0
    for path, _ in stale:
        print(f"{path.name} is not what n8n/source makes: run ./dev n8n", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
