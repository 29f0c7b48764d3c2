// The page of `plot.py --explore`: from all runs to those that the reader has chosen, and from
// these to curves, parallel coordinates, a table and a comparison, drawn by plotly.js.
"use strict";
const { runs, settings, usual, results, grids } = JSON.parse(at("data").textContent);
const COLOURED = 10;  // curves
const ROWS = 100;  // of the table, until the reader asks for all: a browser lays them out slowly
const CIVIDIS = ["#00224e", "#434e6c", "#7d7c78", "#bcae6c", "#fee838"];
const SYMBOLS = { "": "", circle: "●", square: "■", "triangle-up": "▲", diamond: "◆",
                  "triangle-down": "▼", star: "★", "triangle-right": "▶", hexagon: "⬢" };
const MEANING = { epochs: "epochs trained", seconds: "seconds of training",
                  best_epoch: "epoch of the best validation accuracy",
                  val_acc: "validation accuracy, best epoch", val_loss: "validation loss, lowest" };
const SHORT = { learning_rate: "lr", batch_size: "batch", drop_rate: "drop", network: "", data: "",
                hidden_size: "hidden", dropout_type: "dropout", precision: "", schedule: "" };

// The reader's choice. All that the page shows follows from it.
const choice = { filters: {}, brushes: {}, single: false, measure: "val_acc", sort: "val_acc",
                 descending: true, pair: [], allRows: false };

function choose(changes) {
  Object.assign(choice, changes);
  draw();
}

// Values and words

function at(id) { return document.getElementById(id); }

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const unique = values => [...new Set(values)];
const parted = (list, test) => [list.filter(test), list.filter(item => !test(item))];
const show = value => value === true ? "yes" : value === false ? "no" : String(value ?? "–");
const words = key => key.replaceAll("_", " ").replace(/\bval\b/, "validation")
  .replace(/\btrain\b/, "training").replace(/\bacc\b/, "accuracy");
const meaning = key => MEANING[key]
  ?? (results.includes(key) ? `${words(key)} at the best validation accuracy` : "");
const markup = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");  // for plotly
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name);
const dark = matchMedia("(prefers-color-scheme: dark)");
const isLoss = key => key.endsWith("loss");
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
  : show(a).localeCompare(show(b), "en", { numeric: true });
const valuesOf = (list, key) =>
  unique(list.map(run => run[key])).filter(value => value !== null).sort(compare);
const varying = settings.filter(key => valuesOf(runs, key).length > 1);

function statistics(values) {
  const numbers = values.filter(value => typeof value === "number"), n = numbers.length;
  const mean = numbers.reduce((sum, x) => sum + x, 0) / n;
  const squares = numbers.reduce((sum, x) => sum + (x - mean) ** 2, 0);
  return { n, mean: n ? mean : null, sd: n > 1 ? Math.sqrt(squares / (n - 1)) : 0 };
}
const most = runs => Math.max(...runs.map(run => run.epochs));
const result = (group, key) => statistics(group.ahead.map(run => run[key]));

function number(key, { n, mean, sd }) {
  if (!n) return "–";
  const digits = { epochs: 0, seconds: 1, best_epoch: n > 1 ? 1 : 0 }[key];
  const text = x => Math.abs(x) < 1e5 ? x.toFixed(digits ?? 4) : x.toExponential(3);
  return text(mean) + (n > 1 && digits === undefined ? ` ± ${text(sd)}` : "");
}

// The usual goes without saying.
const describe = (group, keys) => keys.map(key => [key, group.runs[0][key]])
  .filter(([key, value]) => value !== null && value !== usual[key])
  .map(([key, value]) => value === true ? words(key)
    : `${SHORT[key] ?? words(key)} ${show(value)}`.trim()).join(", ");
const shownKeys = () => varying.filter(
  key => !["state", "num_epochs"].includes(key) && (choice.single || key !== "seed"));
const label = group => describe(group, shownKeys()) || group.runs[0].name;

// From all runs to the rows of the table

const passes = (run, except) => Object.entries(choice.filters).every(
  ([key, wanted]) => key === except || !wanted.size || wanted.has(show(run[key])));

// Runs that differ in their seed alone. Those that are behind wait: a mean over unequal numbers of
// epochs says nothing. Browsers of 2023 have no Map.groupBy.
function grouped(list) {
  const groups = new Map();
  for (const run of list) {
    const key = choice.single ? `${run.group}/${run.name}` : run.group;
    groups.set(key, [...groups.get(key) ?? [], run]);
  }
  return [...groups].map(([key, runs]) => (
    { key, runs, ahead: runs.filter(run => run.epochs === most(runs)) }));
}

function sorted(groups) {
  const { sort, descending } = choice;
  const value = group => settings.includes(sort) ? valuesOf(group.runs, sort)[0] ?? null
    : sort === "seeds" ? group.ahead.length : result(group, sort).mean;
  return groups.map(group => [value(group), group]).sort(([a], [b]) =>
    a === null || b === null ? (a === null) - (b === null)  // those without a value come last
      : descending ? compare(b, a) : compare(a, b)).map(([, group]) => group);
}

function drawFilters() {
  const button = (key, value, wanted, count) => element("button", {
    name: `${key}=${value}`, title: `${count} runs`, ariaPressed: wanted.has(value),
    disabled: !count && !wanted.has(value),
    onclick() {
      if (!wanted.delete(value)) wanted.add(value);
      draw();
    } }, value);
  at("filters").replaceChildren(...varying.map(key => {
    const wanted = choice.filters[key] ??= new Set(), values = valuesOf(runs, key).map(show);
    const others = runs.filter(run => passes(run, key)).map(run => show(run[key]));
    return element("fieldset", {}, element("legend", {}, words(key)), ...values.map(value =>
      button(key, value, wanted, others.filter(other => other === value).length)));
  }));
}

// Plots

function plot(id, traces, { xaxis, yaxis, ...more }) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false };
  Plotly.react(id, traces, {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "closest",
    font: { color: css("--ink"), size: 12 }, margin: { l: 60, r: 20, t: 34, b: 46 },
    modebar: { bgcolor: "transparent", color: css("--soft") },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...more },
  { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] });
}

// Colour is the learning rate and dash the drop rate, as in the report's figures; symbols tell
// apart those that share both. All runs take part, so that filters change none of it.
function stylesOf(groups) {
  const alike = {}, symbols = Object.keys(SYMBOLS);
  return new Map(groups.map(({ key, runs: [{ color, dash }] }) => {
    const rank = (alike[color + dash] ??= []).push(key) - 1;
    return [key, { color, dash: dash || "solid", symbol: symbols[rank % symbols.length] }];
  }));
}

const points = group => Array.from({ length: most(group.runs) }, (_, i) => (
  { epoch: i + 1, ...statistics(group.runs.map(run => run.curves[choice.measure][i])) }));
const line = (points, height = point => point.mean) => (
  { x: points.map(point => point.epoch), y: points.map(height), hoverinfo: "skip" });

function curveAndBand(group, { color, dash, symbol }, name) {
  const known = points(group).filter(point => point.n), band = known.filter(point => point.n > 1);
  const common = { name: markup(name), legendgroup: group.key };
  const above = line(band, point => point.mean + point.sd);
  const below = line([...band].reverse(), point => point.mean - point.sd);
  return [
    { ...common, x: [...above.x, ...below.x], y: [...above.y, ...below.y], hoverinfo: "skip",
      mode: "none", fill: "toself", fillcolor: color, opacity: .18, showlegend: false },
    { ...common, ...line(known), hoverinfo: "all", cliponaxis: false,
      mode: known.length < 2 ? "markers" : symbol ? "lines+markers" : "lines",
      line: { color, dash, width: 2 }, marker: { color, symbol, size: 8, maxdisplayed: 9 },
      text: known.map(point => number("", point) + (point.n > 1 ? `, n = ${point.n}` : "")),
      hovertemplate: "%{fullData.name}<br>epoch %{x}: %{text}<extra></extra>" }];
}

function drawCurves(shown, best, styles) {
  const rest = shown.filter(group => !best.includes(group));
  const longest = most(best.flatMap(group => group.runs));
  const [differing, common] = parted(
    shownKeys(), key => unique(best.map(group => group.runs[0][key])).length > 1);
  const coloured = best.flatMap(group => curveAndBand(
    group, styles.get(group.key), describe(group, differing) || label(group)));
  const grey = { ...line(rest.flatMap(group => [...points(group), { epoch: null, mean: null }])),
                 mode: "lines", line: { color: "rgba(128, 128, 128, .25)", width: 1 },
                 showlegend: false };
  const heights = coloured.flatMap(trace => trace.y), low = Math.min(...heights);
  const high = Math.max(...heights), pad = (high - low) * .06 || .01;
  plot("curves", [grey, ...coloured], {
    xaxis: { title: { text: "epoch" }, range: longest > 1 ? [1, longest] : [.5, 1.5],
             ...(longest < 10 && { dtick: 1 }) },
    yaxis: { title: { text: words(choice.measure) },
             range: heights.length ? [low - pad, high + pad] : [0, 1] },
    legend: at("curves").clientWidth < 850 ? { orientation: "h", y: 1, yanchor: "bottom" } : {} });
  const ticked = best.length === 2 && best.every(group => choice.pair.includes(group.key));
  at("curves-note").textContent = !best.length ? "No run with these values." : [
    "In colour: the ", shown.length === 1 ? "only row" : ticked ? "ticked rows"
      : `first ${best.length} rows`, " of the table",
    choice.single ? "" : ", means over seeds; a band is ± one standard deviation",
    best.length > 1 && common.length ? `; all of them: ${describe(best[0], common)}` : "",
    rest.length ? `. In grey: the other ${rest.length}.` : "."].join("");
}

const measures = () => unique([choice.measure, `test_${choice.measure.split("_")[1]}`]);

// A setting's values stand evenly spaced on its axis.
function axes() {
  const keys = varying.filter(key => key !== "state" && (choice.single || key !== "seed"));
  return [...keys.map(key => {
    const levels = unique(runs.map(run => run[key])).sort(compare);
    const ticks = [...levels.keys()].filter(i => i % Math.ceil(levels.length / 14) === 0);
    return { key, value: group => levels.indexOf(group.runs[0][key]), tickvals: ticks,
             range: [-.2, levels.length - .8], ticktext: ticks.map(i => markup(show(levels[i]))) };
  }), ...measures().map(key => ({ key, value: group => result(group, key).mean }))];
}

function inside(group, { key, value }) {
  const ends = choice.brushes[key]?.flat() ?? [];  // one range, or a list of them
  return !ends.length || ends.some((low, i) => i % 2 === 0
    && low <= value(group) && value(group) <= ends[i + 1]);
}

// The page's one plot with WebGL, of which a browser draws few at a time.
function drawParallel(groups, used) {
  const worth = group => result(group, choice.measure).mean * (isLoss(choice.measure) ? -1 : 1);
  const lines = groups.filter(group => result(group, choice.measure).n)
    .sort((a, b) => worth(a) - worth(b));  // the best on top
  const color = lines.map(group => result(group, choice.measure).mean);
  const scale = CIVIDIS.slice(...(dark.matches ? [1] : [0, -1]));  // without the paper's own
  plot("parallel", [{
    type: "parcoords", labelfont: { size: 12 }, labelangle: -30, tickfont: { size: 11 },
    rangefont: { size: 1, color: "transparent" },
    dimensions: used.map(({ key, value, ...more }) => ({
      name: key, label: words(key), values: lines.map(value),
      constraintrange: choice.brushes[key], ...more })),
    line: { color, showscale: unique(color).length > 1, reversescale: isLoss(choice.measure),
            colorscale: scale.map((shade, i) => [i / (scale.length - 1), shade]),
            colorbar: { title: { text: words(choice.measure), side: "right" } } },
    unselected: { line: { color: "#888888", opacity: .08 } } }],
  { margin: { l: 50, r: 30, t: 90, b: 24 } });
  at("parallel").removeAllListeners("plotly_restyle");
  at("parallel").on("plotly_restyle", () => {
    choice.brushes = Object.fromEntries(at("parallel").data[0].dimensions.map(
      ({ name, constraintrange }) => [name, constraintrange]));
    draw(false);
  });
}

function drawShares() {
  const shares = grid => Object.entries(grid.shares[choice.measure]);
  const list = grids.filter(grid => shares(grid).length);
  const longest = Math.max(...list.flatMap(shares).map(([, share]) => share));
  at("shares").hidden = !list.length;
  plot("shares", list.map(grid => ({
    type: "bar", orientation: "h", name: markup(grid.title), marker: { color: grid.color },
    y: shares(grid).map(([effect]) => words(effect)), x: shares(grid).map(([, share]) => share),
    text: shares(grid).map(([, share]) => `${(100 * share).toFixed(1)} %`),
    textposition: "outside", cliponaxis: false, hovertemplate: "%{y}: %{text}<extra></extra>" })),
  { xaxis: { title: { text: `share of the variance of ${meaning(choice.measure)}` },
             tickformat: ".0%", range: [0, 1.15 * longest] }, showlegend: true,
    yaxis: { autorange: "reversed", automargin: true }, legend: { orientation: "h", y: 1.12 } });
}

// Table

const swatch = ({ color, dash, symbol }) => element("span", { className: "swatch", innerHTML: `<svg>
  <path d="M0 6H48" stroke="${color}" stroke-dasharray="${dash}"/>
  <text x="24" y="10" fill="${color}">${SYMBOLS[symbol]}</text></svg>` });

function drawTable(shown, best, styles) {
  const differing = shownKeys().filter(key => shown.length < 2
    || valuesOf(shown.flatMap(group => group.runs), key).length > 1);
  const columns = unique([...measures(), ...differing, ...(choice.single ? [] : ["seeds"]),
                          "epochs", ...(varying.includes("state") ? ["state"] : []),
                          "test_acc", "test_loss", ...results, "best_epoch", "seconds"]);
  const heading = key => {
    const sorts = key === choice.sort, direction = choice.descending ? "descending" : "ascending";
    const first = !settings.includes(key) && !isLoss(key);  // descending
    return element("th", { title: meaning(key), ariaSort: sorts ? direction : "none" },
      element("button", { name: key, onclick: () => choose(
        { sort: key, descending: sorts ? !choice.descending : first }) }, words(key)));
  };
  const row = group => {
    const chosen = choice.pair.includes(group.key);
    const others = choice.pair.filter(key => key !== group.key);
    const box = element("input", {
      type: "checkbox", name: group.key, checked: chosen, ariaLabel: `compare ${label(group)}`,
      onchange: () => choose({ pair: chosen ? others : [...others, group.key].slice(-2) }) });
    return element("tr", { className: chosen ? "chosen" : "", title: group.runs[0].name },
      element("td", {}, box, best.includes(group) ? swatch(styles.get(group.key)) : ""),
      ...columns.map(key => cell(group, key)));
  };
  const rows = choice.allRows ? shown : shown.slice(0, ROWS);
  at("all-rows").hidden = rows.length === shown.length;
  at("all-rows").textContent = `Show all ${shown.length} rows`;
  at("table").tHead.replaceChildren(
    element("tr", {}, element("th", {}, "compare"), ...columns.map(heading)));
  at("table").tBodies[0].replaceChildren(...rows.map(row));
}

function text(group, key) {
  const of = (part, whole) => part === whole || !whole ? String(part) : `${part} of ${whole}`;
  return key === "seeds" ? of(group.ahead.length, group.runs.length)
    : key === "epochs" ? of(most(group.runs), valuesOf(group.ahead, "num_epochs").pop())
    : settings.includes(key) ? valuesOf(group.runs, key).map(show).join(", ") || "–"
    : number(key, result(group, key));
}

function cell(group, key) {
  const failures = key === "state" ? valuesOf(group.runs, "failure").join("; ") : "";
  const plain = key in usual && group.runs[0][key] === usual[key];
  return element("td", { className: failures ? "bad" : plain ? "usual" : "", title: failures },
                 text(group, key));
}

function drawPair(pair) {
  const hidden = choice.pair.length - pair.length;
  if (pair.length < 2) return at("pair").replaceChildren(element("p", {},
    hidden === 2 ? "The ticked rows are filtered out." : hidden ? "A ticked row is filtered out."
      : `Tick ${pair.length ? "one more row" : "two rows"} in the table.`));
  const table = (...rows) => element("table", {}, ...rows.map(texts => element(
    "tr", {}, ...texts.map(text => element("td", {}, text)))));
  const both = (key, of) => [key, ...pair.map(group => unique(group.runs.map(of)).join(", "))];
  const machine = unique(pair.flatMap(group => group.runs.flatMap(
    run => Object.keys(run.machine))));
  const [differing, same] = parted(
    [both("run", run => run.name), ...settings.map(key => both(words(key), run => show(run[key]))),
     ...machine.map(key => both(key, run => show(run.machine[key])))], ([, a, b]) => a !== b);
  const measured = ["epochs", "best_epoch", ...results, "seconds"].map(key => {
    const [a, b] = pair.map(group => result(group, key)), known = a.n && b.n;
    const difference = known ? number(key, { n: 1, mean: b.mean - a.mean }) : "–";
    return [meaning(key), ...pair.map(group => text(group, key)),
            (difference > 0 ? "+" : "") + difference.replace("-", "−")];
  });
  at("pair").replaceChildren(
    table(["", ...pair.map(label), "difference (right − left)"], ...differing, ...measured),
    element("details", {}, element("summary", {}, `${same.length} that both share`),
            table(...same.map(row => row.slice(0, 2)))));
}

// All of it

let drawPlots, drawParallelNow;
const inView = new IntersectionObserver(([entry]) => entry.isIntersecting && drawParallelNow());

function draw(parallel = true) {
  const groups = grouped(runs.filter(run => passes(run))), used = axes();
  const shown = sorted(groups.filter(group => used.every(axis => inside(group, axis))));
  const all = grouped(runs), styles = stylesOf(all);
  const pair = choice.pair.map(key => shown.find(group => group.key === key)).filter(Boolean);
  const best = pair.length === 2 ? pair : shown.slice(0, COLOURED);
  const focus = document.activeElement.name;
  at("count").textContent = `${shown.flatMap(group => group.runs).length} of ${runs.length} runs` +
    (choice.single ? "" : `, ${shown.length} of ${all.length} settings`);
  drawFilters();
  drawTable(shown, best, styles);
  drawPair(pair);
  document.getElementsByName(focus)[0]?.focus({ preventScroll: true });
  drawPlots = () => {
    drawCurves(shown, best, styles);
    drawShares();
    inView.disconnect();
    if (parallel) inView.observe(at("parallel"));  // takes longest, so it waits to be in view
    drawParallelNow = () => {
      inView.disconnect();
      drawParallel(groups, used);
    };
  };
  if (window.Plotly) drawPlots();  // it is read last, so that the table is there before
}

addEventListener("beforeprint", () => {
  choose({ allRows: true });
  drawParallelNow();
});
dark.addEventListener("change", () => draw());
at("measure").append(...results.map(key => new Option(words(key), key)));
at("measure").onchange = ({ target: { value } }) =>
  choose({ measure: value, sort: value, descending: !isLoss(value) });
at("single").onchange = ({ target: { value } }) => choose({ single: value === "run", pair: [] });
at("all-rows").onclick = () => choose({ allRows: true });
at("clear").onclick = () => choose({ filters: {}, brushes: {} });
at("same").textContent = "All runs: " + settings.map(key => [key, valuesOf(runs, key)])
  .filter(([, all]) => all.length === 1).map(([key, [value]]) => `${words(key)} ${show(value)}`)
  .join(", ") + `. As of ${new Date(document.lastModified).toLocaleString()}.`;
draw();
