// The image viewer: what is shown, its controls and its legend.

const volumeKey = (file) => JSON.stringify([file.dataset, file.volume]);
const held = IMAGES.files.filter((file) => file.slices.length);
const volumeFiles = (key) => held.filter((file) => volumeKey(file) === key);
let loading = 0;
const showListeners = [];
const onShow = (listener) => showListeners.push(listener);

function announce(text) { byId("said").textContent = text; }

async function show(change = {}) {
  const before = view.file;
  Object.assign(view, change);
  const { file } = view;
  if (!file.slices.includes(view.slice)) view.slice = firstSlice(file);
  const all = seriesOf(file);
  if (!all.includes(view.a)) view.a = file.methods[0] ?? all[0];
  if (!all.includes(view.b)) view.b = all.find((s) => s !== view.a) ?? all[0];
  if (!file.truth) view.difference = false;
  if (before?.dataset !== file.dataset) setUpright();
  if (before !== file && (!before || String(before.shape) !== String(file.shape))) resetPlace();
  if (!before || volumeKey(before) !== volumeKey(file)) resetWindow();
  if (view.cursor && (view.cursor[0] >= file.shape[0] || view.cursor[1] >= file.shape[1])) view.cursor = null;
  // Decoding takes a moment: what was asked for last is shown, whatever comes first.
  const turn = ++loading;
  const { slice } = view;
  const found = await Promise.all(all.map((series) => planeOf(file, slice, series)));
  if (turn !== loading) return;
  planes = new Map(all.map((series, i) => [series, found[i]]));
  layOut();
  paint();
  drawControls();
  if (before !== file) drawSampling();
  showListeners.forEach((listener) => listener());
  byId("stage").dataset.shown = JSON.stringify([file.dataset, file.volume, file.mask, slice]);
}

// The middle one of those with a box, where there are boxes.
function firstSlice(file) {
  const marked = file.slices.filter((s) => file.boxes.some((box) => box[0] === s));
  const list = marked.length ? marked : file.slices;
  return list[list.length >> 1];
}

// A quarter turn and a mirror make a transpose.
function setUpright() {
  Object.assign(view, { turn: view.file.transposed ? 1 : 0, mirror: view.file.transposed });
  resetPlace();
}

function resetPlace() {
  view.zoom = 1;
  view.centre = displayShape().map((n) => n / 2);
}
function resetWindow() {
  Object.assign(view, { low: 0, high: view.file.bright, scale: view.file.map_scale ?? 0.1 });
}
function resetAll() {
  resetPlace();
  resetWindow();
  paint();
  announce("Window, zoom and place reset");
}

function setWindow(width, level) {
  const clamped = Math.max(0.004, Math.min(4, width));
  Object.assign(view, { low: level - clamped / 2, high: level + clamped / 2 });
  paint();
}

const SCALES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
function stepScale(direction) {
  const next = direction > 0 ? SCALES.find((s) => s > view.scale * 1.01) : SCALES.findLast((s) => s < view.scale * 0.99);
  if (next) setScale(next);
}
function setScale(scale) {
  view.scale = Math.max(0.002, Math.min(2, scale));
  paint();
}

function toggleDifference() {
  if (!view.file.truth) return announce("These data have no truth to subtract");
  view.difference = !view.difference;
  paint();
  drawControls();
  announce(view.difference ? "Difference to the truth" : "Images");
}

function toggleFlicker() {
  if (!shownSeries().includes(view.a)) view.hidden.delete(view.a), layOut();
  view.flicker = !view.flicker;
  paint();
  drawControls();
  announce(`Panel ${nameOf(view.a)} shows ${nameOf(contentOf(view.a))}`);
}

function toggle(name, text) {
  view[name] = !view[name];
  layOut();
  paint();
  drawControls();
  announce(`${text} ${view[name] ? "on" : "off"}`);
}

function turnView(change) {
  Object.assign(view, change);
  resetPlace();
  layOut();
  paint();
}

function togglePanel(series) {
  if (!view.hidden.delete(series)) view.hidden.add(series);
  if (view.hidden.size >= seriesOf(view.file).length) view.hidden.clear();
  layOut();
  paint();
  drawControls();
}

const neighbour = (list, item, step) => list[(list.indexOf(item) + step + list.length) % list.length];
function stepSlice(step) {
  const at = view.file.slices.indexOf(view.slice) + step;
  if (at >= 0 && at < view.file.slices.length) show({ slice: view.file.slices[at] }).then(() => announce(`Slice ${view.slice}`));
}
function stepVolume(step) {
  const keys = unique(held.map(volumeKey));
  chooseVolume(neighbour(keys, volumeKey(view.file), step));
}
function chooseVolume(key) {
  const files = volumeFiles(key);
  show({ file: files.find((f) => f.mask === view.file.mask) ?? files[0] }).then(() => announce(`Volume ${view.file.volume}`));
}
function stepMask(step) {
  const files = volumeFiles(volumeKey(view.file));
  show({ file: neighbour(files, view.file, step) }).then(() => announce(`Mask ${view.file.mask}`));
}

function drawControls() {
  const { file } = view;
  const volumesHeld = unique(held.map(volumeKey));
  const datasets = unique(held.map((f) => f.dataset));
  fill(byId("view-volume"), volumesHeld.map((key) => ({ value: key, label: JSON.parse(key)[1], group: datasets.length > 1 ? JSON.parse(key)[0] : "" })), volumeKey(file));
  fill(byId("view-mask"), volumeFiles(volumeKey(file)).map((f) => ({ value: f.mask, label: f.mask })), file.mask);
  const at = file.slices.indexOf(view.slice);
  Object.assign(byId("view-slice"), { max: file.slices.length - 1, value: at, disabled: file.slices.length < 2 });
  byId("view-slice").setAttribute("aria-valuetext", `slice ${view.slice}`);
  byId("view-slice-text").textContent = `${view.slice} (${at + 1} of ${file.slices.length}${file.slices.length < file.n_slices ? ` held, ${file.n_slices} in the volume` : ""})`;
  const options = seriesOf(file).map((s) => ({ value: s, label: nameOf(s) }));
  fill(byId("view-a"), options, view.a);
  fill(byId("view-b"), options, view.b);
  const pressed = { "view-difference": view.difference, "view-flicker": view.flicker, "view-boxes": view.boxes, "view-smooth": view.smooth, "view-solo": view.solo };
  for (const [id, on] of Object.entries(pressed)) byId(id)?.setAttribute("aria-pressed", String(on));
  if (byId("view-difference")) byId("view-difference").disabled = !file.truth;
  byId("view-boxes").hidden = !held.some((f) => f.boxes.length);
  byId("view-chips").replaceChildren(h("legend", {}, "Panels"), ...seriesOf(file).map((s) => h("button", { type: "button", "aria-pressed": String(!view.hidden.has(s)), onclick: () => togglePanel(s) }, nameOf(s))));
}

function ramp(id, colourAt) {
  const canvas = byId(id);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, 1);
  const pixels = new Int32Array(picture.data.buffer);
  for (let i = 0; i < canvas.width; i++) pixels[i] = colourAt(i / (canvas.width - 1));
  for (let y = 0; y < canvas.height; y++) context.putImageData(picture, 0, y);
}

function drawLegend() {
  const { file } = view;
  const percent = (v) => `${(100 * v).toPrecision(3).replace(/\.?0+$/, "")} %`;
  const of = file.truth ? "of the truth's maximum" : "of the images' maximum";
  if (view.difference) {
    ramp("ramp", (t) => differenceColour(2 * t - 1));
    byId("from").textContent = `−${percent(view.scale)}`;
    byId("to").textContent = `+${percent(view.scale)} ${of} (±${significant(view.scale * file.reference)}), the same for every method; the truth in grey`;
  } else {
    ramp("ramp", (t) => { const grey = Math.round(255 * t); return rgb(grey, grey, grey); });
    byId("from").textContent = significant(view.low * file.reference);
    byId("to").textContent = `${significant(view.high * file.reference)} (${percent(view.low)} to ${percent(view.high)} ${of}), the same for every ${seriesOf(file).some(kindOf) ? "image" : "panel"}`;
  }
  byId("ramp").setAttribute("aria-label", `${byId("from").textContent} to ${byId("to").textContent}`);
  for (const kind of ["signed", "magnitude"]) drawMapLegend(kind, percent(view.scale), significant(view.scale * file.reference));
  const [rows, columns] = displayShape();
  const cursor = view.cursor ? `y ${view.cursor[0]}, x ${view.cursor[1]}` : "";
  byId("place").textContent = `${rows} × ${columns} · zoom ${view.zoom.toFixed(1)} ${cursor}`;
}

// Every map has this scale, so that colours of different maps can be compared.
function drawMapLegend(kind, share, value) {
  const label = byId(`legend-${kind}`);
  const named = seriesOf(view.file).filter((series) => kindOf(series) === kind).map(nameOf);
  label.hidden = !named.length;
  if (!named.length) return;
  ramp(`ramp-${kind}`, (t) => mapColour(kind, kind === "signed" ? 2 * t - 1 : t));
  byId(`from-${kind}`).textContent = kind === "signed" ? `−${share}` : "0";
  byId(`to-${kind}`).textContent = `${kind === "signed" ? "+" : ""}${share} of the images' maximum (${kind === "signed" ? "±" : ""}${value}): ${named.join(", ")}`;
  byId(`ramp-${kind}`).setAttribute("aria-label", `${byId(`from-${kind}`).textContent} to ${byId(`to-${kind}`).textContent}`);
}

async function drawSampling() {
  const canvas = byId("sampling");
  const { file } = view;
  const mask = await samplingOf(file);
  byId("sampling-label").hidden = !mask;
  if (!mask || file !== view.file) return;
  const [ny, nx] = [mask.ny, mask.nx === 1 ? Math.max(1, file.shape[1]) : mask.nx];
  Object.assign(canvas, { width: nx, height: ny });
  Object.assign(canvas.style, { height: "56px", width: `${Math.min(110, (56 * nx) / ny)}px` });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(nx, ny);
  const pixels = new Int32Array(picture.data.buffer);
  let sampled = 0;
  for (let i = 0; i < pixels.length; i++) {
    const on = mask.at(mask.nx === 1 ? Math.floor(i / nx) : i);
    sampled += on;
    pixels[i] = on ? -1 : rgb(0, 0, 0);
  }
  context.putImageData(picture, 0, 0);
  canvas.setAttribute("aria-label", `Sampling mask ${file.mask}, ${((100 * sampled) / pixels.length).toFixed(1)} % of k-space sampled`);
}

const KEYS = [["arrows", "pixel"], ["Shift+arrows", "pan"], ["PgUp PgDn", "slice"], ["v", "volume"], ["m", "mask"], ["+ −", "zoom"], ["0", "reset"],
  ["d", "difference"], ["[ ]", "scale of differences"], ["f", "flicker A and B"], ["a", "next A"], ["s", "next B"], ["o", "only A"], ["w W", "window narrower, wider"], ["l L", "level lower, higher"],
  ["1 … 9", "panel on or off"], ["x", "boxes"], ["i", "smooth"], ["t", "turn"], ["r", "mirror"]];

function build() {
  const [truth, anyMask] = [held.some((f) => f.truth), held.some((f) => f.mask)];
  const [several, maps] = [unique(held.map(volumeKey)).length > 1, held.some((f) => Object.keys(f.maps).length)];
  const useless = new Set([...(truth ? [] : ["d"]), ...(truth || maps ? [] : ["[ ]"]), ...(anyMask ? [] : ["m"]), ...(several ? [] : ["v"]), ...(held.some((f) => f.boxes.length) ? [] : ["x"])]);
  const press = (id, text, action, title) => h("button", { type: "button", id, "aria-pressed": "false", onclick: action, title }, text);
  const stated = IMAGES.held < IMAGES.total ? `This page holds ${IMAGES.held} of ${IMAGES.total} slices, spread over the volumes; the others did not fit its size limit. ` : `All ${IMAGES.total} slices are here. `;
  const share = (100 * held[0].step) / held[0].reference;
  byId("viewer-body").replaceChildren(
    h("p", { class: "says" }, `${stated}Values are held in ${IMAGES.bits} bits: steps of ${share.toPrecision(2)} % of the ${held[0].truth ? "truth's" : "images'"} maximum of each volume, without further loss. Drag: window (sideways) and level (up, down)${maps ? " of images, scale of maps" : ""}. Wheel: zoom. Shift or right button and drag: pan. Double click: reset.`),
    h("div", { class: "viewer-controls" },
      h("label", { hidden: unique(held.map(volumeKey)).length < 2 }, "Volume ", h("select", { id: "view-volume", onchange: (e) => chooseVolume(e.target.value) })),
      h("label", { hidden: !anyMask }, "Mask ", h("select", { id: "view-mask", onchange: (e) => show({ file: volumeFiles(volumeKey(view.file)).find((f) => f.mask === e.target.value) }) })),
      h("label", {}, "Slice ", h("input", { type: "range", id: "view-slice", min: 0, step: 1, oninput: (e) => show({ slice: view.file.slices[Number(e.target.value)] }) }), " ", h("span", { id: "view-slice-text" }))),
    h("div", { class: "viewer-controls" },
      truth ? press("view-difference", "Difference to truth", toggleDifference) : null, press("view-flicker", "Flicker", toggleFlicker),
      h("label", {}, "A ", h("select", { id: "view-a", onchange: (e) => { view.flicker = false; show({ a: e.target.value }); } })),
      h("label", {}, "B ", h("select", { id: "view-b", onchange: (e) => show({ b: e.target.value }) })),
      press("view-solo", "Only A", () => toggle("solo", "Only A")), press("view-boxes", "Boxes", () => toggle("boxes", "Boxes")),
      press("view-smooth", "Smooth", () => toggle("smooth", "Smoothing"), "interpolate between pixels on the screen"),
      h("button", { type: "button", onclick: () => turnView({ turn: (view.turn + 1) % 4 }) }, "Turn"), h("button", { type: "button", onclick: () => turnView({ mirror: !view.mirror }) }, "Mirror"), h("button", { type: "button", onclick: resetAll }, "Reset")),
    h("fieldset", { class: "chips", id: "view-chips" }),
    h("div", { id: "stage", tabindex: 0, role: "application", "aria-label": "Image viewer", "aria-describedby": "keys" }, h("div", { id: "panels" }),
      h("div", { id: "legend" }, h("span", {}, h("span", { id: "from" }), h("canvas", { id: "ramp", width: 180, height: 12, role: "img" }), h("span", { id: "to" })), 
        ...["signed", "magnitude"].map((kind) => h("span", { id: `legend-${kind}`, hidden: true }, h("span", { id: `from-${kind}` }), h("canvas", { id: `ramp-${kind}`, width: 180, height: 12, role: "img" }), h("span", { id: `to-${kind}` }))),
        h("span", { class: "place", id: "place" }), h("span", {}, "Not for diagnostic use"),
        h("span", { class: "sampling", id: "sampling-label" }, "sampled (ky down, kx right) ", h("canvas", { id: "sampling", role: "img" })))),
    h("p", { class: "keys", id: "keys" }, "Keys, once the images have the focus: ", ...KEYS.filter(([key]) => !useless.has(key)).map(([key, what]) => h("span", {}, h("kbd", {}, key), ` ${what}`))),
    h("p", { class: "sr", id: "said", "aria-live": "polite" }));
}

async function startViewer() {
  if (!held.length) {
    const why = IMAGES.total ? `None of the ${IMAGES.total} slices fits the size limit of this page.` : "There are no images in this comparison.";
    return byId("viewer-body").replaceChildren(h("p", { class: "says" }, why));
  }
  build();
  listenToStage();
  await show({ file: held.find((f) => f.dataset === state.dataset && f.mask === state.mask) ?? held[0] });
  onChange(() => { caption(); });
  addEventListener("resize", () => { layOut(); draw(); });
}
