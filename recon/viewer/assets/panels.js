// Panels: one image or map each, all drawn with the same zoom and place, images with the same window, maps with the same scale.

const view = {
  file: null, slice: null, difference: false, low: 0, high: 1, scale: 0.1, zoom: 1, centre: [0, 0], turn: 0, mirror: false,
  boxes: true, smooth: true, cursor: null, hidden: new Set(), a: null, b: null, flicker: false, solo: false,
};
let panels = [];
let planes = new Map();

const seriesOf = (file) => (file.truth ? ["truth", ...file.methods] : file.methods);
// A page may name a series by the slice that is shown.
const nameOf = (series) => (series === "truth" ? "Truth" : view.nameHere?.(series) ?? labelOf(series));
const shownSeries = () => (view.solo ? [view.a] : seriesOf(view.file).filter((s) => !view.hidden.has(s)));
// "signed" or "magnitude" for a map, nothing for an image.
const kindOf = (series) => view.file.maps[series];
// What a panel shows: flickering puts B in the place of A.
const contentOf = (series) => (view.flicker && series === view.a ? view.b : series);
const failureOf = (series) => FAILURES.find((f) =>
  f.method === series && f.slice === view.slice && f.volume === view.file.volume && f.mask === view.file.mask && f.dataset === view.file.dataset);

function displayShape() {
  const [ny, nx] = view.file.shape;
  return view.turn % 2 ? [nx, ny] : [ny, nx];
}

// Point of the image, pixel k covering k to k + 1, to the place on the screen (row, column) in pixels of the image.
function toDisplay(y, x) {
  const [ny, nx] = view.file.shape;
  const [r, c] = [[y, x], [x, ny - y], [ny - y, nx - x], [nx - x, y]][view.turn];
  return [r, view.mirror ? displayShape()[1] - c : c];
}

function toImage(r, c) {
  const [ny, nx] = view.file.shape;
  const column = view.mirror ? displayShape()[1] - c : c;
  return [[r, column], [ny - column, r], [ny - r, nx - column], [column, nx - r]][view.turn];
}

// Index into the plane for every pixel on the screen.
let turned = { key: null, map: null };
function turnedMap() {
  const [ny, nx] = view.file.shape;
  const key = `${ny} ${nx} ${view.turn} ${view.mirror}`;
  if (turned.key !== key) {
    const [rows, columns] = displayShape();
    const map = new Int32Array(rows * columns);
    for (let r = 0, i = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++, i++) {
        const [y, x] = toImage(r + 0.5, c + 0.5);
        map[i] = Math.floor(y) * nx + Math.floor(x);
      }
    }
    turned = { key, map };
  }
  return turned.map;
}

const rgb = (r, g, b) => (255 << 24) | (b << 16) | (g << 8) | r;
const NO_NUMBER = rgb(0, 72, 80);

function greyTable() {
  const table = new Int32Array(INVALID + 1);
  const factor = view.file.step / view.file.reference;
  for (let code = 0; code <= INVALID; code++) {
    const grey = Math.round(255 * Math.min(1, Math.max(0, (code * factor - view.low) / (view.high - view.low))));
    table[code] = rgb(grey, grey, grey);
  }
  table[INVALID] = NO_NUMBER;
  return table;
}

// Blue where the image is darker than the truth, orange where it is brighter, black where they agree.
function differenceColour(t) {
  const s = Math.min(1, Math.abs(t));
  return t > 0 ? rgb(Math.round(255 * s), Math.round(165 * s), Math.round(60 * s)) : rgb(Math.round(60 * s), Math.round(160 * s), Math.round(255 * s));
}

function differenceTable() {
  const table = new Int32Array(2 * INVALID + 1);
  const factor = view.file.step / view.file.reference / view.scale;
  for (let d = -INVALID; d <= INVALID; d++) table[d + INVALID] = differenceColour(d * factor);
  return table;
}

// Black, purple, orange, pale yellow: brightness grows evenly, also for people who see few colours.
const HEAT = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
function heatColour(t) {
  const place = Math.min(1, Math.max(0, t)) * (HEAT.length - 1);
  const i = Math.min(HEAT.length - 2, Math.floor(place));
  return rgb(...HEAT[i].map((from, k) => Math.round(from + (HEAT[i + 1][k] - from) * (place - i))));
}

const mapColour = (kind, t) => (kind === "signed" ? differenceColour(t) : heatColour(t));

function mapTable(series) {
  const table = new Int32Array(INVALID + 1);
  for (let code = 0; code < INVALID; code++) {
    table[code] = mapColour(kindOf(series), valueOf(view.file, code, series) / view.file.reference / view.scale);
  }
  table[INVALID] = NO_NUMBER;
  return table;
}

function paintPanel(panel, grey, difference) {
  const codes = planes.get(contentOf(panel.series));
  const [rows, columns] = displayShape();
  panel.source.width = columns;
  panel.source.height = rows;
  panel.empty = !codes || codes.every((code) => code === INVALID);
  if (panel.empty) return;
  const context = panel.source.getContext("2d");
  const picture = context.createImageData(columns, rows);
  const pixels = new Int32Array(picture.data.buffer);
  const map = turnedMap();
  const series = contentOf(panel.series);
  const truth = view.difference && series !== "truth" ? planes.get("truth") : null;
  const table = kindOf(series) ? mapTable(series) : grey;
  for (let i = 0; i < pixels.length; i++) {
    const code = codes[map[i]];
    if (!truth) pixels[i] = table[code];
    else pixels[i] = code === INVALID || truth[map[i]] === INVALID ? NO_NUMBER : difference[code - truth[map[i]] + INVALID];
  }
  context.putImageData(picture, 0, 0);
}

// Pixels of the screen for one pixel of the image.
function magnification(canvas) {
  const [rows, columns] = displayShape();
  return view.zoom * Math.min(canvas.width / columns, canvas.height / rows);
}

function drawPanel(panel) {
  const { canvas } = panel;
  const context = canvas.getContext("2d");
  const ratio = devicePixelRatio || 1;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (panel.empty) return drawReason(panel, context, ratio);
  const scale = magnification(canvas);
  const [left, top] = [canvas.width / 2 - view.centre[1] * scale, canvas.height / 2 - view.centre[0] * scale];
  context.imageSmoothingEnabled = view.smooth && scale < 6 * ratio;
  context.imageSmoothingQuality = "high";
  context.drawImage(panel.source, left, top, panel.source.width * scale, panel.source.height * scale);
  const place = ([r, c]) => [left + c * scale, top + r * scale];
  if (view.boxes) drawBoxes(context, place, ratio);
  if (view.file.letters) drawLetters(context, panel.canvas, ratio);
  if (view.cursor) drawCursor(context, place, scale, ratio);
}

function drawReason(panel, context, ratio) {
  const series = contentOf(panel.series);
  const failed = failureOf(series);
  const words = (failed ? `failed: ${failed.reason || "no reason given"}` : planes.has(series) ? "no image" : "not in this page").split(/\s+/);
  context.fillStyle = "#ffc680";
  context.font = `${12 * ratio}px system-ui, sans-serif`;
  let text = "", y = 22 * ratio;
  const flush = () => { context.fillText(text, 8 * ratio, y); y += 16 * ratio; };
  for (const word of words) {
    if (text && context.measureText(`${text} ${word}`).width > panel.canvas.width - 16 * ratio) { flush(); text = word; } else text = text ? `${text} ${word}` : word;
  }
  flush();
}

function drawBoxes(context, place, ratio) {
  for (const [slice, kind, y0, x0, y1, x1] of view.file.boxes) {
    if (slice !== view.slice) continue;
    const [ax, ay] = place(toDisplay(y0, x0)), [bx, by] = place(toDisplay(y1, x1));
    const [x, y] = [Math.min(ax, bx), Math.min(ay, by)];
    context.lineWidth = 1.5 * ratio;
    context.strokeStyle = "#ffd23f";
    context.strokeRect(x, y, Math.abs(bx - ax), Math.abs(by - ay));
    context.fillStyle = "#ffd23f";
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.fillText(`class ${kind}`, x, y > 14 * ratio ? y - 4 * ratio : y + Math.abs(by - ay) + 12 * ratio);
  }
}

// Directions of the patient at the edges; they follow when the view is rotated or mirrored.
function lettersShown() {
  const [left, right, top, bottom] = view.file.letters;
  let around = [top, right, bottom, left];
  for (let i = 0; i < view.turn; i++) around = [around[3], ...around.slice(0, 3)];
  if (view.mirror) around = [around[0], around[3], around[2], around[1]];
  return around;
}

function drawLetters(context, canvas, ratio) {
  const [w, h, edge] = [canvas.width, canvas.height, 4 * ratio];
  const spots = [[w / 2, edge, "center", "top"], [w - edge, h / 2, "right", "middle"], [w / 2, h - edge, "center", "bottom"], [edge, h / 2, "left", "middle"]];
  context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  context.lineWidth = 3 * ratio;
  context.lineJoin = "round";
  lettersShown().forEach((letters, i) => {
    const [x, y, align, baseline] = spots[i];
    Object.assign(context, { textAlign: align, textBaseline: baseline, strokeStyle: "#000", fillStyle: "#fff" });
    context.strokeText(letters, x, y);
    context.fillText(letters, x, y);
  });
  Object.assign(context, { textAlign: "start", textBaseline: "alphabetic" });
}

function drawCursor(context, place, scale, ratio) {
  const [x, y] = place(toDisplay(view.cursor[0] + 0.5, view.cursor[1] + 0.5));
  const [inner, outer] = [Math.max(3 * ratio, scale / 2), Math.max(9 * ratio, scale / 2 + 5 * ratio)];
  for (const [width, ink] of [[3, "#000"], [1, "#7dff9a"]]) {
    context.lineWidth = width * ratio;
    context.strokeStyle = ink;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + dx * inner, y + dy * inner);
      context.lineTo(x + dx * outer, y + dy * outer);
    }
    context.stroke();
  }
}

// The largest tiles with which all panels fit on the screen together.
function tileSize(n) {
  const [rows, columns] = displayShape();
  const aspect = columns / rows;
  const width = byId("stage").clientWidth - 12;
  const height = Math.max(330, innerHeight - 110);
  let best = { width: 0 };
  for (let across = 1; across <= n; across++) {
    const down = Math.ceil(n / across);
    const tile = Math.min((width - 6 * (across - 1)) / across - 4, ((height - 6 * (down - 1)) / down - 39) * aspect);
    if (tile > best.width) best = { width: tile, across };
  }
  const tile = Math.max(110, Math.floor(best.width));
  return { width: tile, height: Math.round(tile / aspect), across: best.across ?? 1 };
}

function layOut() {
  const wanted = shownSeries();
  const { width, height, across } = tileSize(Math.max(1, wanted.length));
  const ratio = devicePixelRatio || 1;
  panels = wanted.map((series) => panels.find((p) => p.series === series) ?? newPanel(series));
  byId("panels").style.gridTemplateColumns = `repeat(${across}, ${width + 4}px)`;
  for (const { canvas } of panels) {
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  }
  byId("panels").replaceChildren(...panels.map((p) => p.element));
}

function newPanel(series) {
  const canvas = h("canvas", { role: "img" });
  const [name, figure, value] = [h("b"), h("span"), h("output")];
  const element = h("div", { class: "panel", "data-series": series }, h("header", {}, name, figure), canvas, value);
  const panel = { series, canvas, element, name, figure, value, source: document.createElement("canvas"), empty: true };
  listenTo(panel);
  return panel;
}

function paint() {
  const [grey, difference] = [greyTable(), differenceTable()];
  for (const panel of panels) paintPanel(panel, grey, difference);
  draw();
}

function draw() {
  for (const panel of panels) drawPanel(panel);
  caption();
}

function caption() {
  const metric = METRICS.get(state.metric);
  for (const panel of panels) {
    const series = contentOf(panel.series);
    const row = metric && ROWS.find((r) => r.dataset === view.file.dataset && r.volume === view.file.volume && r.mask === view.file.mask && r.method === series);
    const figure = row && row[metric.key] != null ? `${format(number(row[metric.key]), metric)}${metric.unit ? ` ${metric.unit}` : ""}` : "";
    const difference = view.difference && view.file.truth && series !== "truth";
    panel.name.title = nameOf(series);
    panel.name.textContent = nameOf(series) + (difference ? " − truth" : "") + (series === panel.series ? "" : "  (B)");
    panel.figure.textContent = figure;
    panel.figure.title = figure ? `${metric.label} of the volume` : "";
    panel.element.classList.toggle("a", panel.series === view.a);
    panel.element.classList.toggle("swapped", series !== panel.series);
    panel.canvas.setAttribute("aria-label", `${nameOf(series)}${difference ? ", difference to the truth" : ""}, ${view.file.volume}, slice ${view.slice}${view.file.mask ? `, ${view.file.mask}` : ""}${figure ? `; ${metric.label} of the volume ${figure}` : ""}`);
    panel.value.textContent = valueUnderCursor(series);
  }
  drawLegend();
}

function valueUnderCursor(series) {
  const codes = planes.get(series);
  if (!view.cursor || !codes) return "";
  const at = view.cursor[0] * view.file.shape[1] + view.cursor[1];
  const value = valueText(view.file, codes[at], series);
  const truth = series === "truth" ? null : planes.get("truth");
  if (!truth || codes[at] >= ABOVE || truth[at] >= ABOVE) return value;
  const difference = (codes[at] - truth[at]) * view.file.step;
  return `${value}  Δ ${difference > 0 ? "+" : ""}${significant(difference)}`;
}
