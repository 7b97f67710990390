"""Numbers of bytes, parsed from options and formatted; decimal units, as for disks."""

from __future__ import annotations

import re


def parse_size(text: str) -> int | None:
    """A number of bytes such as 20GB, 500 MiB or 1000000; `None` for any other text."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*", text.lower(), re.ASCII)
    if found is None or (found[3] and not found[2]):
        return None
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def readable_size(size: float) -> str:
    """A formatted number of bytes: 11.8 kB, 2.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
