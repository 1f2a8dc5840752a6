"use strict";
{
  // Rows are sorted by what their cells hold, not by what they show; cells without a figure stay last either way.
  const held = (row, column) => row.cells[column].dataset.v;
  const number = (text) => (text !== "" && !Number.isNaN(Number(text)) ? Number(text) : null);
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    return x !== null && y !== null ? x - y : a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (table, column, ascending) => {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    rows.sort((p, q) => {
      const [a, b] = [held(p, column), held(q, column)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return ascending ? compare(a, b) : compare(b, a);
    });
    body.append(...rows);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(table, column, ascending);
        const order = ascending ? "ascending" : "descending";
        document.getElementById("said").textContent =
          `${table.caption.textContent}: sorted by ${head.textContent}, ${order}`;
      });
    });
  }
  const theme = document.getElementById("theme");
  const root = document.documentElement;
  const dark = () => {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const show = () => theme.setAttribute("aria-pressed", String(dark()));
  theme.hidden = false;
  show();
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}
