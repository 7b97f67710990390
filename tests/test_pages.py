"""Every block of the documentation runs, on small models; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, make_models, run_page


RUNNABLE = [page for page in PAGES if page.name != "README.md" and any(blocks(page, "python", "bash"))]

LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").glob("*.md"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # and back again
    for name in ("HF_HOME", "TSARANK_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = run_page(page, models, tmp_path)
    assert run.ran + run.parsed >= 1


def test_links_lead_somewhere() -> None:
    for page in LINKED:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("http"):
                continue
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            assert place.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {target}"
