// Plots, by Plotly. Each is a function that gives traces, layout and words, or null where there is nothing to show.

// Plotly reads some HTML in its texts; names are not HTML.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const marker = (method, size = 8) => ({ color: colour(method), symbol: symbol(method), size });
const line = (method, i = indexOf(method)) => ({ color: colour(method), dash: cycle(DASHES, i), width: 2 });
const chosenMetric = () => METRICS.get(state.metric);
const axisTitle = (metric) => `${plain(titled(metric))} ${arrow(metric)}`;
const better = (metric) => (metric.better ? ` ${arrow(metric)} ${betterText(metric)}.` : "");

function boxes() {
  const metric = chosenMetric();
  if (!metric) return null;
  const found = methodsOf(state.dataset, state.mask)
    .map((method) => ({ method, rows: rowsOf(state.dataset, state.mask, method).filter((r) => finite(number(r[metric.key]))) }))
    .filter((f) => f.rows.length);
  const traces = found.map(({ method, rows }) => ({
    type: "box", name: plain(labelOf(method)), y: rows.map((r) => number(r[metric.key])), text: rows.map((r) => plain(r.volume)),
    boxpoints: "all", jitter: 0.45, pointpos: 0, boxmean: true, marker: { ...marker(method, 5), opacity: 0.75 }, line: { width: 1.5 },
    hovertemplate: "%{text}<br>%{y}<extra></extra>",
  }));
  const medians = found.map((f) => `${labelOf(f.method)} ${format(median(values(f.rows, metric.key)), metric)}`).join(", ");
  return {
    traces, layout: { yaxis: { title: { text: axisTitle(metric) } }, showlegend: false },
    caption: `Each point is a volume of ${state.dataset} under ${state.mask}; line: median, dashed line: mean.`,
    alt: `Box plot of ${metric.label} over volumes. Medians: ${medians}.`,
  };
}

const family = (mask) => String(mask).split(":")[0];

function acceleration() {
  const metric = chosenMetric();
  if (!metric) return null;
  const masks = masksOf(state.dataset);
  const families = unique(masks.map(family));
  const traces = methodsOf(state.dataset, null).flatMap((method) => families.map((name, i) => {
    const points = masks.filter((m) => family(m) === name)
      .map((mask) => ({ mask, x: mean(values(rowsOf(state.dataset, mask, method), "acceleration")), ...summary(state.dataset, mask, metric.key, method) }))
      .filter((p) => finite(p.x) && finite(number(p.mean))).sort((a, b) => a.x - b.x);
    const bars = points.every((p) => p.low != null && p.high != null);
    return {
      type: "scatter", mode: "lines+markers", name: plain(labelOf(method)), legendgroup: method,
      x: points.map((p) => p.x), y: points.map((p) => p.mean), text: points.map((p) => plain(p.mask)), marker: marker(method), line: line(method, families.length > 1 ? i : undefined),
      error_y: bars ? { type: "data", symmetric: false, array: points.map((p) => p.high - p.mean), arrayminus: points.map((p) => p.mean - p.low), thickness: 1, width: 3 } : undefined,
      hovertemplate: "%{text}, R = %{x:.2f}<br>%{y}<extra>%{fullData.name}</extra>",
    };
  })).filter((t) => t.x.length);
  for (const trace of traces) trace.showlegend = traces.find((t) => t.legendgroup === trace.legendgroup) === trace;
  return {
    traces, layout: { xaxis: { title: { text: "acceleration of the masks drawn" } }, yaxis: { title: { text: axisTitle(metric) } } },
    caption: `Means over the volumes of ${state.dataset} with 95 % intervals; masks of one family are joined${families.length > 1 ? ` (${families.map((f, i) => `${f}: ${cycle(DASHES, i)}`).join(", ")})` : ""}.`,
    alt: `${metric.label} against acceleration, one line per method${families.length > 1 ? " and mask family" : ""}.${better(metric)}`,
  };
}

function speed() {
  const metric = chosenMetric();
  if (!metric) return null;
  const points = methodsOf(state.dataset, state.mask).map((method) => ({
    method, x: weighted(rowsOf(state.dataset, state.mask, method), "seconds_per_slice"), ...summary(state.dataset, state.mask, metric.key, method),
  })).filter((p) => finite(p.x) && p.x > 0 && finite(number(p.mean)));
  const traces = points.map((p) => ({
    type: "scatter", mode: "markers", name: plain(labelOf(p.method)), x: [p.x], y: [p.mean], marker: marker(p.method, 12),
    error_y: p.low != null ? { type: "data", symmetric: false, array: [p.high - p.mean], arrayminus: [p.mean - p.low], thickness: 1, width: 3 } : undefined,
    hovertemplate: "%{x:.3g} s<br>%{y}<extra>%{fullData.name}</extra>",
  }));
  return {
    traces, layout: { xaxis: { type: "log", title: { text: "seconds per slice, coil maps apart" }, dtick: 1, exponentformat: "power", minor: { ticks: "outside" } }, yaxis: { title: { text: axisTitle(metric) } } },
    caption: `${state.dataset}, ${state.mask}; measured in the same run, warm-up excluded.`,
    alt: `${metric.label} against seconds per slice: ${points.map((p) => `${labelOf(p.method)} ${format(number(p.mean), metric)} in ${format(p.x)} s`).join(", ")}.`,
  };
}

function tuning() {
  const found = DATA.tuning.filter((t) => t.mask === state.mask);
  if (!found.length) return null;
  const metric = METRICS.get(found[0].metric) ?? { label: found[0].metric ?? "metric", unit: "" };
  const traces = found.flatMap((t) => {
    const at = t.weights.reduce((best, w, i) => (Math.abs(w - t.chosen) < Math.abs(t.weights[best] - t.chosen) ? i : best), 0);
    return [
      { type: "scatter", mode: "lines+markers", name: plain(labelOf(t.method)), legendgroup: t.method, x: t.weights, y: t.values, marker: marker(t.method, 6), line: line(t.method), hovertemplate: "weight %{x:.3g}<br>%{y}<extra>%{fullData.name}</extra>" },
      { type: "scatter", mode: "markers", name: "chosen", legendgroup: t.method, showlegend: false, x: [t.chosen], y: [t.values[at]], marker: { symbol: "circle-open", size: 17, color: style("--ink"), line: { width: 2.5 } }, hovertemplate: `chosen: %{x:.3g}<extra>${plain(labelOf(t.method))}</extra>` },
    ];
  });
  const on = unique(found.flatMap((t) => [].concat(t.on ?? []))).map((o) => [].concat(o).join(" / "));
  return {
    traces, layout: { xaxis: { type: "log", title: { text: "regularisation weight" }, exponentformat: "power" }, yaxis: { title: { text: axisTitle(metric) } } },
    caption: `${state.mask}; circle: the weight chosen. Tuned on ${on.slice(0, 6).join(", ")}${on.length > 6 ? ", …" : ""}${on.length ? ", which are not reported" : "slices that are not reported"}.`,
    alt: `Tuning curves. Chosen weights: ${found.map((t) => `${labelOf(t.method)} ${format(t.chosen)}`).join(", ")}.`,
  };
}

function convergence() {
  const found = DATA.convergence.filter((c) => c.mask === state.mask);
  if (!found.length) return null;
  const atStop = (c, list) => list[c.iterations.reduce((best, n, i) => (Math.abs(n - c.stop) < Math.abs(c.iterations[best] - c.stop) ? i : best), 0)];
  const traces = found.flatMap((c) => [["values", "y"], ["relative_change", "y2"]].filter(([key]) => c[key]?.length).flatMap(([key, axis]) => [
    { type: "scatter", mode: "lines", name: plain(labelOf(c.method)), legendgroup: c.method, showlegend: key === "values", x: c.iterations, y: c[key], xaxis: axis === "y" ? "x" : "x2", yaxis: axis, line: line(c.method), hovertemplate: "iteration %{x}<br>%{y}<extra>%{fullData.name}</extra>" },
    ...(c.stop == null ? [] : [{ type: "scatter", mode: "markers", name: "stop", legendgroup: c.method, showlegend: false, x: [c.stop], y: [atStop(c, c[key])], xaxis: axis === "y" ? "x" : "x2", yaxis: axis, marker: { ...marker(c.method, 11), line: { width: 2, color: style("--ink") } }, hovertemplate: `stops after %{x} iterations<extra>${plain(labelOf(c.method))}</extra>` }]),
  ]));
  const both = traces.some((t) => t.yaxis === "y2");
  const x = { title: { text: "iteration" }, type: "log", dtick: 1 };
  return {
    traces, wide: both,
    layout: {
      xaxis: { ...x, domain: both ? [0, 0.45] : [0, 1] }, yaxis: { title: { text: "PSNR on the support [dB]" } },
      ...(both ? { xaxis2: { ...x, domain: [0.55, 1], anchor: "y2" }, yaxis2: { title: { text: "relative change" }, type: "log", dtick: 1, exponentformat: "power", anchor: "x2" } } : {}),
    },
    caption: `${unique(found.map((c) => `${c.volume}, slice ${c.slice}`)).join("; ")}; ${state.mask}. Marked: where the method's own rule stops.`,
    alt: `Convergence: ${found.map((c) => `${labelOf(c.method)} stops after ${c.stop ?? "an unknown number of"} iterations`).join(", ")}.`,
  };
}

function heldOut(scan) {
  const found = scan.methods.filter((m) => values_(m).length);
  if (!found.length) return null;
  const traces = found.map((m) => ({
    type: "box", name: plain(labelOf(m.name)), y: values_(m), boxpoints: "all", jitter: 0.45, pointpos: 0, showlegend: false, marker: { ...marker(m.name, 5), opacity: 0.75 }, line: { width: 1.5 },
  }));
  // The mean of the table weighs draws by their signal energy: it is not that of the points.
  traces.push({
    type: "scatter", mode: "markers", name: "mean", showlegend: false, x: found.map((m) => plain(labelOf(m.name))), y: found.map((m) => m.mean),
    marker: { symbol: "line-ew", size: 34, line: { width: 2, color: style("--ink") } }, hovertemplate: "mean, weighted by signal energy: %{y:.4g}<extra></extra>",
  });
  const level = (y, text) => ({ type: "scatter", mode: "lines", name: text, x: found.map((m) => plain(labelOf(m.name))), y: found.map(() => y), line: { color: style("--dim"), dash: "dash", width: 1.5 }, hovertemplate: `${text}: %{y:.3g}<extra></extra>` });
  if (scan.floor != null) traces.push(level(scan.floor, "noise floor"));
  const failed = scan.methods.filter((m) => m.reason).map((m) => ` ${labelOf(m.name)} failed: ${m.reason}.`).join("");
  const noise = scan.floor == null ? "The noise is unknown; nothing was subtracted." : "Noise floor (dashed): expected noise energy over signal energy, subtracted from the errors.";
  const where = [scan.mask, [].concat(scan.slices ?? []).slice(0, 4).join(", ")].filter(Boolean).join("; ");
  return {
    traces, layout: { yaxis: { title: { text: `error on held-out ${plain(scan.unit ?? "samples")} ↓` }, rangemode: "tozero" }, showlegend: scan.floor != null, legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" }, xaxis: { type: "category" } },
    table: heldOutTable(scan),
    caption: `${scan.n_held_out ?? "?"} of ${scan.n_candidates ?? "?"} ${scan.unit ?? "samples"} held out in each of ${scan.draws?.length ?? found[0].values.length} draws${where ? ` (${where})` : ""}. ${noise} ${scan.says ?? ""}${failed}`,
    alt: `Error on held-out samples of ${scan.scan}: ${found.map((m) => `${labelOf(m.name)} ${format(m.mean)}`).join(", ")}.`,
  };
}

function heldOutTable(scan) {
  const ranked = [...scan.methods].sort((a, b) => (a.rank ?? Infinity) - (b.rank ?? Infinity));
  const heads = ["rank", "method", "error ± spread", "behind the best ± s. e."];
  const pair = (a, b) => (a == null ? "–" : format(a) + (b == null ? "" : ` ± ${format(b)}`));
  return h("table", {}, h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...ranked.map((m) => h("tr", {}, h("td", {}, m.rank == null ? "–" : String(m.rank)), h("td", { class: "text" }, labelOf(m.name), m.note ? h("span", { class: "family" }, ` ${m.note}`) : null),
      h("td", {}, m.reason ? `failed: ${m.reason}` : pair(m.mean, m.spread)), h("td", {}, m.rank === 1 ? "best" : pair(m.behind, m.behind_error) + (m.tied ? " (tied)" : ""))))));
}
const values_ = (m) => (m.values ?? []).map(number).filter(finite);

const PLOTS = [
  { id: "boxes", title: "Quality over volumes", make: boxes },
  { id: "acceleration", title: "Quality against acceleration", make: acceleration },
  { id: "speed", title: "Quality against seconds", make: speed },
  { id: "tuning", title: "Tuning of the weights", make: tuning },
  { id: "convergence", title: "Convergence", make: convergence },
  ...DATA.held_out.map((scan, i) => ({ id: `held-out-${i}`, title: `Without truth: ${scan.scan ?? "scan"}`, make: () => heldOut(scan) })),
];

function themed(layout) {
  const axis = { gridcolor: style("--grid"), zerolinecolor: style("--line"), linecolor: style("--line"), automargin: true };
  const result = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12.5, color: style("--ink") },
    margin: { l: 55, r: 12, t: 10, b: 45 }, legend: { font: { size: 11.5 }, tracegroupgap: 0 }, hoverlabel: { align: "left" },
    xaxis: {}, yaxis: {}, modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--dim"), activecolor: style("--accent") }, ...layout,
  };
  for (const name of Object.keys(result).filter((key) => /^[xy]axis\d*$/.test(key))) result[name] = { ...axis, ...result[name] };
  return result;
}

let started = false;

function loadPlotly() {
  if (window.Plotly) return;
  document.head.append(h("script", {}, byId("plotly").textContent));
  byId("plotly").remove();
}

// Words at once, so that nothing moves when the plot comes.
function describe(plot, made) {
  plot.stale = true;
  plot.figure.hidden = !made?.traces.length;
  if (plot.figure.hidden) return;
  plot.figure.classList.toggle("wide", Boolean(made.wide));
  plot.target.setAttribute("aria-label", made.alt);
  plot.caption.textContent = made.caption;
  plot.extra.replaceChildren(...(made.table ? [made.table] : []));
}

function drawPlot(plot) {
  const made = plot.make();
  plot.stale = false;
  if (plot.figure.hidden) return;
  loadPlotly();
  Plotly.react(plot.target, made.traces, themed(made.layout), {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: `recon-${plot.id}` },
  });
}

// Plots are drawn when they come near the screen: the page opens before them.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const plot = PLOTS.find((p) => p.figure === entry.target);
    plot.near = entry.isIntersecting;
    if (plot.near && plot.stale) drawPlot(plot);
  }
}, { rootMargin: "500px" });

function drawPlots() {
  if (!started) return;
  for (const plot of PLOTS) {
    describe(plot, plot.make());
    if (plot.near) drawPlot(plot);
  }
}

function startPlots() {
  for (const plot of PLOTS) {
    plot.target = h("div", { class: "plot", id: `plot-${plot.id}`, role: "img" });
    plot.caption = h("figcaption");
    plot.extra = h("div", { class: "scroll" });
    plot.figure = h("figure", {}, h("h3", {}, plot.title), plot.target, plot.extra, plot.caption);
    byId("plot-grid").append(plot.figure);
    near.observe(plot.figure);
  }
  started = true;
  drawPlots();
}
addEventListener("beforeprint", () => PLOTS.filter((p) => p.stale).forEach(drawPlot));
onChange(drawPlots);
