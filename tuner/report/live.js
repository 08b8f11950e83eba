"use strict";
{
  const shown = JSON.parse(document.getElementById("version").textContent), line = document.createElement("p");
  const table = document.getElementById("table"), headings = table ? [...table.querySelectorAll("th")] : [];
  // Where the person is on the page, and how the trials are sorted, outlives its loading.
  const keep = () => {
    const by = headings.find(h => h.hasAttribute("aria-sort"));
    history.replaceState({at: scrollY, down: table?.parentNode.scrollTop,
      by: by?.textContent, order: by?.getAttribute("aria-sort")}, "");
  };
  const restore = ({at, down, by, order}) => {
    const heading = headings.find(h => h.textContent === by);
    heading?.click();
    if (heading?.getAttribute("aria-sort") !== order) heading?.click();
    if (table && down) table.parentNode.scrollTop = down;
    scrollTo(0, at);
  };
  const ask = async () => {
    try {
      const told = await (await fetch("version", {cache: "no-store"})).json();
      if (told.version !== shown) return location.reload();
      line.textContent = told.beside;
    } catch {
      line.textContent = "The dashboard does not answer; this is what it showed last.";
    }
    setTimeout(ask, 1000);
  };
  line.setAttribute("role", "status");
  line.style.cssText =
    "position: fixed; bottom: 0; left: 0; right: 0; margin: 0; max-width: none; padding: 0 1.5rem; z-index: 2;" +
    "background: #fcfbf9; color: #a63e14";  // over the page, which must not move when there is something to say
  document.body.append(line);
  history.scrollRestoration = "manual";  // the browser's own comes before the figures are drawn
  if (history.state) restore(history.state);
  addEventListener("beforeunload", keep);
  ask();
}
