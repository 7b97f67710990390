"""The Space's appearance: style sheets, two scripts and the theme."""

from __future__ import annotations

from importlib import resources
from typing import Any


CSS = resources.files(__package__).joinpath("app.css").read_text(encoding="utf-8")
PAGE_CSS = resources.files(__package__).joinpath("app_page.css").read_text(encoding="utf-8")

# Scrolls to the results: on a phone they are below the form, and a long list may have been scrolled through.
SHOW_RESULTS = """
() => {
  const results = document.getElementById('results');
  const top = results.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight * 0.6) results.scrollIntoView({behavior: 'smooth', block: 'start'});
}
"""

# One listener for all buttons of a list that is re-rendered with every ranking.
ASK_WHY = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-explain]');
  if (button) trigger('click', {row: Number(button.dataset.explain)});
});
"""


def theme(gr: Any) -> Any:
    """Gradio's plain theme with system fonts, so that nothing is downloaded, and one muted colour."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
        radius_size="md",
    ).set(
        body_text_color_subdued="*neutral_500",  # the theme's own has too little contrast on white
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
