"use strict";
const trials = read("trials"), table = document.getElementById("table"), first = trials[0] || {scale: {}, params: {}};
const digits = v => Math.abs(v) < 1e-3 ? (+v.toPrecision(4)).toExponential() : String(+v.toPrecision(4));
const short = v => digits(v).replace("e+", "e");
const number = v => typeof v !== "number" ? String(v ?? "") : Number.isInteger(v) && v < 1e10 ? String(v) : short(v);
const columns = [["number", t => t.number],
  ...Object.keys(first.scale).map(k => [k, t => t.scale[k]]),
  ...Object.keys(first.params).map(k => [k, t => t.params[k]]),
  ["loss", t => t.loss], ["state", t => t.state + (t.purpose === "search" ? "" : " (" + t.purpose + ")")],
  ["target runs", t => t.target_runs], ["seconds", t => t.seconds], ["seed", t => t.seed],
  ...(trials.some(t => t.error) ? [["error", t => t.error]] : [])];
const texts = new Set(columns.filter(c => trials.some(t => typeof c[1](t) === "string")).map(c => c[0]));
const compare = (a, b) => a == null ? (b == null ? 0 : 1) : b == null ? -1 : 0;
const cell = (kind, value, name) => {
  const made = document.createElement(kind);
  made.textContent = made.title = number(value);
  if (texts.has(name)) made.className = "text";
  return made;
};
const head = table.createTHead().insertRow(), body = table.createTBody();
const fill = () => body.replaceChildren(...trials.map(t => {
  const row = document.createElement("tr");
  row.append(...columns.map(c => cell("td", c[1](t), c[0])));
  return row;
}));
columns.forEach(([name, get]) => {
  const heading = head.appendChild(cell("th", name, name));
  heading.addEventListener("click", () => {
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    trials.sort((a, b) => compare(get(a), get(b)) ||
      sign * (texts.has(name) ? String(get(a)).localeCompare(get(b)) : get(a) - get(b)));
    fill();
  });
});
fill();
