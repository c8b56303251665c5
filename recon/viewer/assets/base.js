// Data, state and helpers that every part uses.

const DATA = JSON.parse(document.getElementById("data").textContent);
const IMAGES = JSON.parse(document.getElementById("images").textContent);

function records(table) {
  return table.rows.map((row) => Object.fromEntries(table.columns.map((name, i) => [name, row[i]])));
}
const ROWS = records(DATA.rows);
const FAILURES = records(DATA.failures);
const METHODS = new Map(DATA.methods.map((m, i) => [m.name, { ...m, index: i }]));
const METRICS = new Map(DATA.metrics.map((m) => [m.key, m]));

// Readable on white and on black, and told apart by people who see few colours: symbols and dashes differ too.
const COLOURS = ["#3b7dd8", "#e0652b", "#2a9d5c", "#b06fd6", "#bd9414", "#d6487e", "#159fb3", "#8a9099", "#9a6b3f", "#6c5ce7"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down", "hexagon", "pentagon"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const cycle = (list, i) => list[i % list.length];
const indexOf = (name) => METHODS.get(name)?.index ?? METHODS.size;
const colour = (name) => cycle(COLOURS, indexOf(name));
const symbol = (name) => cycle(SYMBOLS, indexOf(name));
const labelOf = (name) => METHODS.get(name)?.label ?? name;

const state = { dataset: null, mask: null, metric: null, everyMask: false, sort: { key: null, descending: false } };

// Text only ever enters the page as text.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((c) => c != null));
  return element;
}

const byId = (id) => document.getElementById(id);
const number = (value) => (value == null || value === "" ? null : Number(value));
const finite = (value) => typeof value === "number" && Number.isFinite(value);
const values = (rows, key) => rows.map((row) => number(row[key])).filter(finite);
const unique = (list) => [...new Set(list)];
const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);

function median(list) {
  const sorted = [...list].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function groupBy(list, key) {
  const groups = new Map();
  for (const item of list) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

function fill(select, options, chosen) {
  const groups = groupBy(options, (o) => o.group ?? "");
  const option = (o) => h("option", { value: o.value, selected: o.value === chosen }, o.label);
  select.replaceChildren(...[...groups].flatMap(([group, found]) => (group ? [h("optgroup", { label: group }, ...found.map(option))] : found.map(option))));
  select.disabled = options.length < 2;
}

// Figures as people read them: as many places as tell values of this size apart.
function format(value, metric) {
  if (value == null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = metric?.unit === "dB" ? value.toFixed(2)
    : size === 0 ? "0" : size >= 1000 ? value.toFixed(0) : size >= 100 ? value.toFixed(1)
    : size >= 1 ? value.toPrecision(3) : size >= 0.1 ? value.toFixed(4) : value.toPrecision(3);
  return text.replace(/^-/, "−");
}

const signed = (value, metric) => (value > 0 ? "+" : "") + format(value, metric);
const probability = (p) => (p == null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const arrow = (metric) => (metric?.better === "higher" ? "↑" : metric?.better === "lower" ? "↓" : "");
const betterText = (metric) => (metric?.better ? `${metric.better} is better` : "");
const titled = (metric) => metric.label + (metric.unit ? ` [${metric.unit}]` : "");

const listeners = [];
const onChange = (listener) => listeners.push(listener);
const changed = () => listeners.forEach((listener) => listener());

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", String(dark));
  changed();
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.addEventListener("change", (event) => setTheme(event.matches));
byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
document.documentElement.dataset.theme = prefersDark.matches ? "dark" : "light";
byId("theme").setAttribute("aria-pressed", String(prefersDark.matches));
