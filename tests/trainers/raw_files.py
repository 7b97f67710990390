"""Self-written raw files: texts of invented words, and how they are written."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any


class Writer:
    """Texts of invented words, so that no two are near each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        ends = ("ba", "ko", "ti", "lu", "ren", "sa", "mi", "dor", "ve", "pun")
        self.words = [a + b + c for a in ends for b in ends for c in ends[:3]]

    def pair(self) -> tuple[str, str]:
        """A document of 24 words and a query of four of them."""
        document = self.random.sample(self.words, 24)
        return " ".join(document[:4]), " ".join(self.random.sample(document, 24))

    def text(self) -> str:
        return self.pair()[1]


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
