"use strict";
// Tables sort by any column; a filter hides rows, but never those of controls.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...table.tBodies[0].rows].map((row, place) => [keyOf(row.cells[column]), place, row]);
      keyed.sort((a, b) => compare(a[0], b[0], down ? -1 : 1) || a[1] - b[1]);
      table.tBodies[0].append(...keyed.map((entry) => entry[2]));
    });
  });
}
for (const field of document.querySelectorAll("input.filter")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows) {
      row.hidden = !row.classList.contains("control") && !row.textContent.toLowerCase().includes(wanted);
    }
  });
}
function keyOf(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
}
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // what is empty stands last, either way
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}
