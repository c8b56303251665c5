// The choice of data, mask and metric, and the tables.

const FIXED = [
  { key: "seconds_per_slice", label: "s / slice", better: "lower" },
  { key: "maps_seconds_per_slice", label: "maps\ns / slice", better: "" },
  { key: "peak_cpu_mb", label: "CPU peak\nMB", better: "" },
  { key: "peak_gpu_mb", label: "GPU peak\nMB", better: "" },
];

const rowsOf = (dataset, mask, method) =>
  ROWS.filter((r) => r.dataset === dataset && (mask == null || r.mask === mask) && (method == null || r.method === method));
const masksOf = (dataset) => {
  const found = new Set(ROWS.filter((r) => r.dataset === dataset).map((r) => r.mask));
  return [...DATA.masks.filter((m) => found.has(m)), ...[...found].filter((m) => !DATA.masks.includes(m))];
};
const methodsOf = (dataset, mask) => {
  const found = new Set(rowsOf(dataset, mask).map((r) => r.method));
  return [...METHODS.keys()].filter((m) => found.has(m));
};
const statistic = (dataset, mask, metric, method) =>
  DATA.statistics.find((s) => s.mask === mask && s.metric === metric && s.method === method && (s.dataset ?? dataset) === dataset);

// Mean over volumes with its interval; without statistics (one volume, a run that goes on) the mean alone.
function summary(dataset, mask, metric, method) {
  const rows = rowsOf(dataset, mask, method);
  const found = statistic(dataset, mask, metric, method);
  const measured = rows.map((r) => number(r[metric])).filter((v) => v != null);
  return { ...found, mean: found?.mean ?? mean(measured), n: found?.n ?? measured.length, n_rows: rows.length };
}

function tableRows() {
  const masks = state.everyMask ? masksOf(state.dataset) : [state.mask];
  return masks.flatMap((mask) => methodsOf(state.dataset, mask).map((method) => {
    const rows = rowsOf(state.dataset, mask, method);
    const cells = { method, mask, summaries: {}, n_slices: sum(rows, "n_slices"), n_failed: sum(rows, "n_failed") };
    for (const { key } of FIXED) cells[key] = key.startsWith("peak") ? greatest(values(rows, key)) : weighted(rows, key);
    for (const metric of shownMetrics()) cells.summaries[metric.key] = summary(state.dataset, mask, metric.key, method);
    return cells;
  }));
}

const sum = (rows, key) => values(rows, key).reduce((a, b) => a + b, 0);
const greatest = (list) => (list.length ? Math.max(...list) : null);

function weighted(rows, key) {
  const found = rows.filter((r) => finite(number(r[key])));
  const slices = found.map((r) => number(r.n_slices) || 1);
  const total = slices.reduce((a, b) => a + b, 0);
  return total ? found.reduce((a, r, i) => a + number(r[key]) * slices[i], 0) / total : null;
}

// The chosen metric first, then the others of its group.
function shownMetrics() {
  const chosen = METRICS.get(state.metric);
  return chosen ? [chosen, ...DATA.metrics.filter((m) => m.group === chosen.group && m !== chosen)] : [];
}

function columns() {
  const [chosen, ...others] = shownMetrics();
  const list = [{ id: "method", label: "Method", text: true, value: (r) => indexOf(r.method), cell: methodCell }];
  if (state.everyMask) list.push({ id: "mask", label: "Mask", text: true, value: (r) => DATA.masks.indexOf(r.mask), cell: (r) => r.mask });
  if (chosen) {
    const of = (r) => r.summaries[chosen.key];
    list.push(
      { id: chosen.key, metric: chosen, label: `${titled(chosen)} ${arrow(chosen)}\nmean [95 % interval]`, value: (r) => of(r).mean, cell: (r) => meanCell(of(r), chosen) },
      { id: "difference", label: "difference to\nbest classical", value: (r) => of(r).difference, cell: (r) => differenceCell(of(r), chosen, r.method) },
      { id: "p", label: "p\ncorrected", value: (r) => of(r).p_corrected, cell: (r) => probability(number(of(r).p_corrected)) },
    );
  }
  for (const m of others) {
    list.push({ id: m.key, metric: m, label: `${titled(m).replace(", support", "")} ${arrow(m)}`, value: (r) => r.summaries[m.key].mean, cell: (r) => format(r.summaries[m.key].mean, m) });
  }
  for (const f of FIXED) {
    if (ROWS.some((r) => number(r[f.key]) != null)) {
      list.push({ id: f.key, label: f.label + (f.better ? " ↓" : ""), better: f.better, value: (r) => r[f.key], cell: (r) => format(r[f.key]) });
    }
  }
  list.push({ id: "n_slices", label: "slices", value: (r) => r.n_slices, cell: (r) => String(r.n_slices) });
  list.push({ id: "n_failed", label: "failed", value: (r) => r.n_failed, cell: (r) => (r.n_failed ? h("span", { class: "flag" }, `⚠ ${r.n_failed}`) : "0") });
  return list;
}

function methodCell(row) {
  const method = METHODS.get(row.method);
  const outside = method?.outside?.[row.mask] ?? [];
  const notes = [].concat(outside).join("; ");
  return h("span", {}, labelOf(row.method), h("span", { class: "family" }, ` ${method?.family ?? ""}`),
    notes ? h("span", { class: "flag", title: notes, tabindex: 0, "aria-label": `outside its training: ${notes}` }, " ⚠ outside its training") : null);
}

function meanCell(s, metric) {
  const interval = s.low != null && s.high != null ? ` [${format(number(s.low), metric)}, ${format(number(s.high), metric)}]` : "";
  const missing = s.n < s.n_rows ? ` (${s.n} of ${s.n_rows} volumes)` : "";
  return h("span", {}, format(number(s.mean), metric), h("span", { class: "interval" }, interval + missing));
}

function differenceCell(s, metric, method) {
  if (s.reference === method) return h("span", { class: "interval" }, "best classical");
  if (s.difference == null) return "–";
  const interval = s.diff_low != null ? ` [${signed(number(s.diff_low), metric)}, ${signed(number(s.diff_high), metric)}]` : "";
  return h("span", {}, signed(number(s.difference), metric), h("span", { class: "interval" }, interval));
}

// Best among the methods that have all volumes: a mean over fewer is another comparison.
function isBest(row, column, rows) {
  const better = column.metric?.better ?? column.better;
  const own = number(column.value(row));
  if (!better || own == null || Number.isNaN(own)) return false;
  const peers = rows.filter((r) => r.mask === row.mask && (!column.metric || complete(r.summaries[column.metric.key])));
  const found = peers.map((r) => number(column.value(r))).filter((v) => v != null && !Number.isNaN(v));
  if (found.length < 2 || !peers.includes(row)) return false;
  return own === (better === "higher" ? Math.max(...found) : Math.min(...found));
}
const complete = (s) => s.n === s.n_rows;

function compare(column, descending) {
  return (a, b) => {
    const [x, y] = [number(column.value(a)), number(column.value(b))];
    // What was not measured stands last in both directions.
    if (x == null || y == null) return (x == null) - (y == null);
    return descending ? y - x : x - y;
  };
}

function headings(list, sort, onSort) {
  return h("thead", {}, h("tr", {}, ...list.map((column) => {
    const active = sort.key === column.id;
    const mark = active ? (sort.descending ? " ▼" : " ▲") : "";
    const button = h("button", { type: "button", title: betterText(column.metric ?? column), onclick: () => onSort(column) }, column.label, h("span", { class: "mark", "aria-hidden": "true" }, mark));
    return h("th", { scope: "col", class: column.text ? "text" : "", "data-column": column.id, "aria-sort": active ? (sort.descending ? "descending" : "ascending") : null }, button);
  })));
}

// The first click shows the best on top.
function sortBy(sort, column) {
  if (sort.key === column.id) return { key: column.id, descending: !sort.descending };
  return { key: column.id, descending: (column.metric ?? column).better === "higher" || column.id === "n_failed" || column.id === "difference" && METRICS.get(state.metric)?.better === "higher" };
}

function drawTable() {
  const list = columns();
  const rows = tableRows();
  const active = list.find((c) => c.id === state.sort.key);
  const sorted = active ? [...rows].sort(compare(active, state.sort.descending)) : rows;
  const focused = document.activeElement?.closest?.("th")?.dataset.column;
  const body = sorted.map((row) => h("tr", { "data-method": row.method, "data-mask": row.mask }, ...list.map((column, i) => {
    const best = isBest(row, column, rows);
    const content = column.cell(row);
    const attributes = { class: [column.text ? "text" : "", best ? "best" : ""].join(" ").trim(), "data-column": column.id };
    return h(i ? "td" : "th", i ? attributes : { ...attributes, scope: "row" }, ...(best ? ["★ ", h("span", { class: "sr" }, "best ")] : []), content);
  })));
  byId("table").replaceChildren(h("caption", { class: "sr" }, `Results on ${state.dataset}, ${state.everyMask ? "all masks" : state.mask}`),
    headings(list, state.sort, (column) => { state.sort = sortBy(state.sort, column); drawTable(); }), h("tbody", {}, ...body));
  if (focused) byId("table").querySelector(`th[data-column="${CSS.escape(focused)}"] button`)?.focus();
  drawNotes(rows);
  drawVolumes();
}

function drawNotes(rows) {
  const metric = METRICS.get(state.metric);
  byId("says").textContent = metric ? `${metric.label}: ${metric.says}. ${metric.better ? `${arrow(metric)} ${betterText(metric)}.` : ""}` : "No metric has been measured on these data (no truth, or no volume is complete yet).";
  const tested = rows.map((r) => r.summaries[state.metric]).filter((s) => s?.reference);
  const statistics = tested.find((s) => s.p_corrected != null) ?? tested[0];
  const n = Math.max(0, ...rows.map((r) => r.summaries[state.metric]?.n ?? 0));
  const about = statistics && n > 1
    ? `95 % intervals (${statistics.interval_method ?? "paired bootstrap"}) over ${n} volumes; differences and p (paired Wilcoxon test, Holm's correction for ${statistics.comparisons ?? "all"} comparisons) against ${labelOf(statistics.reference)}, the best classical method.${hopeless(statistics)}`
    : n ? `Mean over ${n} volume${n === 1 ? "" : "s"}; no interval and no test with so few.` : "";
  byId("table-note").textContent = `★ best of the methods that have every volume. ${about} – not measured.`;
  const failed = FAILURES.filter((f) => f.dataset === state.dataset && (state.everyMask || f.mask === state.mask));
  byId("failures").hidden = !failed.length;
  byId("failures").querySelector("summary").textContent = `${failed.length} failed slice${failed.length === 1 ? "" : "s"}, with the reason`;
  const groups = groupBy(failed, (f) => JSON.stringify([f.method, f.reason]));
  byId("failures").querySelector("ul").replaceChildren(...[...groups].map(([key, found]) => {
    const [method, reason] = JSON.parse(key);
    const where = found.slice(0, 8).map((f) => `${f.volume} / ${f.slice}`).join(", ") + (found.length > 8 ? ", …" : "");
    return h("li", {}, h("b", {}, labelOf(method)), `, ${found.length} × “${reason || "no reason given"}” (volume / slice: ${where})`);
  }));
}

// So few volumes that no difference could be significant: that is not evidence of equality.
function hopeless(s) {
  const least = Math.min(1, (s.smallest_p ?? 0) * (s.comparisons ?? 1));
  return least < 0.05 ? "" : ` With so few volumes p cannot fall below ${probability(least)}, whatever the difference.`;
}

let volumeSort = { key: null, descending: false };

function drawVolumes() {
  // Thousands of rows: only when somebody looks.
  if (!byId("volumes").open) return byId("volume-table").replaceChildren();
  const metrics = shownMetrics();
  const text = (id) => ({ id, label: id, text: true, value: (r) => r.order[id], cell: (r) => (id === "method" ? labelOf(r.method) : r[id]) });
  const list = [text("volume"), text("mask"), text("method"),
    ...metrics.map((m) => ({ id: m.key, metric: m, label: `${titled(m)} ${arrow(m)}`, value: (r) => r[m.key], cell: (r) => format(number(r[m.key]), m) })),
    ...["acceleration", "seconds_per_slice", "n_slices", "n_failed"].map((id) => ({ id, label: id.replaceAll("_", " "), value: (r) => r[id], cell: (r) => format(number(r[id])) })),
    { id: "digest", label: "mask digest", text: true, value: (r) => r.order.digest, cell: (r) => String(r.digest ?? "").slice(0, 8) }];
  const rows = rowsOf(state.dataset, state.everyMask ? null : state.mask, null);
  for (const key of ["volume", "mask", "method", "digest"]) {
    const rank = new Map(unique(rows.map((r) => String(r[key]))).sort().map((v, i) => [v, i]));
    for (const row of rows) row.order = { ...row.order, [key]: rank.get(String(row[key])) };
  }
  const active = list.find((c) => c.id === volumeSort.key);
  if (active) rows.sort(compare(active, volumeSort.descending));
  byId("volume-table").replaceChildren(headings(list, volumeSort, (c) => { volumeSort = sortBy(volumeSort, c); drawVolumes(); }),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...list.map((c) => h("td", { class: c.text ? "text" : "" }, c.cell(row)))))));
}

function choose(change) {
  Object.assign(state, change);
  const masks = masksOf(state.dataset);
  if (!masks.includes(state.mask)) state.mask = masks[0] ?? null;
  const measured = DATA.metrics.filter((m) => ROWS.some((r) => r.dataset === state.dataset && r[m.key] != null));
  if (!measured.some((m) => m.key === state.metric)) state.metric = (measured.find((m) => m.key === "psnr_support") ?? measured[0])?.key ?? null;
  const plain = (value) => ({ value, label: value });
  fill(byId("dataset"), DATA.datasets.map(plain), state.dataset);
  fill(byId("mask"), masks.map(plain), state.mask);
  fill(byId("metric"), measured.map((m) => ({ value: m.key, label: titled(m), group: m.group })), state.metric);
  changed();
}

onChange(drawTable);
for (const name of ["dataset", "mask", "metric"]) byId(name).addEventListener("change", (event) => choose({ [name]: event.target.value }));
byId("every-mask").addEventListener("change", (event) => choose({ everyMask: event.target.checked }));
byId("choice").addEventListener("submit", (event) => event.preventDefault());
byId("volumes").addEventListener("toggle", drawVolumes);
choose({ dataset: DATA.datasets[0] ?? null });
