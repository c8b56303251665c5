// What runs when the page opens.

async function start() {
  await startViewer();
  setTimeout(startPlots, 50);
}

window.report = { start, view, state, planeOf, valueOf, DATA, IMAGES };
