"""plot.py --explore and runs.csv: the page in a real browser, and all that needs none."""

# ruff: noqa: E402
import importlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.colors import to_rgb

pandas = pytest.importorskip("pandas")
pytest.importorskip("plotly")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from report.drawing import HUES
from report.explore import LONGEST, SETTINGS, write_page, write_runs
from report.frame import Source, read_source
from report.results import read_results
from report.variance import FACTORS, full_levels, grids, shares
from store.files import UserError
from store.run import COLUMNS, Run
from store.settings import Settings


def fabricate(network="mlp", batch_size=1024, learning_rate=0.001, drop_rate=0.2, seed=0, epochs=4,
              top=0.5, name=None, failure=None, **more) -> Run:
    """A run that nobody trained: its best validation accuracy is `top`, in the last epoch."""
    settings = Settings(network, batch_size, learning_rate, drop_rate, seed=seed,
                        **{"num_epochs": epochs, **more})
    rows = [{"epoch": epoch, "train_loss": 2 - top, "train_acc": top + 0.05, "val_loss": 2.3 - epoch / 10,
             "val_acc": top * epoch / epochs, "test_loss": 1.9, "test_acc": top - 0.01, "seconds": 1.5}
            for epoch in range(1, epochs + 1)]
    config = {**asdict(settings), "device": "cpu", "versions": {"torch": "0"},
              "data": {"source": "official", "fingerprint": "00", "classes": ["cat", "dog"]}}
    finished = epochs >= settings.num_epochs and not failure
    return Run(network, name or settings.name, config, [{key: row[key] for key in COLUMNS} for row in rows],
                  {"epochs": epochs} if finished else None, failure)


# Shares of variance


def by_regression(values, columns):
    """The sum of squares that dummy variables of some axes explain, by least squares."""
    index = np.indices(values.shape)
    cells = np.ravel_multi_index([index[axis].ravel() for axis in columns], [values.shape[axis] for axis in columns])
    design = np.eye(cells.max() + 1)[cells]
    fit = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
    return ((fit - values.mean()) ** 2).sum()


def test_shares_are_those_of_a_regression():
    values = np.random.RandomState(0).randn(4, 3, 5, 2)
    total = ((values - values.mean()) ** 2).sum()
    found = shares(values, ("a", "b", "c"))
    a, b, ab = (by_regression(values, axes) for axes in ([0], [1], [0, 1]))
    assert found["a"] == pytest.approx(a / total)
    assert found["a × b"] == pytest.approx((ab - a - b) / total)
    assert found["seed"] == pytest.approx(1 - by_regression(values, [0, 1, 2]) / total)
    assert sum(found.values()) == pytest.approx(1)
    assert len(found) == 8


def test_shares_of_known_effects_and_grids_without_gaps():
    a, b = np.array([-1.0, 1])[:, None, None], np.array([-2.0, 0, 2])[None, :, None]
    assert shares(a + b + np.zeros((2, 3, 1)), ("a", "b")) == pytest.approx(
        {"a": 1 / (1 + 8 / 3), "b": 8 / 3 / (1 + 8 / 3), "a × b": 0})
    assert shares(a * b + 7, ("a", "b")) == pytest.approx({"a": 0, "b": 0, "a × b": 1})
    assert shares(np.ones((2, 3, 2)), ("a", "b")) == {} and full_levels(set()) == []
    grid = set(itertools.product((1, 2), (3, 4), (5, 6)))
    assert full_levels(grid | {(1, 9, 5), (8, 3, 5)}) == [[1, 2], [3, 4], [5, 6]]
    assert full_levels({(1, 3, 5), (2, 4, 6)}) in ([[1], [3], [5]], [[2], [4], [6]])


def test_the_grid_is_the_full_one_of_runs_that_differ_in_nothing_else():
    cells = list(itertools.product((512, 1024), (0.001, 0.01), (0.0, 0.2)))
    records = [fabricate("mlp", *cell, seed=seed, top=cell[1] + seed / 1000) for cell in cells for seed in (0, 1)]
    records += [fabricate("mlp", 512, 0.001, 0.0, seed=2),  # a seed, a rate and a layer too many
                fabricate("mlp", 512, 0.1, 0.0), fabricate("mlp", 512, 0.001, 0.0, without_BatchNorm=True),
                fabricate("cnn", 128, 0.001, 0.0), fabricate("cnn", 128, 0.001, 0.2)]
    grid, = grids(Source(records), "val_acc")
    assert grid.levels == [[512, 1024], [0.001, 0.01], [0.0, 0.2]] and grid.seeds == [0, 1]
    assert str(grid) == "MLP, 2 × 2 × 2 settings, 2 seeds, 4 epochs"
    found = shares(grid.values)
    assert found["learning_rate"] == pytest.approx(0.009 ** 2 / (0.009 ** 2 + 0.001 ** 2))
    assert found["seed"] == pytest.approx(1 - found["learning_rate"])
    assert set(FACTORS) < set(found)


def test_an_unfinished_run_is_in_no_grid():
    cells = list(itertools.product((512, 1024), (0.001, 0.01, 0.1), (0.2,)))
    grid, = grids(Source([fabricate("mlp", *cell, epochs=4 - (cell == cells[-1]), num_epochs=4) for cell in cells]))
    assert grid.values.size == 4


# One flat table


def test_runs_csv_has_a_row_per_run_and_a_column_per_setting(tmp_path):
    records = [fabricate("cnn", 128, seed=1), fabricate("mlp", 512, epochs=3, num_epochs=9),
               fabricate("mlp", failure={"time": 1, "reason": "no memory"}, name="a,\"b\"\udcff\n_seed0"),
               Run("mlp", "x_seed0", fabricate().config, [], None, {"time": 1, "reason": "late"})]
    path = write_runs(Source(records), tmp_path)
    table = pandas.read_csv(path)
    assert set(SETTINGS) < set(table.columns)
    assert table.state.tolist() == ["finished", "unfinished", "failed", "failed"]
    assert table.name.tolist() == [records[0].name, records[1].name, 'a,"b"\\udcff\n_seed0', "x_seed0"]
    one = table[table.batch_size == 512].squeeze()
    rows = records[1].rows
    assert (one.epochs, one.num_epochs, one.best_epoch, one.seconds) == (3, 9, 3, 4.5)
    assert (one.val_acc, one.last_test_acc) == (rows[-1]["val_acc"], rows[-1]["test_acc"])
    assert table.failure.dropna().tolist() == ["no memory", "late"] and table.val_acc.isna().sum() == 1
    assert table.without_BatchNorm.dtype == bool and table.learning_rate.dtype == float
    before = path.read_bytes()
    write_runs(Source(records[::-1]), tmp_path)
    assert path.read_bytes() == before


def test_the_published_runs_csv_is_what_plot_writes(tmp_path):
    assert write_runs(read_source(None), tmp_path).read_bytes() == (ROOT / "results/tables/runs.csv").read_bytes()


# The page, without a browser


class Page:
    """The scripts of a page, and all that it would load."""

    def __init__(self, path):
        text = path.read_text(encoding="utf-8")
        self.scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
        self.markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
        self.loads = re.findall(r"<[^>]*\s(?:src|href|srcset|action)=[\"']?([^\"'>\s]*)", self.markup)
        self.data = next(json.loads(script) for script in self.scripts if script.startswith('{"settings"'))


def plot(*arguments):
    return subprocess.run([sys.executable, str(ROOT / "plot.py"), *map(str, arguments)], capture_output=True, text=True)


def test_the_page_is_one_file_of_less_than_8_MB_that_loads_nothing(tmp_path):
    page = tmp_path / "new" / "page.html"
    done = plot("--explore", page)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(read_results())} runs in {page}") and done.stdout.count("\n") == 1
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    assert page.stat().st_size < 8e6
    found = Page(page)
    assert found.loads == ["data:,"] and "default-src 'none'" in found.markup
    assert len(found.data["runs"]) == len(read_results())
    assert [grid["title"][:3] for grid in found.data["grids"]] == ["MLP", "CNN"]


def test_without_plotly_one_line_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setattr(sys, "argv", ["plot.py", "--explore", str(tmp_path / "page.html")])
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("plot").main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and not list(tmp_path.iterdir())
    assert "pip install plotly, or pip install -r requirements-extra.txt" in error


HOSTILE = "</script><img src=x onerror=\"hit=1\">'\\u003c&lt;<b>😀$\\frac{$_seed0"
LONG = "x" * 10 ** 6


def strangers() -> list[Run]:
    """Runs whose texts are anything that JSON and file systems allow."""
    deep = {}
    for _ in range(500):
        deep = {"a": deep}
    records = [fabricate(name=HOSTILE), fabricate(seed=1, name="half\udcff_seed1"),
               fabricate(seed=2, failure={"time": 1, "reason": LONG})]
    records[0].config.update(processor=LONG, device="\ud83d", threads=deep, learning_rate="$$", drop_rate=[1, {"a": 2}])
    records[0].config["data"]["classes"] = [HOSTILE]
    records[1].config.update({LONG: LONG, "data": {"classes": [LONG], "source": LONG}, "learning_rate": None})
    return records


def test_texts_of_strangers_stay_texts_and_short(tmp_path):
    assert "\n" not in write_page(Source([fabricate()]), tmp_path / "two\nlines.html")
    write_page(Source([fabricate()]), tmp_path / "plain.html")
    write_page(Source(strangers()), tmp_path / "page.html")
    plain, page = Page(tmp_path / "plain.html"), Page(tmp_path / "page.html")
    assert page.loads == plain.loads and len(page.scripts) == len(plain.scripts)
    assert page.data["runs"][0]["name"] == HOSTILE and page.data["runs"][0]["machine"]["data.classes"] == HOSTILE
    assert (tmp_path / "page.html").stat().st_size < (tmp_path / "plain.html").stat().st_size + 100 * LONGEST
    assert len(pandas.read_csv(write_runs(Source(strangers()), tmp_path))) == 3


@pytest.mark.parametrize("name", ["", ".", "..", "/", "pipe"])
def test_a_page_needs_the_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="argument --explore: .* is no file; name one"):
        write_page(Source([fabricate()]), Path(name))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_unfinished_failed_and_damaged_runs_are_in_the_page(tmp_path):
    records = [fabricate(epochs=2, num_epochs=9), fabricate(seed=1, failure={"time": 1, "reason": "nan"}),
               Run("cnn", "x", {"data": {"classes": None}, "batch_size": [math.inf]}, [], None, {"time": 1})]
    records[1].rows[-1]["val_loss"] = math.nan
    write_page(Source(records), tmp_path / "page.html")
    first, second, third = Page(tmp_path / "page.html").data["runs"]
    assert [run["state"] for run in (first, second, third)] == ["unfinished", "failed", "failed"]
    assert first["epochs"] == 2 and first["curves"]["val_loss"] == pytest.approx([2.2, 2.1])
    assert second["curves"]["val_loss"][-1] is None and third["val_acc"] is None


# The page in a browser


@pytest.fixture(scope="module")
def chromium():
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000",
                     "--enable-unsafe-swiftshader"):  # WebGL without a graphics card
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as chromium:
        yield chromium


RUNS = [fabricate("mlp", 1024, rate, drop, seed, top=0.4 + 10 * rate + drop / 10 + seed / 100)
        for rate in (0.001, 0.002, 0.01) for drop in (0.0, 0.2) for seed in (0, 1)]
RUNS += [fabricate("cnn", 128, 0.001, drop / 10, top=0.7 - drop / 100) for drop in range(6)]
RUNS += [fabricate("cnn", 256, 0.01, 0.5, top=0.6), fabricate("cnn", 256, 0.01, 0.5, 1, 2, 0.1, num_epochs=4)]
RUNS += [fabricate("cnn", 128, 0.01, 0.5, epochs=2, num_epochs=4, top=0.3), fabricate("cnn", 256, name=HOSTILE),
         Run("cnn", "x", fabricate("cnn", 512).config, [], None, {"time": 1, "reason": "no memory"})]


class Explorer:
    """The page as its reader sees it."""

    def __init__(self, chromium, path, scroll=False):
        self.chromium = chromium
        chromium.get_log("browser")
        chromium.get(path.as_uri())
        self("if (arguments[0]) document.getElementById('parallel').scrollIntoView()", scroll)
        self.wait(lambda: self("return !!document.querySelector('#parallel .parcoords')"))

    def __call__(self, script, *arguments):
        return self.chromium.execute_script(script, *arguments)

    def wait(self, until):
        WebDriverWait(self.chromium, 60).until(lambda _: until())

    def show_parallel(self):
        self("document.getElementById('parallel').scrollIntoView()")

    def click(self, name):
        self.chromium.find_element(By.NAME, name).click()

    def clear(self):
        self.chromium.find_element(By.ID, "clear").click()

    def choose(self, name, value):
        self("const list = document.getElementById(arguments[0]); list.value = arguments[1];"
             "list.dispatchEvent(new Event('change'))", name, value)

    def tick(self, i):
        self.chromium.find_elements(By.CSS_SELECTOR, "#table tbody input")[i].click()

    def texts(self, selector):
        return self("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", selector)

    def column(self, name):
        """The cells of a column of the table, by the name of its button."""
        buttons = self("return [...document.querySelectorAll('#table th button')].map(b => b.name)")
        return self.texts(f"#table tbody td:nth-child({buttons.index(name) + 2})")

    def curves(self):
        """The coloured lines: name → their heights."""
        traces = self("return document.getElementById('curves').data.filter(t => t.hovertemplate)"
                      ".map(t => [t.name, [...t.y]])")
        return dict(traces)

    def errors(self):
        return [entry["message"] for entry in self.chromium.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(Source(RUNS), path)
    return Explorer(chromium, path)


@pytest.fixture
def explorer(page):
    """The page as it was opened."""
    page.choose("single", "setting")
    page.choose("measure", "val_acc")
    page.clear()
    page("scrollTo(0, 0)")
    yield page
    assert page.errors() == []
    assert page("return performance.getEntriesByType('resource').length") == 0


LINE = "return document.getElementById('parallel').data[0].line"


def test_parallel_coordinates_wait_to_be_in_view(explorer):
    explorer("document.getElementById('shares').scrollIntoView()")
    explorer.choose("measure", "test_loss")
    assert "test loss" in explorer("return document.getElementById('shares').layout.xaxis.title.text")
    time.sleep(0.5)  # frames in which they could be drawn
    assert explorer(LINE)["colorbar"]["title"]["text"] == "validation accuracy"
    explorer.show_parallel()
    explorer.wait(lambda: explorer(LINE)["colorbar"]["title"]["text"] == "test loss")


def test_every_part_is_drawn(explorer):
    assert explorer.texts("#count") == ["23 of 23 runs, 16 of 16 settings"]
    assert explorer("return [...document.querySelectorAll('#curves .scatterlayer path.js-line')].length") > 10
    assert explorer("return document.getElementById('parallel').data[0].line.color.length") == 15  # one has no result
    assert explorer("return document.querySelectorAll('#parallel canvas').length") > 0
    assert explorer("return document.querySelectorAll('#shares .bars path').length") == 4
    assert len(explorer.curves()) == 10
    assert "no memory" in explorer("return document.querySelector('#table .bad').title")
    assert "2 of 4" in explorer.column("epochs")


def test_names_are_shown_and_not_run(explorer):
    assert explorer("return [...document.querySelectorAll('#table tr')].map(row => row.title)").count(HOSTILE) == 1
    explorer.choose("single", "run")
    explorer.tick(0)
    explorer.tick([row.startswith("</script>") for row in explorer(
        "return [...document.querySelectorAll('#table tbody tr')].map(row => row.title)")].index(True))
    assert HOSTILE in " ".join(explorer.texts("#pair > table td"))
    assert not explorer("return window.hit")


def test_a_band_is_mean_and_deviation_over_seeds(explorer):
    explorer.click("network=mlp")
    (line, band), = explorer(
        "const traces = document.getElementById('curves').data;"
        "return traces.filter(t => t.fill && t.name.includes('lr 0.01, drop 0.2')).map(band =>"
        "[[...traces[traces.indexOf(band) + 1].y], [...band.y]])")
    pair = np.array([[row["val_acc"] for row in run.rows] for run in RUNS
                     if [run.config[key] for key in ("network", *FACTORS)] == ["mlp", 1024, 0.01, 0.2]])
    mean, deviation = pair.mean(0), pair.std(0, ddof=1)
    assert line == pytest.approx(list(mean))
    assert band == pytest.approx([*(mean + deviation), *(mean - deviation)[::-1]])


def test_a_seed_that_is_behind_counts_in_no_mean(explorer):
    explorer.click("network=cnn")
    row = explorer.column("seeds").index("1 of 2")
    assert (explorer.column("val_acc")[row], explorer.column("epochs")[row]) == ("0.6000", "4")


def test_a_filter_keeps_the_runs_with_its_value(explorer):
    explorer.click("learning_rate=0.01")
    assert explorer.texts("#count") == ["7 of 23 runs, 4 of 16 settings"]
    assert len(explorer.column("val_acc")) == len(explorer.curves()) == 4
    explorer.click("learning_rate=0.002")  # one or the other
    assert explorer.texts("#count") == ["11 of 23 runs, 6 of 16 settings"]
    explorer.click("seed=1")  # and this
    assert explorer.column("seeds") == ["1"] * 5
    explorer.clear()
    assert explorer.texts("#count") == ["23 of 23 runs, 16 of 16 settings"]


def test_a_column_sorts_both_ways_and_colours_the_first_ten(explorer):
    best = explorer.column("val_acc")
    assert best == sorted(best, reverse=True, key=lambda text: text.replace("–", "")) and best[-1] == "–"
    explorer.click("drop_rate")
    rates = explorer.column("drop_rate")
    assert rates == sorted(rates, key=float)
    explorer.click("drop_rate")
    assert explorer.column("drop_rate") == sorted(rates, key=float, reverse=True)
    assert any("drop 0.5" in name for name in explorer.curves())
    assert not any("drop 0," in name or name.endswith("drop 0") for name in explorer.curves())


def test_a_range_on_an_axis_picks_runs_by_value(explorer):
    axes = explorer("return document.getElementById('parallel').data[0].dimensions.map(axis => axis.name)")
    before, at = len(explorer.column("val_acc")), axes.index("val_acc")
    axis = explorer.chromium.find_elements(By.CSS_SELECTOR, "#parallel .axis-brush")[at]
    explorer("arguments[0].scrollIntoView({block: 'center'})", axis)
    height = axis.rect["height"]
    webdriver.ActionChains(explorer.chromium).move_to_element_with_offset(axis, 0, int(-height / 4)).click_and_hold() \
        .move_by_offset(0, int(height / 4)).move_by_offset(0, int(height / 8)).release().perform()
    explorer.wait(lambda: len(explorer.column("val_acc")) < before)
    low, high = explorer("return document.getElementById('parallel').data[0].dimensions[arguments[0]]"
                         ".constraintrange", at)
    values = [float(text.split(" ")[0]) for text in explorer.column("val_acc")]
    assert len(values) > 1 and all(low <= value <= high for value in values)
    assert len(explorer.curves()) == len(values)


def test_two_rows_side_by_side(explorer):
    explorer.click("network=mlp")
    explorer.click("drop_rate=0")
    explorer.tick(0)
    assert explorer("return document.activeElement.type") == "checkbox"  # which the new table has
    explorer.tick(1)
    rows = [row.split("\t") for row in explorer.texts("#pair > table tr")]
    assert rows[0] == ["mlp, batch 1024, lr 0.01, drop 0", "mlp, batch 1024, lr 0.002, drop 0",
                       "difference (right − left)"]
    assert len(explorer.curves()) == len(explorer.texts("#table tr.chosen .swatch")) == 2
    assert rows[1][0] == "run" and rows[1][1].split(", ") == [run.name for run in RUNS[8:10]]
    assert rows[2] == ["learning rate", "0.01", "0.002"]
    assert ["validation accuracy, best epoch", "0.5050 ± 0.0071", "0.4250 ± 0.0071", "−0.0800"] in rows
    assert "drop rate" not in [row[0] for row in rows]
    explorer.chromium.find_element(By.TAG_NAME, "summary").click()
    assert ["drop rate", "0"] in [row.split("\t") for row in explorer.texts("#pair details tr")]


def test_a_filter_that_hides_ticked_rows_says_so(explorer):
    keys = explorer("return [...document.querySelectorAll('#table tbody input')].map(box => box.name)")
    for key in [key for key in keys if key.startswith("mlp")][:2]:
        explorer.click(key)
    assert len(explorer.curves()) == len(explorer.texts("#table .swatch")) == 2
    assert explorer.texts("#curves-note")[0].startswith("In colour: the ticked rows")
    explorer.click("network=cnn")
    assert explorer.texts("#pair") == ["The ticked rows are filtered out."]
    assert len(explorer.curves()) > 2
    explorer.choose("single", "run")  # forgets ticks


def test_a_setting_keeps_its_look_through_filters(explorer):
    look = ("return Object.fromEntries(document.getElementById('curves').data.filter(t => t.hovertemplate)"
            ".map(t => [t.legendgroup, [t.line.color, t.line.dash, t.marker.symbol]]))")
    seen = explorer(look)
    explorer.click("learning_rate=0.001")
    explorer.click("drop_rate")  # another order
    after = explorer(look)
    both = seen.keys() & after.keys()
    assert len(both) > 3 and {key: seen[key] for key in both} == {key: after[key] for key in both}
    assert {colour for colour, *_ in after.values()} == {HUES[0.001]}
    assert len({tuple(style) for style in after.values()}) == len(after)
    rows = explorer("return [...document.querySelectorAll('#table tbody tr')].filter(row => row.querySelector("
                    "'path')).map(row => [row.querySelector('input').name, ['stroke', 'stroke-dasharray'].map("
                    "key => row.querySelector('path').getAttribute(key))])")
    assert dict(rows) == {key: style[:2] for key, style in after.items()}


def test_one_row_has_no_colour_bar(explorer):
    explorer.show_parallel()
    explorer.wait(lambda: explorer(LINE)["showscale"])
    explorer.click("network=cnn")
    explorer.click("drop_rate=0.4")
    assert explorer.texts("#curves-note")[0].startswith("In colour: the only row of the table")
    explorer.wait(lambda: not explorer(LINE)["showscale"])
    assert explorer("return document.querySelectorAll('#parallel .colorbar').length") == 0


def test_the_best_is_the_light_end_as_in_the_heat_maps(explorer):
    explorer.show_parallel()
    for measure, reversed_ in (("test_loss", True), ("val_acc", False)):
        explorer.choose("measure", measure)
        explorer.wait(lambda want=reversed_: explorer(LINE)["reversescale"] is want)
        light = [sum(to_rgb(shade)) for _, shade in explorer(LINE)["colorscale"]]
        assert light == sorted(light) and light[-1] < 2


def test_epochs_are_whole_and_a_best_epoch_has_no_deviation(explorer):
    assert explorer("return document.getElementById('curves').layout.xaxis.range") == [1, 4]
    ticks = explorer("return [...document.querySelectorAll('#curves .xtick')].map(tick => tick.textContent)")
    assert ticks == ["1", "2", "3", "4"]
    assert any("±" in text for text in explorer.column("val_acc"))
    assert not any("±" in text for text in explorer.column("best_epoch"))


def test_a_row_for_each_run(explorer):
    explorer.choose("single", "run")
    assert explorer.texts("#count") == ["23 of 23 runs"]
    assert len(explorer.column("seed")) == 23


OLD_BROWSER = ("delete Map.groupBy; delete Object.groupBy; delete Set.prototype.union;"
               "for (const name of ['toReversed', 'toSorted', 'toSpliced', 'with', 'findLast']) delete Array.prototype[name];")


def test_the_published_runs_at_any_width_on_paper_and_in_a_browser_of_2023(chromium, tmp_path):
    path = tmp_path / "page.html"
    write_page(read_source(None), path)
    path.write_text(path.read_text().replace("<style>", f"<script>{OLD_BROWSER}</script><style>", 1))
    explorer = Explorer(chromium, path, scroll=True)
    rows = "return document.querySelectorAll('#table tbody tr').length"
    settings = int(re.search(r"(\d+) of \1 settings", explorer.texts("#count")[0])[1])
    assert explorer(rows) == 100 < settings

    for measure in ("test_loss", "val_acc"):
        explorer.choose("measure", measure)
    assert explorer("return document.querySelectorAll('canvas').length") == 3  # one plot with WebGL
    angle, places = explorer("""return [document.getElementById('parallel').data[0].labelangle,
        [...document.querySelectorAll('#parallel .axis-title')].map(title => title.getBoundingClientRect().x)]""")
    between = min(b - a for a, b in itertools.pairwise(places))
    assert len(places) > 15 and between * math.sin(math.radians(-angle)) > 12  # the height of a heading

    chromium.set_window_size(1000, 1000)
    explorer.wait(lambda: explorer("return document.getElementById('curves').clientWidth") < 850)
    explorer.choose("measure", "val_acc")
    legend, title, ticks = (explorer("return document.querySelector(arguments[0]).getBoundingClientRect()", selector)
                            for selector in ("#curves .legend", "#curves .xtitle", "#curves .xaxislayer-above"))
    assert legend["bottom"] < ticks["top"] < ticks["bottom"] <= title["top"] + 1

    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    chromium.set_window_size(1400, 990)
    explorer("dispatchEvent(new Event('beforeprint'))")
    assert explorer(rows) == settings and explorer("return document.getElementById('all-rows').hidden")
    seen = explorer("""const box = document.querySelector('.scroll'), table = document.getElementById('table');
        return [box.scrollHeight - box.clientHeight, innerWidth - table.getBoundingClientRect().right]""")
    assert seen[0] <= 1 and seen[1] > 0 and "test accuracy" in explorer.texts("#table thead")[0]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    chromium.set_window_size(1400, 1000)
    assert explorer.errors() == []


def test_the_page_of_strangers_is_drawn_without_errors(chromium, tmp_path):
    write_page(Source(strangers()), tmp_path / "page.html")
    explorer = Explorer(chromium, tmp_path / "page.html", scroll=True)
    assert len(explorer.curves()) == 3 and explorer.errors() == [] and not explorer("return window.hit")
