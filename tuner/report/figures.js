"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
read("figures").forEach((f, i) =>
  Plotly.newPlot("plot-" + i, f.data, f.layout, {responsive: true, displayModeBar: false}));
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(p => Plotly.Plots.resize(p)));
