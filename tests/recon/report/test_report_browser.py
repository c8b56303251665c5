"""The report in a real browser without a screen: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.compare import store
from recon.report import comparison, page
from tests.support import reports
from tests.support.browser import Opened, open_file, running
from tests.support.reports import Case

CASE = Case(n_volumes=4, n_slices=3, shape=(40, 56), failing=("sense", 2), scale=5e-5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from running()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    about = reports.write(folder, CASE)
    store.write_summary(folder, {**about, "held_out": [reports.held_out(CASE.methods)]})
    write_page(folder)
    return folder


def write_page(folder: Path) -> None:
    """The page alone: drawing the figures takes seconds."""
    (folder / "index.html").write_text(page.build(comparison.read(folder), 45.0), encoding="utf-8")


def open_page(browser: Any, folder: Path, plots: bool = True, **options: Any) -> Iterator[Opened]:
    # Plots are drawn when they come near the screen. Here none does: Plotly takes a second that most tests need not spend.
    script = None if plots else "window.IntersectionObserver = class { observe() {} };"
    return open_file(browser, folder / "index.html", script, **options)


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Opened]:
    for opened in open_page(browser, folder, plots=False, color_scheme="light"):
        opened.page.wait_for_selector("#stage[data-shown]")
        yield opened


@pytest.fixture(scope="module")
def one_page(browser: Any, folder: Path) -> Iterator[Opened]:
    for opened in open_page(browser, folder, plots=False, color_scheme="light"):
        opened.page.wait_for_selector("#stage[data-shown]")
        opened.page.evaluate("window.before = { ...report.view }")
        yield opened


@pytest.fixture
def viewer(one_page: Opened) -> Opened:
    """The page with its images as they were when it opened; opening it anew for every test would take most of the time."""
    one_page.mouse.move(0, 0)
    one_page.evaluate("""() => {
        Object.assign(report.view, { ...before, cursor: null, hidden: new Set() });
        document.getElementById("stage").dataset.shown = "[]";
        const select = document.getElementById("view-volume");
        select.value = JSON.stringify([before.file.dataset, before.file.volume]);
        select.dispatchEvent(new Event("change")); }""")
    one_page.wait_for(volume="volume_0", mask="random1d:4", number=1)
    return one_page


@pytest.fixture
def plotted(browser: Any, folder: Path) -> Iterator[Opened]:
    for opened in open_page(browser, folder, color_scheme="light"):
        opened.page.wait_for_selector("#stage[data-shown]")
        yield opened


def truth_of(folder: Path, volume: str, mask: str) -> store.GroupImages:
    groups = map(store.read_images, store.image_files(folder))
    return next(g for g in groups if (g.group.volume, g.group.mask) == (volume, mask))


def value_in(text: str) -> float:
    """The number that a panel shows under the cursor."""
    return float(text.split("Δ")[0].strip().replace("−", "-"))


def test_opens_without_complaints_and_shows_its_head(plotted: Opened, record_property: Any) -> None:
    timing = plotted.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    record_property("opening_ms", timing)
    print(f"page opened in {timing:.0f} ms")
    assert plotted.locator("h1").inner_text() == "4 methods on 4 volumes and 1 scan without truth"
    assert plotted.locator(".verdict").inner_text().startswith("Refinegan has the highest PSNR.")
    assert plotted.locator("#table tbody tr").count() == 4


def means(folder: Path, mask: str, metric: str) -> dict[str, float]:
    rows = [r for r in store.read_results(folder) if r.mask == mask and metric in r.metrics]
    return {m: float(np.mean([r.metrics[metric] for r in rows if r.method == m])) for m in CASE.methods}


@pytest.mark.parametrize("metric", ["psnr_support", "nmse"])
def test_sorting_sorts(opened: Opened, folder: Path, metric: str) -> None:
    opened.select_option("#metric", metric)
    opened.select_option("#mask", "random1d:8")
    truth = means(folder, "random1d:8", metric)
    best_first = sorted(truth, key=lambda m: truth[m], reverse=metric != "nmse")
    heading = opened.locator(f'#table th[data-column="{metric}"]')

    def order() -> list[str]:
        found: list[str] = opened.locator("#table tbody tr").evaluate_all("rows => rows.map((row) => row.dataset.method)")
        return found

    assert order() == list(CASE.methods)
    heading.locator("button").click()
    assert order() == best_first
    assert heading.get_attribute("aria-sort") == ("ascending" if metric == "nmse" else "descending")
    heading.locator("button").press("Enter")  # and it has kept the focus
    assert order() == best_first[::-1]
    opened.locator('#table th[data-column="seconds_per_slice"] button').click()
    assert order() == list(CASE.methods)


def test_the_table_shows_the_figures_of_the_files(opened: Opened, folder: Path) -> None:
    truth = means(folder, "random1d:4", "psnr_support")
    for method in CASE.methods:
        cell = opened.locator(f'#table tr[data-method="{method}"] td[data-column="psnr_support"]')
        shown = re.search(r"(\d+\.\d+) \[(\d+\.\d+), (\d+\.\d+)\]", cell.inner_text())
        assert shown
        assert float(shown[1]) == pytest.approx(truth[method], abs=0.0051)
        assert float(shown[2]) < float(shown[1]) < float(shown[3])
        # SENSE lacks a volume: its mean is another comparison, and may not win.
        assert ("3 of 4 volumes" in cell.inner_text()) == (method == "sense")
    best = opened.locator('#table td.best[data-column="psnr_support"]')
    assert best.count() == 1
    assert "★" in best.inner_text()
    assert opened.locator('#table tr[data-method="sense"] td[data-column="n_failed"]').inner_text() == "⚠ 1"
    assert "psnr" not in opened.locator("#says").inner_text()
    assert "fastMRI" in opened.locator("#says").inner_text()
    opened.locator("#failures summary").click()
    assert "out of memory" in opened.locator("#failures li").inner_text()


def test_every_mask_and_every_volume(opened: Opened) -> None:
    opened.check("#every-mask")
    assert opened.locator("#table tbody tr").count() == 8
    assert opened.locator('#table td.best[data-column="psnr_support"]').count() == 2
    opened.locator("#volumes summary").click()
    opened.wait_for_selector("#volume-table tbody tr")
    assert opened.locator("#volume-table tbody tr").count() == 4 * 4 * 2


def test_all_plots_have_traces(plotted: Opened) -> None:
    plotted.wait_for_selector("#plot-grid figure")
    names = ["boxes", "acceleration", "speed", "tuning", "convergence", "held-out-0"]
    for name in names:
        plot = plotted.locator(f"#plot-{name}")
        plot.scroll_into_view_if_needed()
        plotted.wait_for_selector(f"#plot-{name}.js-plotly-plot .main-svg")
        traces = plotted.evaluate(
            f"document.getElementById('plot-{name}').data.map((t) => [t.name, t.x?.length ?? 0, t.y.length])"
        )
        assert len(traces) >= 2
        assert all(n > 0 for _, _, n in traces), (name, traces)
        assert plot.get_attribute("role") == "img"
        assert re.search(r"\d", plot.get_attribute("aria-label") or "") or name == "acceleration"
    boxes = plotted.evaluate("document.getElementById('plot-boxes').data.map((t) => t.y.length)")
    assert boxes == [4, 3, 4, 4]
    floor = plotted.evaluate("document.getElementById('plot-held-out-0').data.at(-1)")
    assert floor["name"] == "noise floor"
    assert set(floor["y"]) == {0.021}


def test_plots_follow_the_choice(plotted: Opened, folder: Path) -> None:
    plotted.locator("#plot-boxes").scroll_into_view_if_needed()
    plotted.wait_for_selector("#plot-boxes .main-svg")
    plotted.select_option("#mask", "random1d:8")
    plotted.select_option("#metric", "ssim")
    plotted.wait_for_function("() => document.getElementById('plot-boxes').layout.yaxis.title.text.startsWith('SSIM')")
    rows = [r.metrics["ssim"] for r in store.read_results(folder) if (r.mask, r.method) == ("random1d:8", "refinegan")]
    assert plotted.evaluate("document.getElementById('plot-boxes').data.at(-1).y") == pytest.approx(rows)


def test_pixel_values_equal_the_data(viewer: Opened, folder: Path) -> None:
    """Decoded by the browser: every pixel of every plane, to half a step; values under the mouse as the panels say them."""
    for index, file in enumerate(viewer.evaluate("report.IMAGES.files.map((f) => ({...f, planes: null}))")):
        group = truth_of(folder, file["volume"], file["mask"])
        for place, number in enumerate(group.slices):
            for series in ("truth", *CASE.methods):
                data = (group.truth if series == "truth" else group.images[series])[place]
                code = "async ([i, n, s]) => [...await report.planeOf(report.IMAGES.files[i], n, s)]"
                codes = np.array(viewer.evaluate(code, [index, number, series])).reshape(CASE.shape)
                if np.isnan(data).all():
                    assert (codes == 2**12 - 1).all()
                    continue
                inside = codes < 2**12 - 2
                assert np.abs(codes * file["step"] - data)[inside].max() <= 0.501 * file["step"]
                assert (data[~inside] > 1.249 * file["reference"]).all()
    volume, mask, number = viewer.shown()[1:]
    group = truth_of(folder, volume, mask)
    viewer.show_viewer()
    viewer.mouse.move(*viewer.place("truth", 17, 33))
    for series in ("truth", *CASE.methods):
        data = (group.truth if series == "truth" else group.images[series])[group.slices.index(number)]
        text = viewer.locator(f'.panel[data-series="{series}"] output').inner_text()
        assert value_in(text) == pytest.approx(float(data[17, 33]), rel=2e-3, abs=file["step"])
    assert "y 17, x 33" in viewer.locator("#place").inner_text()


def grey(opened: Opened, series: str, y: int, x: int) -> int:
    """What the screen shows at the centre of a pixel, at zoom 1."""
    code = """(canvas, [y, x, ny, nx]) => {
        const spot = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        spot.drawImage(canvas, -Math.floor((x + 0.5) / nx * canvas.width), -Math.floor((y + 0.5) / ny * canvas.height));
        return spot.getImageData(0, 0, 1, 1).data[0]; }"""
    found: int = opened.canvas(series).evaluate(code, [y, x, *CASE.shape])
    return found


def test_the_screen_shows_the_image_upright_on_one_grey_scale(viewer: Opened, folder: Path) -> None:
    viewer.click("#view-smooth")
    viewer.click("#view-boxes")
    viewer.show_viewer()
    volume, mask, number = viewer.shown()[1:]
    group = truth_of(folder, volume, mask)
    view, file = viewer.images(), viewer.evaluate("report.view.file")
    for series in ("truth", "refinegan", "zero-filled"):
        data = (group.truth if series == "truth" else group.images[series])[group.slices.index(number)]
        for y, x in [(20, 28), (12, 20), (25, 36), (2, 3), (30, 22)]:
            wanted = np.clip((data[y, x] / file["reference"] - view["low"]) / (view["high"] - view["low"]), 0, 1) * 255
            assert grey(viewer, series, y, x) == pytest.approx(wanted, abs=1.6)


def test_the_viewer_shows_what_was_chosen(viewer: Opened, folder: Path) -> None:
    assert viewer.shown() == ["brain", "volume_0", "random1d:4", 1], "the slice with a box"
    viewer.select_option("#view-volume", json.dumps(["brain", "volume_3"], separators=(",", ":")))
    viewer.wait_for(volume="volume_3")
    viewer.select_option("#view-mask", "random1d:8")
    viewer.wait_for(mask="random1d:8")
    viewer.locator("#view-slice").fill("2")
    viewer.wait_for(number=7)
    assert viewer.shown() == ["brain", "volume_3", "random1d:8", 7]
    group = truth_of(folder, "volume_3", "random1d:8")
    viewer.show_viewer()
    viewer.mouse.move(*viewer.place("refinegan", 20, 28))
    text = viewer.locator('.panel[data-series="refinegan"] output').inner_text()
    assert value_in(text) == pytest.approx(float(group.images["refinegan"][2, 20, 28]), rel=2e-3)
    assert "volume_3, slice 7, random1d:8" in viewer.canvas("refinegan").get_attribute("aria-label")


def test_a_failed_slice_says_why(viewer: Opened) -> None:
    viewer.select_option("#view-volume", json.dumps(["brain", "volume_2"], separators=(",", ":")))
    viewer.wait_for(volume="volume_2", number=1)
    words = viewer.evaluate("""() => {
        const said = [], own = CanvasRenderingContext2D.prototype, write = own.fillText;
        own.fillText = function (text, ...rest) { said.push(text); return write.call(this, text, ...rest); };
        document.getElementById("stage").dispatchEvent(new KeyboardEvent("keydown", { key: "i" }));
        own.fillText = write;
        return said; }""")
    assert "failed: out of memory" in " ".join(words)


def test_dragging_changes_window_and_level_of_all_panels(viewer: Opened) -> None:
    viewer.show_viewer()
    before = viewer.images()
    pixel = grey(viewer, "truth", 20, 28), grey(viewer, "refinegan", 20, 28)
    x, y = viewer.place("sense", 20, 28)
    viewer.mouse.move(x, y)
    viewer.mouse.down()
    viewer.mouse.move(x + 60, y, steps=3)
    wider = viewer.images()
    viewer.mouse.move(x + 60, y + 40, steps=3)
    viewer.mouse.up()
    after = viewer.images()
    assert wider["high"] - wider["low"] > before["high"] - before["low"]
    assert after["high"] + after["low"] > wider["high"] + wider["low"] + 0.05
    assert after["high"] - after["low"] == pytest.approx(wider["high"] - wider["low"])
    viewer.mouse.move(0, 0)
    assert grey(viewer, "truth", 20, 28) < pixel[0]
    assert grey(viewer, "refinegan", 20, 28) < pixel[1]
    viewer.canvas("sense").dblclick()
    assert {k: viewer.images()[k] for k in ("low", "high", "zoom")} == {k: before[k] for k in ("low", "high", "zoom")}


def test_zoom_and_pan_are_linked_and_keep_the_point(viewer: Opened) -> None:
    viewer.show_viewer()
    x, y = viewer.place("truth", 12, 15)
    viewer.mouse.move(x, y)
    viewer.mouse.wheel(0, -600)
    viewer.wait_for_function("() => report.view.zoom > 1.5")
    assert viewer.images()["cursor"] == [12, 15]
    viewer.mouse.move(x + 1, y)
    assert viewer.images()["cursor"] == [12, 15], "the point under the mouse stays there"
    # The same place of another panel shows the same pixel.
    first, other = viewer.canvas("truth").bounding_box(), viewer.canvas("refinegan").bounding_box()
    viewer.mouse.move(x - first["x"] + other["x"], y - first["y"] + other["y"])
    assert viewer.images()["cursor"] == [12, 15]
    for button, key in (("left", "Shift"), ("right", None)):
        before = viewer.images()
        if key:
            viewer.keyboard.down(key)
        viewer.mouse.down(button=button)
        viewer.mouse.move(x - first["x"] + other["x"] - 30, y - first["y"] + other["y"], steps=3)
        viewer.mouse.up(button=button)
        if key:
            viewer.keyboard.up(key)
        assert viewer.images()["centre"][1] > before["centre"][1]
        assert viewer.images()["low"] == before["low"]
        viewer.mouse.move(x - first["x"] + other["x"], y - first["y"] + other["y"])


def test_the_keyboard_alone_reaches_everything(opened: Opened) -> None:
    for _ in range(150):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.id") == "stage":
            break
    assert opened.evaluate("document.activeElement.id") == "stage"
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def press(*keys: str) -> dict[str, Any]:
        for key in keys:
            opened.keyboard.press(key)
        return opened.images()

    press("PageDown")
    opened.wait_for(number=4)
    press("v")
    opened.wait_for(volume="volume_1")
    press("m")
    opened.wait_for(mask="random1d:8")
    assert press("ArrowRight", "ArrowDown")["cursor"] == [21, 29]
    assert "Δ" in opened.locator("#said").inner_text()
    before = opened.images()
    zoomed = press("+", "+")
    assert zoomed["zoom"] > 1.5
    assert press("Shift+ArrowRight")["centre"][1] > zoomed["centre"][1]
    assert press("w")["high"] < before["high"]
    assert press("L", "L", "L")["low"] > 0
    assert press("0")["zoom"] == 1
    assert press("d")["difference"] is True
    assert press("]")["scale"] == 0.2
    assert "the same for every method" in opened.locator("#legend").inner_text()
    assert press("a")["a"] == "sense"
    assert press("s")["b"] == "zero-filled"
    assert press("x")["boxes"] is False
    assert press("i")["smooth"] is False
    assert press("t", "r")["turn"] == 1
    press("o")
    assert opened.locator(".panel").count() == 1
    press("o", "2")
    assert opened.locator(".panel").count() == 4


def test_flicker_puts_b_in_the_place_of_a(viewer: Opened) -> None:
    viewer.click("#view-smooth")
    viewer.click("#view-boxes")
    viewer.select_option("#view-a", "zero-filled")
    viewer.select_option("#view-b", "refinegan")
    viewer.show_viewer()
    spots = [(y, x) for y in range(10, 30, 4) for x in range(14, 42, 4)]

    def look(series: str) -> list[int]:
        return [grey(viewer, series, *spot) for spot in spots]

    own, other = look("zero-filled"), look("refinegan")
    assert own != other
    viewer.focus("#stage")
    viewer.keyboard.press("f")
    assert look("zero-filled") == other
    assert "refinegan" in viewer.locator('.panel[data-series="zero-filled"] header').inner_text()
    viewer.keyboard.press("f")
    assert look("zero-filled") == own


def test_differences_have_one_scale_and_a_sign(viewer: Opened, folder: Path) -> None:
    viewer.click("#view-smooth")
    viewer.click("#view-boxes")
    viewer.click("#view-difference")
    viewer.show_viewer()
    volume, mask, number = viewer.shown()[1:]
    group, scale = truth_of(folder, volume, mask), 0.1 * viewer.evaluate("report.view.file.reference")
    at = group.slices.index(number)
    for series in ("zero-filled", "refinegan"):
        difference = (group.images[series][at] - group.truth[at]) / scale
        for y, x in [(20, 28), (12, 20), (25, 36), (18, 22)]:
            red = min(1.0, abs(difference[y, x])) * (255 if difference[y, x] > 0 else 60)
            assert grey(viewer, series, y, x) == pytest.approx(red, abs=3)


def test_turning_and_mirroring_keep_values_under_the_mouse(viewer: Opened, folder: Path) -> None:
    volume, mask, number = viewer.shown()[1:]
    group = truth_of(folder, volume, mask)
    plane = group.images["refinegan"][group.slices.index(number)]
    viewer.focus("#stage")
    viewer.keyboard.press("t")
    viewer.keyboard.press("r")
    viewer.show_viewer()
    box = viewer.canvas("refinegan").bounding_box()
    turned = np.rot90(plane, -1)[:, ::-1]
    rows, columns = turned.shape
    for r, c in [(3, 5), (30, 8), (50, 33)]:
        viewer.mouse.move(box["x"] + (c + 0.5) / columns * box["width"], box["y"] + (r + 0.5) / rows * box["height"])
        text = viewer.locator('.panel[data-series="refinegan"] output').inner_text()
        assert value_in(text) == pytest.approx(float(turned[r, c]), rel=2e-3, abs=1e-8)


def test_measured_fastmri_volumes_stand_upright(browser: Any, tmp_path: Path) -> None:
    """Their readout is shown downwards, as fastMRI shows it; here it is x."""
    reports.write(tmp_path, Case(methods=("sense",), masks=("random1d:4",), n_volumes=1, n_slices=1, lying=True))
    write_page(tmp_path)
    plane = store.read_images(store.image_files(tmp_path)[0]).images["sense"][0].T
    for opened in open_page(browser, tmp_path, plots=False):
        opened.wait_for_selector("#stage[data-shown]")
        opened.show_viewer()
        box = opened.canvas("sense").bounding_box()
        for r, c in [(3, 5), (20, 8), (25, 17)]:
            opened.mouse.move(
                box["x"] + (c + 0.5) / plane.shape[1] * box["width"], box["y"] + (r + 0.5) / plane.shape[0] * box["height"]
            )
            text = opened.locator('.panel[data-series="sense"] output').inner_text()
            assert value_in(text) == pytest.approx(float(plane[r, c]), rel=2e-3, abs=1e-3)


def brightness(opened: Opened, selector: str, what: str) -> float:
    colour = opened.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
    return float(np.mean([float(v) for v in re.findall(r"[\d.]+", colour)[:3]]))


def test_dark_and_light(browser: Any, folder: Path) -> None:
    for opened in open_page(browser, folder, color_scheme="dark"):
        assert brightness(opened, "body", "backgroundColor") < 60 < 180 < brightness(opened, "body", "color")
        assert opened.locator("#theme").get_attribute("aria-pressed") == "true"
        opened.wait_for_selector("#plot-boxes .main-svg")
        ink = opened.evaluate("document.getElementById('plot-boxes').layout.font.color")
        opened.click("#theme")
        assert brightness(opened, "body", "backgroundColor") > 200
        opened.wait_for_function(f"() => document.getElementById('plot-boxes').layout.font.color !== '{ink}'")


def test_nothing_overlaps_the_edge_of_a_small_window(plotted: Opened) -> None:
    for width in (1280, 700):
        plotted.set_viewport_size({"width": width, "height": 720})
        plotted.wait_for_function(f"() => document.documentElement.scrollWidth <= {width}")


def test_odd_names_stay_text(browser: Any, tmp_path: Path) -> None:
    nasty = "a</script><script>window.hit=1</script> & <img src=x onerror=window.hit=1> <b>{{blocks}}"
    case = Case(methods=("sense", "own/2"), labels={"own/2": nasty}, n_volumes=2, dataset="<i>d</i>", failing=("own/2", 1))
    reports.write(tmp_path, case)
    write_page(tmp_path)
    for opened in open_page(browser, tmp_path):
        opened.wait_for_selector("#stage[data-shown]")
        opened.wait_for_selector("#plot-boxes .main-svg")
        assert opened.evaluate("window.hit") is None
        assert nasty in opened.locator('#table tr[data-method="own/2"] th').inner_text()
        assert opened.locator("main img, main i").count() == 0
        assert "<b>" in opened.locator("#plot-boxes").inner_text()


def test_a_page_without_room_says_so(browser: Any, folder: Path, tmp_path: Path) -> None:
    found = comparison.read(folder)
    html = page.build(found, 0.0)
    for extra, words in ((0.0, "None of the 12 slices fits"), (0.09, r"This page holds \d+ of 12 slices")):
        (tmp_path / "index.html").write_text(page.build(found, len(html) / 1e6 + extra), encoding="utf-8")
        for opened in open_page(browser, tmp_path, plots=False):
            assert re.search(words, opened.locator("#viewer-body p").first.inner_text())


def test_pages_with_little_in_them(browser: Any, tmp_path: Path) -> None:
    tiny = Case(methods=("sense",), masks=("random1d:4",), n_volumes=1, n_slices=1, shape=(17, 9), statistics=False)
    reports.write(tmp_path / "one", tiny)
    about = reports.summary(Case(), [])
    for name, summary in (
        ("empty", {"version": store.VERSION}),
        ("held", {**about, "masks": [], "tuning": [], "convergence": [], "held_out": [reports.held_out(["sense", "tv"])]}),
    ):
        (tmp_path / name).mkdir()
        store.write_summary(tmp_path / name, summary)
    for name in ("one", "empty", "held"):
        write_page(tmp_path / name)
        for opened in open_page(browser, tmp_path / name):
            opened.wait_for_selector("#plot-grid figure", state="attached")
            if name == "held":
                opened.wait_for_selector("#plot-held-out-0 .main-svg")
            if name == "one":
                assert "no interval" in opened.locator("#table-note").inner_text()


def test_thousands_of_rows(browser: Any, tmp_path: Path) -> None:
    reports.write(tmp_path, Case(methods=("sense", "tv"), masks=("random1d:4",), n_volumes=1, n_slices=1, shape=(8, 8)))
    first = store.read_results(tmp_path)[0]
    values = {"psnr": 30.0}
    rows = [
        store.VolumeRow("brain", f"v{i}", "random1d:4", "d", 4.0, m, m, 1, 0, metrics=values)
        for i in range(1500)
        for m in ("sense", "tv")
    ]
    store.write_results(tmp_path, [first, *rows])
    write_page(tmp_path)
    for opened in open_page(browser, tmp_path):
        opened.locator("#volumes summary").click()
        opened.wait_for_function("() => document.querySelectorAll('#volume-table tbody tr').length === 3001")
