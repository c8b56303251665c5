// The evidence of the image that the viewer shows, and what runs when the page opens.

function showEvidence() {
  const place = byId("shown-evidence");
  const found = DATA.evidence[view.file.notes[view.slice]];
  if (!found) return place.replaceChildren();
  const chip = (verdict, text) => h("span", { class: `verdict-chip ${verdict}` }, text);
  place.replaceChildren(
    ...(found.fallback ? [h("p", { class: "note stop", role: "status" }, h("b", {}, "A classical image is shown as the main one: "), found.fallback)] : []),
    h("p", { class: "says chips-line" }, `${found.name}: `, ...found.items.map((item) => chip(item.verdict, `${item.name}: ${item.verdict}`))));
}

// The main image of a slice may be classical in place of a generated one.
const nameHere = (series) => (series === "main" ? DATA.evidence[view.file?.notes[view.slice]]?.main : null);

async function start() {
  view.nameHere = nameHere;
  onShow(showEvidence);
  await startViewer();
}

window.report = { start, view, state, planeOf, valueOf, DATA, IMAGES };
