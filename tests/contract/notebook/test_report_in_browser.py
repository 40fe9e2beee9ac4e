"""The report as a real browser sees it; skipped where no Chromium is installed (Debian:
apt-get install chromium).
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "unit"))

import factories

pytest.importorskip("matplotlib")

from model_serve_flow.report.report import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip
PROBE = """<script>{
const page = document.documentElement;
const scrolls = page.scrollWidth > page.clientWidth;
const tables = [...document.querySelectorAll("table")];
const find = title => tables.find(t => t.caption.textContent.includes(title));
const accuracy = find("Accuracy per task"), rows = () => [...accuracy.tBodies[0].rows];
accuracy.querySelector("thead button").click();
const names = rows().map(row => row.cells[0].textContent);
const sorted = names.join() === [...names].sort().join();
accuracy.querySelectorAll("thead button")[4].click();
const keys = rows().map(row => Number(row.cells[4].dataset.key));
const numeric = keys.length > 5 && keys.join() === [...keys].sort((a, b) => a - b).join();
const flips = find("flipped items").closest("details"), items = flips.querySelector("tbody");
const folded = !items.checkVisibility();
flips.querySelector("summary").click();
const seen = items.checkVisibility() && items.rows.length > 5;
const high = svg => svg.getBoundingClientRect().height > 100;
const drawn = [...document.querySelectorAll("figure svg")].every(high);
document.querySelectorAll("details").forEach(part => { part.open = true; });
const wide = page.scrollWidth > page.clientWidth;
document.title = `PROBE ${JSON.stringify({scrolls, sorted, numeric, folded, seen, drawn, wide})}`;
}</script>"""
FINE = {
    "scrolls": False, "sorted": True, "numeric": True, "folded": True, "seen": True, "drawn": True,
    "wide": False,
}  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def browse(page: Path, folder: Path, *flags: str) -> str:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [500, 1280])
def test_page_fits_its_window_sorts_its_tables_unfolds_the_flips_and_draws_its_charts(
    width, tmp_path
):
    page = write_report(factories.sample_comparison(), {}, tmp_path).html
    page.write_text(
        page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    title = re.search(
        r"<title>(.*?)</title>", browse(page, tmp_path, f"--window-size={width},900", "--dump-dom")
    )[1]
    assert json.loads(title.removeprefix("PROBE ")) == FINE


def test_flips_are_printed_although_they_are_folded(tmp_path):
    """The printed page is longer than one from which the folded parts were removed."""
    page = write_report(factories.sample_comparison(), {}, tmp_path).html
    without = page.with_name("without.html")
    text = re.sub(r"<details>.*?</details>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    without.write_text(text, encoding="utf-8")
    pages = []
    for file in (page, without):
        printed = file.with_suffix(".pdf")
        browse(file, tmp_path, f"--print-to-pdf={printed}")
        pages.append(len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())))
    assert pages[0] > pages[1] + 2


def test_dark_mode_darkens_page_and_charts(tmp_path):
    image = pytest.importorskip("PIL.Image")
    page = write_report(factories.sample_comparison(), {}, tmp_path).html
    shares = {}
    for scheme in (0, 1):  # dark, light
        picture = tmp_path / f"{scheme}.png"
        colours = f"--blink-settings=preferredColorScheme={scheme}"
        browse(page, tmp_path, colours, "--window-size=1280,2400", f"--screenshot={picture}")
        counts = image.open(picture).convert("L").histogram()
        shares[scheme] = sum(counts[:80]) / sum(counts)
    assert shares[0] > 0.85 and shares[1] < 0.15
