"""The notebooks as pages: their text, code and what it printed and drew when it was last run."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "notebooks"
_SOURCE = "*Run it: `notebooks/{}.ipynb`.*"


def all_pages() -> Iterator[tuple[str, str | bytes]]:
    """Path and content of the page of every notebook, and of its pictures."""
    for file in sorted(FOLDER.glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        pictures: list[bytes] = []
        parts = [part for cell in cells for part in _parts(cell, file.stem, pictures)]
        parts.insert(1, _SOURCE.format(file.stem))
        yield f"notebooks/{file.stem}.md", "\n\n".join(parts) + "\n"
        for number, picture in enumerate(pictures):
            yield f"notebooks/{_picture(file.stem, number)}", picture


def _parts(cell: Mapping[str, Any], name: str, pictures: list[bytes]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text.replace("](../docs/", "](../")
    elif text.strip():
        yield f"```python\n{text}\n```"
        for output in cell["outputs"]:
            yield from _output(output, name, pictures)


def _output(output: Mapping[str, Any], name: str, pictures: list[bytes]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        yield f"![What the cell above drew]({_picture(name, len(pictures))})"
        pictures.append(base64.b64decode("".join(data["image/png"])))
    elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
        yield f"```text\n{text}\n```"


def _picture(name: str, number: int) -> str:
    return f"{name}-{number}.png"
