document.querySelectorAll("table.sortable thead th").forEach(head => {
  const button = document.createElement("button");
  button.type = "button"; button.append(...head.childNodes); head.append(button);
  button.addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") !== "ascending", body = head.closest("table").tBodies[0];
    const key = row => { const cell = row.cells[head.cellIndex]; return cell?.dataset.key ?? cell?.textContent ?? ""; };
    head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const order = (a, b) => { const x = Number(key(a) || NaN), y = Number(key(b) || NaN); return (isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y) * (rising ? 1 : -1); };
    body.append(...[...body.rows].sort(order));
  });
});
const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => { opened = [...folded()]; opened.forEach(part => { part.open = true; }); });
addEventListener("afterprint", () => opened.forEach(part => { part.open = false; }));
