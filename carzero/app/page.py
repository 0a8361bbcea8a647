"""The page itself: components of gradio, and which function answers which of them."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from carzero.app import view
from carzero.app.asking import benchmark_choices, benchmark_findings, read_findings, write_findings
from carzero.app.desk import Desk, Reading
from carzero.app.files import write_map, write_scores
from carzero.app.radiograph import Radiograph, draw_radiograph, open_radiograph
from carzero.errors import UserError

#: Name of the choice that stands for the prompts of the model's reference set.
REFERENCE = "reference"
FIRST = "Pleural Effusion\nPneumothorax\nCardiomegaly\nPulmonary Consolidation\nPulmonary Edema"
#: Seconds that a closed or idle page's radiograph stays in memory.
KEPT = 3600

_ROWS_JS = """
element.addEventListener('click', event => {
  const row = event.target.closest('[data-finding]');
  if (!row) return;
  element.querySelectorAll('[data-finding]').forEach(one => one.setAttribute('aria-pressed', String(one === row)));
  trigger('pick', {number: Number(row.dataset.finding)});
});
"""
_PICTURE_JS = """
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-show]');
  if (!chosen) return;
  chosen.closest('figure').dataset.view = chosen.dataset.show;
  element.querySelectorAll('[data-show]').forEach(one => one.setAttribute('aria-pressed', String(one === chosen)));
});
element.addEventListener('input', event => {
  if (event.target.matches('[data-strength]'))
    event.target.closest('figure').style.setProperty('--strength', event.target.value / 100);
});
"""
#: A phone shows the picture above the scores: bring it back into view.
_SHOW_PICTURE = "() => { document.querySelector('#cz-picture').scrollIntoView({block: 'nearest'}); }"


def build_page(desk: Desk, folder: Path, *, local: bool) -> gr.Blocks:
    """The page of a model.

    Args:
        desk: answers.
        folder: for downloads, which gradio serves from a copy of its own.
        local: only this machine reaches it; else the page says that it is open.
    """
    with gr.Blocks(title="carzero", analytics_enabled=False) as page:
        shot, reading = gr.State(None, time_to_live=KEPT), gr.State(None, time_to_live=KEPT)
        gr.HTML(view.header(desk, local=local))
        with gr.Row(elem_classes="cz-main"):
            with gr.Column(elem_classes="cz-card", min_width=320, scale=6):
                gr.HTML("<h2>1. Radiograph</h2>")
                upload = gr.File(height=72, elem_id="cz-upload", show_label=False)
                draw = gr.Button("No file at hand? Draw one", size="sm", elem_id="cz-draw")
                unread = gr.HTML("", elem_id="cz-unread")
                picture = gr.HTML(view.empty_picture(), js_on_load=_PICTURE_JS, elem_id="cz-picture")
            with gr.Column(elem_classes="cz-card", min_width=320, scale=5):
                gr.HTML("<h2>2. Findings</h2>")
                first = REFERENCE if desk.known else ""
                benchmark = gr.Dropdown(_prompt_sets(desk), value=first, label="Prompt set", elem_id="cz-set")
                findings = gr.Textbox(
                    write_findings(desk.known) if desk.known else FIRST,
                    label="Findings, one a line",
                    info="Asked as “There is …”; a line that begins so, or stands in double quotes, is asked as it is.",
                    lines=5,
                    max_lines=8,
                    elem_id="cz-findings",
                )
                classify = gr.Button("Classify", variant="primary", elem_id="cz-classify")
                unscored = gr.HTML("", elem_id="cz-unscored")
                gr.HTML("<h2>3. Scores</h2>")
                rows = gr.HTML(view.empty_scores(), js_on_load=_ROWS_JS, elem_id="cz-rows")
                with gr.Row():
                    table, image = (
                        gr.DownloadButton(name, interactive=False, size="sm", elem_id=key, min_width=120)
                        for name, key in (("Scores (CSV)", "cz-csv"), ("Map (PNG)", "cz-png"))
                    )
        gr.HTML(view.footer())

        numbers = itertools.count(1)
        nothing = gr.update(value=None, interactive=False)

        def show(new: Radiograph) -> dict[Any, Any]:
            return {
                upload: None, unread: "", unscored: "", shot: new, reading: None, picture: view.picture(new),
                rows: view.empty_scores(), table: nothing, image: nothing,
            }  # fmt: skip

        def open_file(path: str | None, before: Radiograph | None) -> dict[Any, Any]:
            # a file that was removed asks for nothing
            if path is None:
                return {unread: gr.skip()}
            try:
                return show(open_radiograph(path))
            except UserError as error:
                kept = "" if before is None else " What is shown is the radiograph before it."
                return {upload: None, unread: view.alert(f"{error}{kept}")}
            finally:
                os.unlink(path)

        def score(text: str, before: Radiograph | None) -> dict[Any, Any]:
            if before is None:
                return {unscored: view.alert("Choose a radiograph first: drop a file, or draw one.")}
            try:
                new = desk.read(before, read_findings(text))
            except UserError as error:
                return {unscored: view.alert(str(error))}
            path = write_scores(new, _new_folder(folder))
            return {
                unscored: "", reading: new, picture: view.picture(before), rows: view.scores(new, desk),
                table: gr.update(value=path, interactive=True), image: nothing,
            }  # fmt: skip

        def look(event: gr.EventData, asked: Reading | None) -> dict[Any, Any]:
            # a page that was left open for longer than its radiograph is kept
            if asked is None:
                return {unscored: view.alert("This radiograph is no longer kept: choose it again.")}
            if not desk.maps:
                return {picture: view.scores_only(asked, event.number)}
            desk.look(asked, event.number)
            path = write_map(asked, event.number, _new_folder(folder))
            return {picture: view.finding(asked, event.number), image: gr.update(value=path, interactive=True)}

        hidden: dict[str, Any] = {"api_visibility": "private"}
        all_of_it = [upload, unread, unscored, shot, reading, picture, rows, table, image]
        upload.upload(open_file, [upload, shot], all_of_it, **hidden)
        draw.click(lambda: show(draw_radiograph(next(numbers))), None, all_of_it, **hidden)
        benchmark.input(lambda name: _lines(name, desk), benchmark, findings, **hidden)
        classify.click(
            score, [findings, shot], [unscored, reading, picture, rows, table, image], show_progress_on=[rows], **hidden
        )
        picked = rows.pick(look, reading, [unscored, picture, image], show_progress_on=[picture], **hidden)
        picked.then(None, None, None, js=_SHOW_PICTURE, **hidden)
    return page


def _prompt_sets(desk: Desk) -> list[tuple[str, str]]:
    own = [(f"This model's reference set ({len(desk.known)} findings)", REFERENCE)] if desk.known else []
    return [("Your own findings", ""), *own, *benchmark_choices()]


def _lines(name: str, desk: Desk) -> Any:
    """What a choice of prompt set writes into the findings; own findings stay as they are."""
    if not name:
        return gr.skip()
    return write_findings(desk.known) if name == REFERENCE else benchmark_findings(name)


def _new_folder(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))
