"""The page in a real Chromium: what a person does with it, and what it must not do."""

from __future__ import annotations

import csv
import re

import cv2
import httpx
import numpy as np
import pytest
from app_inputs import SECRETS, bomb, dicom, radiograph

from carzero.app.radiograph import MAX_BYTES, open_radiograph
from carzero.data.phantom import draw
from carzero.zeroshot.explain import Explainer

WIDTHS = ((1366, 768), (390, 844))
FILE = "#cz-upload input[type=file]"
#: Pairs (text, ratio) of visible text that has too little contrast with what lies behind it, by WCAG 2.1 AA.
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = c => c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; })
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const over = (top, under) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * under[i]).concat(1);
  const behind = e => {
    const stack = [];
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] > 0) stack.push(c);
      if (c[3] === 1) break;
    }
    return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const bad = [], seen = [];
  const judge = (e, text) => {
    if (e.closest('[disabled]') || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) return;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (box.width < 2 || box.height < 2) return;
    const under = behind(e), ink = over(parse(style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen.push(text);
    if (ratio < (large ? 3 : 4.5)) bad.push([text.slice(0, 60), Math.round(100 * ratio) / 100]);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim(), e = walk.currentNode.parentElement;
    if (text && !['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(e.tagName)) judge(e, text);
  }
  document.querySelectorAll('input:not([type=range]):not([type=file]), textarea').forEach(e => judge(e, e.value));
  return [bad, seen.length];
}"""
#: What sticks out of the window to the right, outside of what scrolls or is hidden by itself.
BEYOND = """() => [...document.body.querySelectorAll('*')].filter(e =>
  e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1 && e.getBoundingClientRect().width > 1
).map(e => `${e.tagName}.${e.className}`)"""


def png(image: np.ndarray, name: str = "a.png") -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": cv2.imencode(".png", image)[1].tobytes()}


def upload(page, file) -> None:
    """Send a file and wait for the picture or the alert that it makes."""
    page.evaluate("document.querySelectorAll('.cz-film, #cz-unread .cz-alert').forEach(e => e.classList.add('old'))")
    page.set_input_files(FILE, file)
    page.wait_for_selector(".cz-film:not(.old), #cz-unread .cz-alert:not(.old)")


def classify(page, text: str | None = None) -> None:
    if text is not None:
        page.fill("#cz-findings textarea", text)
    page.evaluate("document.querySelectorAll('.cz-scores').forEach(e => e.classList.add('old'))")
    page.click("#cz-classify")
    page.wait_for_selector(".cz-scores:not(.old), #cz-unscored .cz-alert")


def pick(page, number: int) -> None:
    page.click(f"[data-finding='{number}']")
    name = page.inner_text(f"[data-finding='{number}'] .cz-name")
    page.wait_for_function("name => document.querySelector('#cz-picture h3')?.innerText === name", arg=name)


def download(page, button: str):
    page.wait_for_selector(f"{button}:not([disabled])")
    with page.expect_download() as waited:
        page.click(button)
    return waited.value


def test_upload_type_classify_look_compare_download(open_page, desk, tmp_path):
    page = open_page()
    image = draw(1, seed=5, size=300).image[:, 20:260]
    upload(page, png(image))
    assert page.get_attribute(".cz-film img", "alt") == "Radiograph, 240 by 300 pixels"
    classify(page, 'effusion\nright mass\n"left effusion"')
    assert page.locator("[data-finding]").count() == 3
    pick(page, 1)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    shot = open_radiograph(path)
    statement, denied = Explainer(desk.model, ["There is right mass", "There is no right mass"])(shot.grey)
    pair = page.inner_text(".cz-pair")
    for one in (statement, denied):
        assert one.prompt in pair
        assert f"{one.logit:.2f}".replace("-", "−") in pair
    # the denial's map is one press away, the strength of the layer follows the slider, and no map shows the film alone
    shown = "[...document.querySelectorAll('.cz-layer')].filter(e => e.checkVisibility()).map(e => e.dataset.layer)"
    assert page.evaluate(shown) == ["statement"]
    page.click("[data-show=denial]")
    assert page.evaluate(shown) == ["denial"]
    page.fill("[data-strength]", "40")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.cz-layer[data-layer=denial] img')).opacity") == "0.4"
    )
    page.click("[data-show=none]")
    assert page.evaluate(shown) == []
    assert page.get_attribute("[data-show=none]", "aria-pressed") == "true"
    table = download(page, "#cz-csv")
    assert table.suggested_filename == f"scores_{shot.tag}.csv"
    with open(table.path()) as file:
        rows = list(csv.DictReader(file))
    assert [row["finding"] for row in rows] == ["effusion", "right mass", "left effusion"]
    assert float(rows[1]["logit"]) == pytest.approx(statement.logit, abs=1e-5)
    picture = download(page, "#cz-png")
    assert picture.suggested_filename == f"map_{shot.tag}_right-mass.png"
    ceiling = float(max(statement.relative.max(), denied.relative.max()))
    assert np.array_equal(cv2.imread(str(picture.path()), cv2.IMREAD_COLOR_RGB), statement.overlay(ceiling))


def test_a_benchmarks_prompts_are_picked(open_page):
    page = open_page()
    page.click("#cz-draw")
    page.wait_for_selector(".cz-film")
    assert "Drawn radiograph, of no patient" in page.inner_text("#cz-picture")
    page.click("#cz-set input")
    page.click("[role=option]:has-text('ChestX-ray14')")
    page.wait_for_function("document.querySelector('#cz-findings textarea').value.includes('Pulmonary Infiltration')")
    classify(page)
    assert page.locator("[data-finding]").count() == 14


def test_broken_huge_and_foreign_files_are_sentences(open_page, tmp_path):
    page = open_page()
    cases = [
        (b"", "is empty"),
        (b"hello", "This file is not a PNG, JPEG or DICOM file."),
        (png(radiograph(0))["buffer"][:200], "cut short"),
        (bomb(60_000), "This file has more than the 134,217,728 pixels that are decoded."),
    ]
    for content, sentence in cases:
        page.set_input_files(FILE, {"name": "x.png", "mimeType": "image/png", "buffer": content})
        page.wait_for_selector(f"[role=alert]:has-text({sentence!r}), .toast-wrap:has-text({sentence!r})")
    alarms = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    # the browser refuses it before it is sent, and names the file
    huge = tmp_path / "<img src=x onerror=alert(1)>.png"
    with open(huge, "wb") as file:
        file.truncate(MAX_BYTES + 2**20)
    page.set_input_files(FILE, huge)
    page.wait_for_selector("text=/maximum allowed size|at most 128/i")
    assert alarms == []
    assert page.locator(".cz-film").count() == 0
    # the page still works, and warns of what is no radiograph
    upload(page, png(radiograph(0)))
    assert re.search(r"This image looks .+: its scores may mean nothing\.", page.inner_text(".cz-warn"))
    upload(page, {"name": "x.png", "mimeType": "image/png", "buffer": b"hello"})
    assert "What is shown is the radiograph before it." in page.inner_text("#cz-unread")
    assert "Traceback" not in page.content()


def test_what_cannot_be_asked_is_a_sentence(open_page):
    page = open_page()
    classify(page)
    assert "Choose a radiograph first" in page.inner_text("#cz-unscored")
    upload(page, png(radiograph(0)))
    assert page.inner_text("#cz-unscored").strip() == ""
    classify(page, "  ")
    assert "Type at least one finding" in page.inner_text("#cz-unscored [role=alert]")


def test_markup_in_names_and_prompts_is_text(open_page):
    page = open_page()
    alarms = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    upload(page, png(radiograph(0), "<img src=x onerror=alert(1)>.png"))
    lines = [
        "<script>alert(2)</script>", "<img src=x onerror=alert(3)>", "${alert(4)}", "{{alert(5)}}", "@children",
        "</button><a href=javascript:alert(6)>x</a>", "`+alert(7)+`",
    ]  # fmt: skip
    classify(page, "\n".join(lines))
    assert page.locator(".cz-name").all_inner_texts() == lines
    for number in range(len(lines)):
        pick(page, number)
        assert page.inner_text("#cz-picture h3") == lines[number]
    upload(page, {"name": "<svg onload=alert(8)>.png", "mimeType": "image/png", "buffer": b"<script>alert(9)</script>"})
    assert page.locator("#cz-rows img, #cz-rows a, #cz-rows script").count() == 0
    assert alarms == []


def test_no_identifier_of_a_dicom_header_reaches_the_page_or_a_file(open_page):
    pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    page = open_page()
    content = dicom(radiograph(1).astype(np.uint16) * 16, bits=12)
    upload(page, {"name": "DOE_JANE.dcm", "mimeType": "application/dicom", "buffer": content})
    classify(page, "effusion")
    pick(page, 0)
    files = [download(page, button) for button in ("#cz-csv", "#cz-png")]
    # pixels as base64 hold any three letters by chance
    words = re.sub(r"data:image/[^\"]+", "", page.content())
    said = [words.encode(), *(file.path().read_bytes() for file in files)]
    for secret in SECRETS.values():
        assert all(secret.encode() not in part for part in said), secret
    for name in ("DOE", "JANE", "Roswell"):
        assert name not in words + "".join(file.suggested_filename for file in files)


@pytest.mark.parametrize(("width", "height"), WIDTHS)
def test_nothing_scrolls_sideways(open_page, width, height):
    page = open_page(width, height)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    upload(page, png(radiograph(0, 600, 1500)))
    classify(page, f"effusion\n{'x' * 300}\nright mass")
    for number in (0, 1):
        pick(page, number)
        assert page.evaluate(fits)
        assert page.evaluate(BEYOND) == []
    upload(page, {"name": "x" * 200 + ".png", "mimeType": "image/png", "buffer": b"hello"})
    assert page.evaluate(fits)
    # the check can fail, also where something around cuts it off
    page.evaluate("document.querySelector('.cz-foot').style.minWidth = '2000px'")
    assert any("cz-foot" in name for name in page.evaluate(BEYOND))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(open_page, scheme):
    page = open_page(color_scheme=scheme)
    bad, seen = page.evaluate(CONTRAST)
    assert bad == []
    assert seen >= 15
    upload(page, png(radiograph(0)))
    upload(page, {"name": "x.png", "mimeType": "image/png", "buffer": b"hello"})
    classify(page, "effusion\nmass\nzzyzxq")
    pick(page, 1)
    page.wait_for_timeout(400)
    bad, seen = page.evaluate(CONTRAST)
    assert bad == []
    assert seen >= 40
    page.click("#cz-set input")
    page.wait_for_selector("[role=option]")
    assert page.evaluate(CONTRAST)[0] == []
    # the check can fail
    page.evaluate("document.querySelector('.cz-foot').style.color = '#8c97a1'")
    assert "Scores are logits" in page.evaluate(CONTRAST)[0][0][0]


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    # the driver hears of choosers from here on: asked for right before the key, it may begin after it
    page.on("filechooser", lambda _: None)

    # twice around the page: what is drawn anew meanwhile may take the focus along
    def tab_to(selector: str, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.closest(s) !== null", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"no focus ring on {selector}"
                return
        raise AssertionError(f"{selector} is not reached in {most} presses of Tab")

    tab_to("#cz-upload")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(png(radiograph(0)))
    page.wait_for_selector(".cz-film")
    tab_to("#cz-classify")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-finding]")
    tab_to("[data-finding]")
    chosen = page.evaluate("document.activeElement.innerText").splitlines()[0]
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#cz-picture h3')?.innerText === name", arg=chosen)
    # the focus stays where it was, so that the next finding is one press away
    page.wait_for_function("document.activeElement.ariaPressed === 'true'")
    tab_to("#cz-csv")


def test_nothing_is_asked_of_another_host(open_page, served, requests, calls, httpserver):
    page = open_page()
    page.click("#cz-draw")
    page.wait_for_selector(".cz-film")
    classify(page)
    pick(page, 0)
    # every request of every page of this session
    foreign = [url for url in requests if not url.startswith((served.url, "data:", f"blob:{served.url}"))]
    assert len(requests) > 20
    assert foreign == []
    # and those of the process that serves them
    assert {host for host in calls.hosts if host} <= {"127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost"}
    # the browser would refuse: a server of this machine on another port is never asked
    httpserver.expect_request("/").respond_with_data("")
    fetched = page.evaluate(
        "url => fetch(url, {mode: 'no-cors'}).then(() => 'went', () => 'refused')", httpserver.url_for("/")
    )
    assert fetched == "refused"
    assert httpserver.log == []


def test_uploads_are_deleted_and_foreign_names_turned_away(open_page, served, tmp_path):
    from pathlib import Path

    page = open_page()
    folder = Path(served.folder.name)
    assert folder.stat().st_mode & 0o77 == 0
    upload(page, png(radiograph(3), "unmistakable.png"))
    assert list(folder.rglob("*unmistakable*")) == []
    answer = httpx.get(served.url)
    assert answer.status_code == 200
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    # a page of another name that was pointed at this machine
    assert httpx.get(served.url, headers={"host": "evil.example"}).status_code == 400


@pytest.mark.data
@pytest.mark.parametrize(
    "file", ["nih_cxr14/originals_1024/00000061_012.png", "dicom/chest/RG1_J2KI.dcm", "dicom/compressed/RG3_JLSL.dcm"]
)
def test_real_radiographs(open_page, shared_data, file):
    if file.endswith(".dcm"):
        pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    page = open_page()
    upload(page, shared_data / file)
    assert "Your radiograph" in page.inner_text("#cz-picture")
    assert page.locator("#cz-picture .cz-warn").count() == (not open_radiograph(shared_data / file).verdict.frontal)
    classify(page, "effusion")
    pick(page, 0)
    assert page.evaluate("document.querySelector('.cz-layer img').naturalWidth") > 500
