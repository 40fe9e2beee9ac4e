"""The report as a real browser sees it; skipped where no Chromium is installed (Debian: apt-get install chromium)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "unit"))

import factories

pytest.importorskip("matplotlib")

from model_serve_flow.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip
PROBE = """<script>
const scrolls = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.querySelector("table.sortable thead button").click();
const rows = () => [...document.querySelector("table.sortable").tBodies[0].rows];
const names = rows().map(row => row.cells[0].textContent);
const sorted = names.join() === [...names].sort().join();
document.querySelectorAll("table.sortable thead button")[3].click();
const base = rows().map(row => parseFloat(row.cells[3].textContent));
const numeric = base.join() === [...base].sort((a, b) => a - b).join();
const drawn = [...document.querySelectorAll("figure svg")].every(svg => svg.getBoundingClientRect().height > 100);
document.title = `PROBE scrolls=${scrolls} sorted=${sorted} numeric=${numeric} drawn=${drawn}`;
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def browse(page: Path, folder: Path, *flags: str) -> str:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [500, 1280])
def test_page_fits_its_window_sorts_its_tables_and_draws_its_charts(width, tmp_path):
    page = write_report(factories.sample_comparison(), {}, tmp_path).html
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(page, tmp_path, f"--window-size={width},900", "--dump-dom"))[1]
    assert title == "PROBE scrolls=false sorted=true numeric=true drawn=true"


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
