"""What tests of pages share: a reader of HTML, and a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "br", "link", "img", "input", "hr", "!doctype"}
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Reader(HTMLParser):
    """Collects tags, ids, links and text; `open` is empty at the end of a well-formed page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.targets: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)
            if name == "popovertarget" and value:
                self.targets.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def read(page: str) -> Reader:
    """A well-formed page, read; without anything that would leave it."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert "url(http" not in page
    assert "@import" not in page
    # Addresses occur only as the names of XML name spaces.
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    return reader


# Runs in the page of a frame that is exactly as wide as asked; what it returns is the verdict.
_MEASURE = """
const inner = frame.contentDocument, view = frame.contentWindow;
const rect = element => element.getBoundingClientRect();
const name = element => element.tagName + " " + element.textContent.trim().slice(0, 40);
const overlaps = [], cut = [];
const blocks = "h1, h2, h3, h4, p, figure, pre, summary, .scroll, .contents, dt, dd";
const shown = [...inner.querySelectorAll(blocks)].filter(
  element => element.checkVisibility() && rect(element).height);
for (const [at, a] of shown.entries()) for (const b of shown.slice(at + 1)) {
  if (a.contains(b)) continue;
  const x = Math.min(rect(a).right, rect(b).right) - Math.max(rect(a).left, rect(b).left);
  const y = Math.min(rect(a).bottom, rect(b).bottom) - Math.max(rect(a).top, rect(b).top);
  if (x > 1 && y > 1) overlaps.push(name(a) + " | " + name(b));
}
for (const cell of inner.querySelectorAll("th, td"))
  if (cell.scrollWidth > cell.clientWidth + 1) cut.push(name(cell));
return {
  width: view.innerWidth, scroll: inner.documentElement.scrollWidth, overlaps, cut,
  dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
  background: view.getComputedStyle(inner.body).backgroundColor,
  requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
};
"""


def in_browser(
    page: str, width: int, folder: Path, dark: bool = False, script: str = _MEASURE
) -> Any:
    """What `script` returns about a page that is `width` pixels wide (`frame` holds the page).

    The page stands in a frame, as the browser's own window cannot be narrower than 500 pixels.
    """
    assert BROWSER is not None
    outer = folder / "outer.html"
    outer.write_text(
        f'<!doctype html><iframe id="frame" width="{width}" height="900" style="border:0" '
        f'srcdoc="{escape(page)}"></iframe><pre id="said"></pre><script>'
        'const frame = document.getElementById("frame");'
        'addEventListener("load", () => { document.getElementById("said").textContent = '
        f"JSON.stringify((() => {{ {script} }})()); }});</script>",
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    options += ["--disable-background-networking", "--no-first-run"]
    options += ["--window-size=1400,1000", *(["--force-dark-mode"] if dark else [])]
    done = subprocess.run(
        [BROWSER, *options, "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said is not None, done.stderr[-2000:]
    return json.loads(unescape(said[1]))
