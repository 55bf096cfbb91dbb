// Folds long code to its first lines and sorts tables by a click on the head of a column. No library, no network.
const LINES = 14;

function fold(input) {
  const code = input.querySelector("pre");
  if (!code || code.textContent.trimEnd().split("\n").length <= LINES + 3) return;
  const lines = code.textContent.trimEnd().split("\n").length;
  input.classList.add("book-folded");
  const button = document.createElement("button");
  button.className = "book-unfold";
  const label = () => button.textContent = input.classList.contains("book-open") ? "fold the code" : `show all ${lines} lines`;
  button.onclick = () => { input.classList.toggle("book-open"); label(); };
  label();
  input.after(button);
}

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/[−–]/g, "-").replace(/,/g, ""));
  return Number.isNaN(number) ? text : number;
}

function sortable(table) {
  table.classList.add("sortable");
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const order = head.dataset.order === "1" ? -1 : 1;
    heads.forEach(other => delete other.dataset.order);
    head.dataset.order = order;
    const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => order * compare(value(a, column), value(b, column)));
    table.tBodies[0].append(...rows);
  }));
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("div.cell_input").forEach(fold);
  document.querySelectorAll("table.dataframe, div.book-table table, div.cell_output table").forEach(table => {
    const plain = table.tHead && table.tHead.rows.length === 1 && table.tBodies.length && !table.querySelector("tbody [rowspan], thead [colspan]");
    if (plain && table.tBodies[0].rows.length > 2) sortable(table);
  });
});
