"""mypy over the package as it is installed: `python tests/check_types.py`.

In a checkout `eval/`, `trainers/` and `hub_cards/` stand beside `modeling_tsarank/`, and an installation puts them
inside it. mypy knows nothing of that mapping: in the checkout every import of `modeling_tsarank.eval` would be `Any`.
So it checks a folder of links that has the installed shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / ".mypy_cache" / "assembled"


def assemble(folder: Path) -> Path:
    """Makes `folder/modeling_tsarank` of links to the checkout, as pyproject.toml maps its packages."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        places = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    for package, place in places.items():
        target = folder / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.py"):
            old.unlink()
        for module in (ROOT / place).glob("*.py"):
            (target / module.name).symlink_to(module)
    return folder


def main() -> int:
    """Prints what mypy finds, with the places in the checkout, and returns its exit status."""
    folder = assemble(TREE)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "modeling_tsarank"]
    environment = {**os.environ, "MYPYPATH": str(folder)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment, cwd=ROOT)
    found = done.stdout.replace(f"{folder.relative_to(ROOT)}/", "")
    for room in ("eval", "trainers", "hub_cards"):
        found = found.replace(f"modeling_tsarank/{room}/", f"{room}/")
    sys.stdout.write(found)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
