"use strict";
// Draws the views of a phase diagram with plotly: `page` has `views`, each with slices of traces and layout, and `texts`
// for hovering. Elements by id: view, slice, slice-label, sliders, plot. Options: `theme(layout)` changes a layout before
// it is drawn; `chosen(cell, text, fixed)` is told the cell under the pointer and its text, which is then not shown beside
// the pointer, `fixed` when it was clicked; `config` is plotly's.
// Returns a function that shows another page in the same view and slice.
function phaseViewer(page, options = {}) {
  const view = document.getElementById("view"), slice = document.getElementById("slice");
  const sliders = document.getElementById("sliders"), plot = document.getElementById("plot");
  const textOf = (all, cells) => cells.map(c => Array.isArray(c) ? textOf(all, c) : c < 0 ? "" : all[c]);
  let listening = false;
  function fill(select, names) {
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  }
  const nameOf = select => select.selectedOptions.length ? select.selectedOptions[0].text : null;
  function keep(select, names, kept) {
    fill(select, names);
    if (names.includes(kept)) select.value = names.indexOf(kept);
  }
  // One slider for each axis that the slices fix; a combination without a slice goes to the most similar one.
  function makeSliders(slices) {
    const axes = Object.keys(slices[0].where || {});
    sliders.replaceChildren(...(slices.length < 2 ? [] : axes).map(axis => {
      const texts = [...new Set(slices.map(s => s.where[axis]))];
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, {type: "range", min: 0, max: texts.length - 1, step: 1, name: axis});
      input.texts = texts;
      input.setAttribute("aria-label", axis);
      input.addEventListener("input", () => {
        const wanted = {};
        for (const other of sliders.querySelectorAll("input")) wanted[other.name] = other.texts[other.value];
        const score = s => axes.reduce((n, a) => n + (s.where[a] === wanted[a]) * (a === axis ? axes.length : 1), 0);
        slice.value = slices.reduce((best, s, i) => score(s) > score(slices[best]) ? i : best, 0);
        draw();
      });
      label.append(axis, input, document.createElement("output"));
      label.hidden = texts.length < 2;
      return label;
    }));
  }
  function moveSliders(where) {
    for (const input of sliders.querySelectorAll("input")) {
      input.value = input.texts.indexOf(where[input.name]);
      input.nextSibling.value = where[input.name];
    }
  }
  function draw() {
    const slices = page.views[view.value].slices;
    const chosen = slices[Math.min(slice.value || 0, slices.length - 1)];
    for (const trace of chosen.traces) {
      if (trace.meta && options.chosen) {
        trace.hoverinfo = "none";
        delete trace.hovertemplate;
      } else if (trace.meta && !trace.text) trace.text = textOf(page.texts[trace.meta.texts], trace.meta.cells);
    }
    moveSliders(chosen.where || {});
    // Plotly keeps what it is given: each drawing gets a layout of its own.
    const layout = structuredClone(chosen.layout);
    if (options.theme) options.theme(layout);
    const drawn = Plotly.react(plot, chosen.traces, layout, {responsive: true, displaylogo: false, ...options.config});
    if (options.chosen && !listening) {
      listening = true;
      plot.on("plotly_hover", event => tell(event, false));
      plot.on("plotly_click", event => tell(event, true));
    }
    return drawn;
  }
  function tell(event, fixed) {
    for (const point of event.points) {
      const meta = point.data.meta, at = point.pointNumber;
      const cell = !meta ? -1 : Array.isArray(at) ? meta.cells[at[0]][at[1]] : meta.cells[at];
      if (cell >= 0) return options.chosen(cell, page.texts[meta.texts][cell], fixed);
    }
  }
  function changeView() {
    const slices = page.views[view.value].slices;
    keep(slice, slices.map(s => s.title), nameOf(slice));
    document.getElementById("slice-label").hidden = slices.length < 2;
    makeSliders(slices);
    return draw();
  }
  function show(next) {
    page = next;
    keep(view, page.views.map(v => v.name), nameOf(view));
    document.querySelector(".controls").hidden = page.views.length < 2 && page.views[0].slices.length < 2;
    return changeView();
  }
  view.addEventListener("change", changeView);
  slice.addEventListener("change", draw);
  show(page);
  return show;
}
