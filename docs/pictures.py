"""The pictures of the documentation: `python docs/pictures.py` writes docs/images/*.svg (a test holds them to this).

They stand on a light card of their own, so that they read alike on light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH = 600
INK, GREY, LINE = "#1f2933", "#52606d", "#9aa5b1"
# what is shared, what is worked on, what comes out; each legible under INK
BLUE, ORANGE, GREEN, PALE = "#cfe3f7", "#fbd7a6", "#cdebd0", "#eef1f4"


def rect(x: float, y: float, w: float, h: float, fill: str = PALE, line: str = LINE) -> str:
    """A box."""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" stroke="{line}"/>'


def say(
    x: float, y: float, *lines: str, size: int = 15, fill: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    """Lines of text, the first with its baseline at y."""
    weight = ' font-weight="600"' if bold else ""
    place = f'font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}'
    return "".join(
        f'<text x="{x:g}" y="{y + 1.3 * size * i:g}" {place}>{escape(line)}</text>' for i, line in enumerate(lines)
    )


def box(x: float, y: float, w: float, h: float, *lines: str, fill: str = PALE, size: int = 15) -> str:
    """A box with lines of text in its middle."""
    first = y + h / 2 + 0.35 * size - 0.65 * size * (len(lines) - 1)
    return rect(x, y, w, h, fill) + say(x + w / 2, first, *lines, size=size, anchor="middle")


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A line with a head at its second end."""
    ends = f'x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}"'
    return f'<line {ends} stroke="{GREY}" stroke-width="1.6" marker-end="url(#a)"/>'


def design() -> tuple[int, str, list[str]]:
    """Tiles and blocks of pairs."""
    parts = [say(168, 28, "Q queries", size=14, fill=GREY, anchor="middle")]
    parts.append(
        f'<g transform="rotate(-90 26 150)">{say(26, 150, "M memories", size=14, fill=GREY, anchor="middle")}</g>'
    )
    for m in range(8):
        for q in range(10):
            fill = PALE if m not in (2, 3, 4) else ORANGE if q in (4, 5, 6) else BLUE
            parts.append(rect(38 + 26 * q, 40 + 26 * m, 24, 24, fill))
    parts += [
        box(340, 36, 244, 62, "tile of memories: keys and", "values of all layers, made once", fill=BLUE),
        arrow(462, 100, 462, 122),
        box(340, 124, 244, 62, "block of pairs: L layers", "in the same working memory", fill=ORANGE),
        arrow(462, 188, 462, 210),
        box(340, 212, 244, 36, "logits [M, Q]", fill=GREEN),
        say(20, 288, "Kept for the backward: inputs and the seed. Each block runs again there,"),
        say(20, 308, "so memory is that of a tile, whatever M and Q are."),
    ]
    return 324, "Pairs are cut into tiles of memories and blocks of queries", parts


def kernels() -> tuple[int, str, list[str]]:
    """The five launches of a layer."""
    rows = [
        ("x Wq", "LayerNorm, bias", "q"),
        ("q kᵀ, softmax, times v", "log n, dropout", "o"),
        ("o Wo", "bias, dropout, residual, statistics", "t, x"),
        ("x W1", "LayerNorm, ReLU, dropout", "h"),
        ("h W2", "bias, dropout, residual, statistics", "t, x"),
    ]
    parts = [
        say(101, 30, "product", size=14, fill=GREY, anchor="middle"),
        say(350, 30, "in registers, before it is written", size=14, fill=GREY, anchor="middle"),
        say(550, 30, "memory", size=14, fill=GREY, anchor="middle"),
    ]
    for i, (product, epilogue, written) in enumerate(rows):
        y = 42 + 50 * i
        parts += [box(14, y, 178, 36, product, fill=BLUE), arrow(194, y + 18, 210, y + 18)]
        parts += [box(212, y, 278, 36, epilogue, fill=ORANGE), arrow(492, y + 18, 512, y + 18)]
        parts.append(box(514, y, 72, 36, written, fill=GREEN))
    parts.append(say(16, 312, "x is t less a shift, in 16 bits; the mean leaves after the product."))
    return 328, "One decoder layer is five launches", parts


def cuda() -> tuple[int, str, list[str]]:
    """A block of the attention core."""
    parts = [
        rect(14, 14, 572, 240, "#ffffff"),
        say(26, 36, "one block: one memory, one head", size=14, fill=GREY),
        box(26, 50, 150, 190, "shared memory", "", "keys and values", "of the memory,", "copied once", fill=BLUE),
    ]
    for i, name in enumerate(("warp 1", "warp 2", "...", "warp 8")):
        y = 50 + 49 * i
        if name == "...":
            parts.append(say(390, y + 26, "...", anchor="middle", bold=True))
            continue
        parts += [arrow(178, y + 21, 206, y + 21)]
        parts.append(
            box(
                208, y, 262, 42, f"{name}: 16 or 32 queries,", "scores of whole rows in registers", fill=ORANGE, size=14
            )
        )
        parts += [arrow(472, y + 21, 496, y + 21), box(498, y, 76, 42, "output", fill=GREEN, size=14)]
    parts.append(say(14, 282, "Queries go from memory to registers; no warp waits for another."))
    parts.append(say(14, 302, "Every number has one owner: no atomics."))
    return 318, "A block of the attention core holds one memory's keys and values", parts


def training() -> tuple[int, str, list[str]]:
    """A batch over four processes."""
    parts = [say(160, 28, "all texts, process by process", size=14, fill=GREY, anchor="middle")]
    for i in range(4):
        y = 40 + 50 * i
        parts += [rect(50, y, 220, 46, ORANGE if i == 1 else PALE)]
        parts += [say(276, y + 28, str(i + 1), size=14, bold=i == 1)]
        # pairs of an image with its own text
        parts.append(rect(50 + 55 * i, y, 55, 46, GREEN, GREY))
    parts.append(f'<g transform="rotate(-90 34 140)">{say(34, 140, "images", size=14, fill=GREY, anchor="middle")}</g>')
    parts += [
        box(310, 40, 276, 56, "tokens: of own images and texts,", "stay in the process", fill=BLUE),
        box(310, 112, 276, 56, "global vectors: one a sample,", "gathered from all processes", fill=BLUE),
        box(310, 184, 276, 56, "columns: one log-sum-exp each,", "exchanged between processes", fill=GREEN),
        say(16, 274, "Process 2 scores its images (orange) against every text; green: own texts."),
        say(16, 294, "Loss and gradient are those of the whole batch on one device."),
    ]
    return 312, "Each process holds a band of the whole batch's logits", parts


def prompts() -> tuple[int, str, list[str]]:
    """A sentence of a report and what becomes of it."""
    words = [
        ("Small", ORANGE, "severity"), ("left", ORANGE, "side"), ("effusion", BLUE, "finding"),
        ("is again seen,", "", ""), ("no", GREEN, "negation"), ("pneumothorax.", BLUE, "finding"),
    ]  # fmt: skip
    parts, x = [say(16, 30, "report", size=14, fill=GREY)], 16.0
    for word, fill, kind in words:
        w = max(9 * len(word), 7.6 * len(kind)) + 8
        parts += [rect(x, 40, w, 32, fill)] if fill else []
        parts += [say(x + w / 2, 61, word, size=16, anchor="middle")]
        parts += [say(x + w / 2, 90, kind, size=14, fill=GREY, anchor="middle")] if kind else []
        x += w + 4
    parts += [
        arrow(130, 100, 130, 124),
        arrow(440, 100, 440, 124),
        say(16, 144, "statements", size=14, fill=GREY),
        box(16, 154, 290, 36, "pleural effusion, small, left, affirmed"),
        box(320, 154, 264, 36, "pneumothorax, negated"),
        arrow(130, 192, 130, 216),
        arrow(440, 192, 440, 216),
        say(16, 236, "standard sentences", size=14, fill=GREY),
        box(16, 246, 290, 36, "There is small left pleural effusion.", fill=GREEN),
        box(320, 246, 264, 36, "There is no pneumothorax.", fill=GREEN),
    ]
    return 298, "From a report's sentence to statements to standard sentences", parts


def grounding() -> tuple[int, str, list[str]]:
    """From the file to a map over it."""

    def chest(x: float, y: float, w: float, h: float) -> str:
        lung = f'rx="{0.15 * w:g}" ry="{0.32 * h:g}" fill="#7b8794"/>'
        left, right = (f'<ellipse cx="{x + part * w:g}" cy="{y + h / 2:g}" {lung}' for part in (0.3, 0.7))
        return rect(x, y, w, h, "#cbd2d9") + left + right

    def glow(x: float, y: float, r: float) -> str:
        return "".join(
            f'<circle cx="{x:g}" cy="{y:g}" r="{r * k:g}" fill="#e8590c" fill-opacity="0.3"/>' for k in (1, 0.65, 0.3)
        )

    parts = [chest(20, 50, 120, 150), say(80, 222, "original", anchor="middle")]
    parts += [arrow(146, 125, 170, 125), rect(176, 50, 150, 150, INK), chest(191, 50, 120, 150)]
    parts.append('<rect x="185" y="59" width="132" height="132" fill="none" stroke="#ffffff" stroke-dasharray="5 4"/>')
    parts += [say(251, 222, "padded, cropped", anchor="middle"), arrow(332, 125, 354, 125)]
    for row in range(6):
        for column in range(6):
            near = math.exp(-((row - 4) ** 2 + (column - 4) ** 2) / 1.6)
            parts.append(
                f'<rect x="{360 + 18 * column}" y="{71 + 18 * row}" width="17" height="17" fill="#e8590c" '
                f'fill-opacity="{0.06 + 0.9 * near:.2f}"/>'
            )
    parts += [say(414, 222, "patches", anchor="middle"), arrow(472, 125, 484, 125), chest(490, 64, 98, 122)]
    parts += [glow(560, 152, 22), say(539, 222, "map", anchor="middle")]
    parts.append(say(20, 258, "The prompt's attention to the patches, averaged, goes over the original:"))
    parts.append(say(20, 278, "resizing, padding and cropping are undone."))
    # no air above the first row
    parts = ['<g transform="translate(0 -28)">', *parts, "</g>"]
    return 266, "How attention becomes a map over the original image", parts


def evaluation() -> tuple[int, str, list[str]]:
    """The bootstrap of patients."""
    images = {"A": 2, "B": 1, "C": 3, "D": 1}
    colours = dict(zip(images, (BLUE, ORANGE, GREEN, PALE)))
    parts: list[str] = []

    def patients(x: float, names: str, title: str) -> None:
        parts.append(say(x, 30, title, size=14, fill=GREY))
        for i, name in enumerate(names):
            parts.append(say(x, 64 + 40 * i, name, bold=True))
            parts.extend(rect(x + 22 + 30 * j, 46 + 40 * i, 26, 26, colours[name]) for j in range(images[name]))

    patients(20, "ABCD", "patients, their images")
    parts.append(arrow(156, 120, 196, 120))
    patients(206, "AACD", "drawn, 1,000 times")
    parts += [arrow(330, 120, 370, 120), say(484, 30, "AUROC of each draw", size=14, fill=GREY, anchor="middle")]
    for i in range(21):
        height = 130 * math.exp(-(((i - 10) / 5) ** 2))
        inside = 2 <= i <= 18
        parts.append(rect(380 + 10 * i, 196 - height, 9, height, GREEN if inside else PALE))
    for i, quantile in ((2, "2.5 %"), (19, "97.5 %")):
        x = 379.5 + 10 * i
        parts.append(f'<line x1="{x}" y1="60" x2="{x}" y2="204" stroke="{INK}" stroke-dasharray="4 3"/>')
        parts.append(say(x, 220, quantile, size=14, anchor="middle"))
    parts.append(say(20, 254, "All images of a patient come and go together; the middle 95 % of the draws"))
    parts.append(say(20, 274, "are the interval."))
    return 290, "Intervals come from drawing whole patients", parts


PICTURES: tuple[Callable[[], tuple[int, str, list[str]]], ...] = (
    design, kernels, cuda, training, prompts, grounding, evaluation,
)  # fmt: skip


def svg(picture: Callable[[], tuple[int, str, list[str]]]) -> str:
    """The file of one picture."""
    height, title, parts = picture()
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" \
height="{height}" role="img" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif">
<title>{escape(title)}</title>
<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0 8 4 0 8z" fill="{GREY}"/></marker></defs>
<rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfcfd" stroke="#dde2e7"/>
{body}
</svg>
"""


if __name__ == "__main__":
    for picture in PICTURES:
        (IMAGES / f"{picture.__name__}.svg").write_text(svg(picture), encoding="utf-8")
