// Mouse and keyboard of the viewer.

function placeOf(panel, event) {
  const box = panel.canvas.getBoundingClientRect();
  const ratio = panel.canvas.width / box.width;
  const scale = magnification(panel.canvas);
  return [
    view.centre[0] + ((event.clientY - box.top) * ratio - panel.canvas.height / 2) / scale,
    view.centre[1] + ((event.clientX - box.left) * ratio - panel.canvas.width / 2) / scale,
  ];
}

function setCursor([r, c]) {
  const [rows, columns] = displayShape();
  if (r < 0 || c < 0 || r >= rows || c >= columns) view.cursor = null;
  else view.cursor = toImage(Math.floor(r) + 0.5, Math.floor(c) + 0.5).map(Math.floor);
  draw();
}

// The point at `place` stays where it is on the screen.
function zoomBy(factor, place) {
  const zoom = Math.min(40, Math.max(1, view.zoom * factor));
  const share = view.zoom / zoom;
  view.centre = view.centre.map((centre, i) => place[i] + (centre - place[i]) * share);
  view.zoom = zoom;
  pan(0, 0);
}

function pan(down, right) {
  const shape = displayShape();
  const half = shape.map((n) => n / 2 / view.zoom);
  view.centre = view.centre.map((centre, i) => Math.min(shape[i] - half[i], Math.max(half[i], centre + [down, right][i])));
  draw();
}

function listenTo(panel) {
  const { canvas } = panel;
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    byId("stage").focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, pan: event.shiftKey || event.button !== 0 };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) dragged(panel, drag, event);
    setCursor(placeOf(panel, event));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { drag = null; });
  canvas.addEventListener("pointerleave", () => { if (!drag) { view.cursor = null; draw(); } });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", resetAll);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoomBy(Math.exp(-event.deltaY * lines * 0.0015), placeOf(panel, event));
  }, { passive: false });
  panel.name.addEventListener("click", () => { view.flicker = false; show({ a: panel.series }); });
}

function dragged(panel, drag, event) {
  const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
  Object.assign(drag, { x: event.clientX, y: event.clientY });
  const box = panel.canvas.getBoundingClientRect();
  if (drag.pan) {
    const scale = magnification(panel.canvas) * (box.width / panel.canvas.width);
    pan(-dy / scale, -dx / scale);
  } else if (view.difference || kindOf(contentOf(panel.series))) setScale(view.scale * Math.exp(dx / 150));
  else setWindow(view.high - view.low + dx / box.width, (view.high + view.low) / 2 + dy / box.height);
}

function moveCursor(down, right) {
  const [rows, columns] = displayShape();
  const at = view.cursor ? toDisplay(view.cursor[0] + 0.5, view.cursor[1] + 0.5) : [rows / 2, columns / 2];
  const clamp = (value, n) => Math.min(n - 0.5, Math.max(0.5, value));
  setCursor([clamp(at[0] + down, rows), clamp(at[1] + right, columns)]);
  announce(panels.slice(0, 4).map((p) => `${nameOf(contentOf(p.series))} ${p.value.textContent}`).join("; "));
}

const cursorPlace = () => (view.cursor ? toDisplay(view.cursor[0] + 0.5, view.cursor[1] + 0.5) : view.centre);
const width = () => view.high - view.low;
const level = () => (view.high + view.low) / 2;

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const ACTIONS = {
  PageUp: () => stepSlice(-1), PageDown: () => stepSlice(1), ",": () => stepSlice(-1), ".": () => stepSlice(1),
  v: () => stepVolume(1), V: () => stepVolume(-1), m: () => stepMask(1), M: () => stepMask(-1),
  "+": () => zoomBy(1.25, cursorPlace()), "=": () => zoomBy(1.25, cursorPlace()), "-": () => zoomBy(0.8, cursorPlace()), 0: resetAll,
  d: toggleDifference, "[": () => stepScale(-1), "]": () => stepScale(1), f: toggleFlicker,
  a: () => { view.flicker = false; show({ a: neighbour(seriesOf(view.file), view.a, 1) }).then(() => announce(`A is ${nameOf(view.a)}`)); },
  s: () => show({ b: neighbour(seriesOf(view.file), view.b, 1) }).then(() => announce(`B is ${nameOf(view.b)}`)),
  o: () => toggle("solo", "Only A"), x: () => toggle("boxes", "Boxes"), i: () => toggle("smooth", "Smoothing"),
  w: () => setWindow(width() * 0.9, level()), W: () => setWindow(width() / 0.9, level()),
  l: () => setWindow(width(), level() - 0.02), L: () => setWindow(width(), level() + 0.02),
  t: () => turnView({ turn: (view.turn + 1) % 4 }), r: () => turnView({ mirror: !view.mirror }),
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const digit = /^[1-9]$/.test(event.key) ? seriesOf(view.file)[Number(event.key) - 1] : null;
  const step = displayShape()[0] / view.zoom / 16;
  if (arrow) event.shiftKey ? pan(arrow[0] * step, arrow[1] * step) : moveCursor(...arrow);
  else if (digit) togglePanel(digit);
  else if (Object.hasOwn(ACTIONS, event.key)) ACTIONS[event.key]();
  else return;
  event.preventDefault();
}

function listenToStage() {
  byId("stage").addEventListener("keydown", pressed);
}
