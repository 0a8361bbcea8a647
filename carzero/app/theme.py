"""The page's own theme: fonts of the system, one look in light and dark surroundings."""

from __future__ import annotations

import inspect

import gradio as gr

_INK, _SOFT, _LINE, _GROUND, _ACCENT = "#17202a", "#4a5763", "#d5dce3", "#f1f4f7", "#0b5a73"


def make_theme() -> gr.themes.Base:
    """Text of at least AA contrast on every ground; no font, image or script of another host."""
    theme = gr.themes.Base(
        font=["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
        text_size=gr.themes.sizes.text_md,
        radius_size=gr.themes.sizes.radius_md,
    )
    theme.set(
        body_background_fill=_GROUND, body_text_color=_INK, body_text_color_subdued=_SOFT,
        background_fill_primary="#ffffff", background_fill_secondary=_GROUND,
        border_color_primary=_LINE, border_color_accent=_ACCENT, color_accent=_ACCENT, color_accent_soft="#e3f0f4",
        block_background_fill="#ffffff", block_border_color=_LINE, block_border_width="0px", block_shadow="none",
        block_label_text_color=_SOFT, block_title_text_color=_INK, block_title_text_weight="600", block_padding="0px",
        block_info_text_color=_SOFT,
        input_background_fill="#ffffff", input_border_color="#7b8894", input_border_width="1px",
        input_border_color_focus=_ACCENT, input_placeholder_color=_SOFT, input_shadow="none",
        button_primary_background_fill=_ACCENT, button_primary_background_fill_hover="#084658",
        button_primary_text_color="#ffffff", button_primary_border_color=_ACCENT,
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_hover="#e3f0f4",
        button_secondary_text_color=_ACCENT, button_secondary_border_color=_ACCENT, button_border_width="1px",
        loader_color=_ACCENT, link_text_color=_ACCENT,
    )  # fmt: skip
    # what is dark in other themes is as light here: the page does not follow the system
    names = [name for name in inspect.signature(theme.set).parameters if name.endswith("_dark")]
    return theme.set(**{name: getattr(theme, name.removesuffix("_dark"), None) for name in names})
