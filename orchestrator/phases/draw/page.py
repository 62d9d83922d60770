"""The page around the interactive picture: a `string.Template` of HTML that loads nothing from elsewhere."""

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 1.4rem 1.8rem; }
  h1 { font-size: 1.5rem; margin: 0; }
  p.summary { color: #777; margin: .2rem 0 1rem; }
  .controls { display: flex; flex-wrap: wrap; gap: 1.2rem; margin-bottom: .4rem; }
  .controls label { color: #777; }
  select { font: inherit; color: #222; padding: .2rem .4rem; margin-left: .4rem; background: white;
    border: 1px solid #bbb; border-radius: 4px; }
  #plot { width: 100%; height: 72vh; min-height: 430px; }
  details { margin-top: .8rem; }
  summary { cursor: pointer; color: #555; }
  [hidden] { display: none !important; }
  td { padding: .1rem 1.2rem .1rem 0; vertical-align: top; }
  td + td { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="summary">$summary</p>
<div class="controls">
  <label>show<select id="view"></select></label>
  <label id="slice-label">where<select id="slice"></select></label>
</div>
<div id="plot"></div>
<details><summary>Numbers of the whole sweep</summary><table>$metrics</table></details>
<details><summary>Parameters that do not vary</summary><table>$fixed</table></details>
<script>$plotly</script>
<script id="data" type="application/json">$data</script>
<script>
"use strict";
(function () {
  const page = JSON.parse(document.getElementById("data").textContent);
  const view = document.getElementById("view"), slice = document.getElementById("slice");
  const textOf = (all, cells) => cells.map(c => Array.isArray(c) ? textOf(all, c) : c < 0 ? "" : all[c]);
  function options(select, names) {
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  }
  function draw() {
    const slices = page.views[view.value].slices;
    const chosen = slices[Math.min(slice.value || 0, slices.length - 1)];
    for (const trace of chosen.traces) {
      if (trace.meta && !trace.text) trace.text = textOf(page.texts[trace.meta.texts], trace.meta.cells);
    }
    // Plotly keeps what it is given: each drawing gets a layout of its own.
    return Plotly.react("plot", chosen.traces, structuredClone(chosen.layout), {responsive: true, displaylogo: false});
  }
  function changeView() {
    const titles = page.views[view.value].slices.map(s => s.title);
    const kept = slice.selectedOptions.length ? slice.selectedOptions[0].text : null;
    options(slice, titles);
    if (titles.includes(kept)) slice.value = titles.indexOf(kept);
    document.getElementById("slice-label").hidden = titles.length < 2;
    return draw();
  }
  options(view, page.views.map(v => v.name));
  document.querySelector(".controls").hidden = page.views.length < 2 && page.views[0].slices.length < 2;
  view.addEventListener("change", changeView);
  slice.addEventListener("change", draw);
  changeView();
})();
</script>
</body>
</html>
""")
