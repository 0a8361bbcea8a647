"""The picture of docs/app.md: the page in a real Chromium with a drawn radiograph.

    python benchmarks/app_picture.py --weights demo/model --out docs/images/app.webp

With ``--width 390`` it is a phone's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from carzero.app.command import open_desk
from carzero.app.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="model folder")
    parser.add_argument("--out", required=True, type=Path, help=".webp or .png to write")
    parser.add_argument("--width", type=int, default=1366, help="of the window (default: %(default)s)")
    parser.add_argument("--finding", default="pacemaker", help="whose map is shown (default: %(default)s)")
    parser.add_argument("--drawing", type=int, default=1, help="number of the drawn radiograph (default: %(default)s)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="program (default: %(default)s)")
    args = parser.parse_args()
    desk = open_desk(argparse.Namespace(weights=args.weights, tokenizer=None, reference=None, device="cpu"))
    served, shot = serve(desk, port=0), args.out.with_suffix(".shot.png")
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": args.width, "height": 800})
            page.goto(served.url)
            for _ in range(args.drawing):
                page.evaluate("document.querySelector('.cz-film')?.classList.add('old')")
                page.click("#cz-draw")
                page.wait_for_selector(".cz-film:not(.old)")
            page.click("#cz-classify")
            page.click(f".cz-row:has-text({args.finding!r})")
            page.wait_for_selector(".cz-pair")
            page.wait_for_timeout(500)
            page.screenshot(path=shot, full_page=True)
            browser.close()
        with Image.open(shot) as image:
            image.save(args.out, quality=82, method=6)
    finally:
        shot.unlink(missing_ok=True)
        served.close()
    print(f"wrote {args.out}, {args.out.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
