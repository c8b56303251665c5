// Sorting and filtering of the table of scans, and the theme.
(() => {
"use strict";
const body = document.querySelector("#scans tbody");
const rows = [...body.rows];
const buttons = [...document.querySelectorAll("#scans thead button")];
const value = (row, i) => row.cells[i].dataset.v;

function sort(button) {
  const head = button.closest("th");
  const i = head.cellIndex;
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of buttons) other.closest("th").removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const numeric = rows.every((row) => value(row, i) !== "" && Number.isFinite(Number(value(row, i))));
  const compare = numeric
    ? (a, b) => Number(value(a, i)) - Number(value(b, i))
    : (a, b) => value(a, i).localeCompare(value(b, i), undefined, { numeric: true });
  rows.sort((a, b) => (descending ? -1 : 1) * compare(a, b));
  body.append(...rows);
}
for (const button of buttons) button.addEventListener("click", () => sort(button));

const filter = document.getElementById("filter");
function show() {
  const wanted = filter.value.toLowerCase();
  let n = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    n += !row.hidden;
  }
  document.getElementById("shown").textContent = `${n} of ${rows.length} rows`;
}
filter.addEventListener("input", show);
show();

const theme = document.getElementById("theme");
function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.setAttribute("aria-pressed", String(dark));
}
theme.addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
})();
