"""How the Space looks: one style sheet over Gradio's own variables, so that it follows the light and the dark mode."""

from __future__ import annotations

from typing import Any


# Fonts of the visitor's machine: nothing is fetched from anywhere.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
:root { --ts-for: rgba(16, 150, 120, .62); --ts-against: rgba(226, 120, 40, .66); --ts-accent: #0f766e; }
.dark { --ts-for: rgba(32, 178, 148, .62); --ts-against: rgba(222, 118, 48, .66); --ts-accent: #5eead4; }
.gradio-container .ts-html { color: var(--body-text-color); font-size: 15px; line-height: 1.5; }
.ts-head { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; padding: 10px 0 2px; }
.ts-head h1 { font-size: 24px; font-weight: 650; letter-spacing: -.01em; margin: 0; color: var(--body-text-color); }
.ts-head p { margin: 0; color: var(--body-text-color-subdued); }
.ts-html b { font-weight: 600; color: inherit; }
.ts-facts { color: var(--body-text-color-subdued); font-size: 13.5px; padding: 4px 0 8px; overflow-wrap: anywhere; }
.ts-facts b { color: var(--body-text-color); }
.ts-list { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--border-color-primary); }
.ts-row { display: grid; grid-template-columns: 26px 48px minmax(0, 1fr) 84px auto; gap: 0 12px; align-items: start;
  margin: 0; padding: 13px 2px; border-bottom: 1px solid var(--border-color-primary); }
.ts-place { font-size: 17px; font-weight: 650; text-align: right; font-variant-numeric: tabular-nums; }
.ts-move { font-size: 13px; line-height: 25px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ts-up { color: #0f7a62; } .ts-down { color: #b4530f; } .ts-same { color: var(--body-text-color-subdued); }
.dark .ts-up { color: #4fd1b0; } .dark .ts-down { color: #f0a05f; }
.ts-row details { margin: 0; }
.ts-row summary { cursor: pointer; list-style: none; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; overflow-wrap: anywhere; white-space: pre-line; unicode-bidi: isolate; }
.ts-row summary::-webkit-details-marker { display: none; }
.ts-row details[open] summary { display: block; }
.ts-id { font-family: var(--font-mono); font-size: 12px; color: var(--body-text-color-subdued); padding-top: 3px;
  overflow-wrap: anywhere; }
.ts-id span { color: inherit; }
.ts-title { font-weight: 600; display: block; }
.ts-score { font-variant-numeric: tabular-nums; text-align: right; font-size: 14px; line-height: 25px; }
.ts-bar { display: block; height: 4px; border-radius: 2px; background: var(--border-color-primary); overflow: hidden; }
.ts-bar > * { display: block; height: 100%; border-radius: 2px; background: var(--ts-accent); }
.ts-why { font: inherit; font-size: 13px; line-height: 18px; color: var(--ts-accent); background: none;
  cursor: pointer; border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 4px 10px;
  min-height: 28px; }
.ts-why:hover, .ts-why:focus-visible { border-color: var(--ts-accent); outline: none; }
.ts-notice { border: 1px solid var(--border-color-primary); border-left-width: 4px; border-radius: 6px;
  padding: 12px 14px; overflow-wrap: anywhere; white-space: pre-line; }
.ts-error { border-left-color: #c2410c; } .ts-hint { border-left-color: var(--ts-accent); }
.ts-query { font-size: 16px; margin: 2px 0 4px; overflow-wrap: anywhere; }
.ts-legend, .ts-sentence { color: var(--body-text-color-subdued); font-size: 13.5px; margin: 0 0 10px; }
.ts-sentence b { color: var(--body-text-color); }
.ts-scale { display: inline-block; width: 90px; height: 10px; border-radius: 3px; margin: 0 2px;
  background: linear-gradient(90deg, var(--ts-against), transparent 66%, var(--ts-for)); }
.ts-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 14px; }
.ts-side { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 14px; min-width: 0; }
.ts-wide { grid-column: 1 / -1; }
.ts-side h4 { display: flex; gap: 8px; align-items: center; margin: 0 0 6px; font-size: 14px; font-weight: 600;
  color: var(--body-text-color); }
.ts-figure { margin-left: auto; font-variant-numeric: tabular-nums; font-weight: 600; }
.ts-mark { display: inline-block; min-width: 20px; text-align: center; border-radius: 4px; font-size: 12px;
  line-height: 20px; font-weight: 650; background: var(--border-color-primary); color: var(--body-text-color); }
.ts-text { margin: 0 0 12px; font-size: 14px; color: var(--body-text-color-subdued); max-height: 12em; overflow: auto;
  overflow-wrap: anywhere; white-space: pre-line; unicode-bidi: isolate; }
.ts-tokens { display: flex; flex-wrap: wrap; gap: 6px 5px; padding-bottom: 2px; }
.ts-token { display: inline-flex; flex-direction: column; align-items: center; border-radius: 5px; padding: 3px 7px;
  border: 1px solid var(--border-color-primary); max-width: 100%; }
.ts-group { display: inline-flex; flex-wrap: wrap; max-width: 100%; }
.ts-group .ts-token + .ts-token { margin-left: -1px; border-top-left-radius: 0; border-bottom-left-radius: 0; }
.ts-group .ts-token:not(:last-child) { border-top-right-radius: 0; border-bottom-right-radius: 0; }
.ts-word { font-size: 15px; line-height: 20px; overflow-wrap: anywhere; }
.ts-value { font-size: 11.5px; line-height: 15px; font-variant-numeric: tabular-nums; opacity: .85; }
.ts-wide .ts-sentence { margin: 10px 0 0; }
.ts-logit { display: grid; grid-template-columns: minmax(44px, auto) 1fr 64px; gap: 10px; align-items: center;
  font-size: 14px; padding: 3px 0; }
.ts-logit .ts-figure { text-align: right; }
.ts-logit .ts-bar { height: 8px; border-radius: 4px;
  background: linear-gradient(90deg, var(--border-color-primary) 49.5%,
  var(--body-text-color-subdued) 49.5% 50.5%, var(--border-color-primary) 50.5%); }
.ts-html table.ts-table { width: 100%; border-collapse: collapse; border: none; font-size: 14px; margin: 0; }
.ts-html .ts-table tr, .ts-html .ts-table thead { border: none; background: none; }
.ts-table th { text-align: right; font-weight: 600; font-size: 13px; color: var(--body-text-color-subdued);
  padding: 6px 8px; border: none; border-bottom: 1px solid var(--border-color-primary); white-space: nowrap; }
.ts-table th:last-child { text-align: left; }
.ts-table td { border: none; border-bottom: 1px solid var(--border-color-primary); padding: 9px 8px;
  vertical-align: top; background: none; color: inherit; }
.ts-num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.ts-num small { display: block; font-size: 12px; color: var(--body-text-color-subdued); }
.ts-cell > div:first-child { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
  overflow: hidden; overflow-wrap: anywhere; unicode-bidi: isolate; }
#query textarea { font-size: 16px; field-sizing: content; height: auto !important; max-height: 6em; }
#rank { max-width: 140px; min-height: 48px; }
input[role=listbox] { text-overflow: ellipsis; padding-right: 26px; }
@media (max-width: 640px) {
  .tab-container button[role=tab] { padding-left: 10px; padding-right: 10px; }
  .gallery { flex-wrap: nowrap !important; overflow-x: auto; }
  .gallery .gallery-item { flex: none; max-width: 75vw; }
  .ts-row { grid-template-columns: 26px minmax(0, 1fr) auto; gap: 4px 10px; }
  .ts-place { grid-row: 1; grid-column: 1; }
  .ts-body { grid-row: 1; grid-column: 2 / -1; }
  .ts-row .ts-move { grid-row: 2; grid-column: 1; text-align: right; }
  .ts-score { grid-row: 2; grid-column: 2; display: flex; align-items: center; gap: 10px; }
  .ts-score .ts-bar { flex: 1; max-width: 140px; }
  .ts-why { grid-row: 2; grid-column: 3; min-height: 34px; padding: 4px 14px; }
  .ts-table th, .ts-table td { padding: 8px 5px; }
}
"""
# Gradio confines `css` to what lies inside its main column; this is for what lies around it.
PAGE_CSS = """
gradio-app { width: 100%; }
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
footer .divider, footer img { display: none !important; }
@media (max-width: 640px) {
  .gradio-container > .main { padding: 4px 10px 16px !important; }
  gradio-app, .gradio-container, .gradio-container > .main, .gradio-container > .main > .wrap, main.contain,
  main.contain > .column { min-width: 0 !important; max-width: 100vw; }
}
"""

# To the results: on a phone they stand below the form, and a long list may have been scrolled through.
SHOW_RESULTS = """
() => {
  const results = document.getElementById('results');
  const top = results.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight * 0.6) results.scrollIntoView({behavior: 'smooth', block: 'start'});
}
"""

# One listener for all buttons of a list that is drawn anew with every ranking.
ASK_WHY = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-explain]');
  if (button) trigger('click', {row: Number(button.dataset.explain)});
});
"""


def theme(gr: Any) -> Any:
    """Gradio's plain theme with the visitor's own fonts and one quiet colour."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=list(FONTS),
        font_mono=list(MONOSPACE),
        radius_size="md",
    ).set(
        body_text_color_subdued="*neutral_500",  # the theme's own is too pale to read on white
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
