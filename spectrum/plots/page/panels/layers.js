"use strict";

// The table of all layers: sorted, filtered, each with a link to its cell in the heat map.

const ROWS_AT_ONCE = 200;
const MOST_ROWS_TO_REVEAL = 2000; // to show a layer further down, the table is filtered by its name instead

const LAYER_COLUMNS = [
  { key: "place", title: "Layer", hint: "by place in the model" },
  { key: "type", title: "Type", hint: "by type" },
  { key: "snr", title: "SNR", hint: "by SNR", numbers: true, descending: true },
  { key: "rank", title: "Rank in type", hint: "by rank", numbers: true },
  { key: "parameters", title: "Parameters", hint: "by parameters", numbers: true, descending: true },
];

function createLayersPanel(page, focusLayer) {
  const scan = page.scans[0];
  const facts = tableFacts(scan);
  const columns = LAYER_COLUMNS.filter(({ key }) => key !== "parameters" || facts.some((fact) => fact[key] !== null));
  const view = { sort: "type", descending: false, filter: "", rows: ROWS_AT_ONCE };
  const filter = createLayerFilter(view, () => redraw());
  const head = createLayersHead(columns, view, () => redraw());
  const body = build("tbody", { role: "rowgroup" });
  const caption = build("caption", { class: "visually-hidden" }, "All layers. The rank is within the layer's type.");
  const table = build("table", { class: "layers-table", role: "table" }, caption, head.element, body);
  const more = build("button", { class: "button", type: "button" });
  const element = buildPanel("layers", "All layers", filter.element, table, build("p", {}, more), leftOutNote(scan));
  let [order, current, rowOf] = [[], null, new Map()];

  const draw = () => {
    for (const layer of order.slice(rowOf.size, view.rows)) {
      const row = createLayerRow(scan, facts, layer, focusLayer);
      rowOf.set(layer, row);
      body.append(row.element);
      row.show(current);
    }
    const left = order.length - rowOf.size;
    more.hidden = left === 0;
    setText(more, `Show ${withCommas(Math.min(left, ROWS_AT_ONCE))} more of ${withCommas(left)}`);
  };
  const redraw = () => {
    order = sortedLayers(facts, view).filter(layerMatcher(scan, facts, view.filter));
    rowOf = new Map();
    body.replaceChildren();
    filter.show(order.length, facts.length);
    head.show();
    draw();
  };
  more.addEventListener("click", () => {
    const first = order[rowOf.size];
    view.rows += ROWS_AT_ONCE;
    draw();
    rowOf.get(first).focus(); // for the keyboard: the button may be gone
  });
  const show = (state, chosen) => {
    current = chosen;
    if (order.length === 0 && view.filter === "") {
      redraw();
    }
    rowOf.forEach((row) => row.show(chosen));
  };
  const reveal = (layer) => {
    if (!order.includes(layer) || order.indexOf(layer) >= MOST_ROWS_TO_REVEAL) {
      view.filter = order.includes(layer) || facts.length > MOST_ROWS_TO_REVEAL ? scan.layers.name[layer] : "";
      redraw();
    }
    view.rows = Math.max(view.rows, order.indexOf(layer) + 1);
    draw();
    rowOf.get(layer).focus();
  };
  return { element, show, reveal };
}

/** The field that filters the table, and how many layers match. */
function createLayerFilter(view, redraw) {
  const field = build("input", {
    id: "layers-filter",
    type: "search",
    placeholder: "q_proj, layers.7, mlp.*",
    autocomplete: "off",
    spellcheck: "false",
    "aria-describedby": "layers-found",
  });
  const found = build("span", { id: "layers-found", class: "muted", role: "status" });
  const label = build("label", { for: field.id }, "Filter by name or type");
  field.addEventListener("input", () => {
    view.filter = field.value;
    view.rows = ROWS_AT_ONCE;
    redraw();
  });
  const show = (count, all) => {
    if (field.value !== view.filter) {
      field.value = view.filter;
    }
    setText(found, count === all ? plural(all, "layer", "layers") : `${withCommas(count)} of ${withCommas(all)} match`);
  };
  return { element: build("p", { class: "layers-filter" }, label, field, found), show };
}

/** The head of the table. Each of its buttons sorts by a column, and a second time the other way round. */
function createLayersHead(columns, view, redraw) {
  const cells = columns.map((column) => {
    const button = build("button", { type: "button", class: "layers-sort", title: `Sort ${column.hint}` }, column.title);
    button.addEventListener("click", () => {
      view.descending = view.sort === column.key ? !view.descending : Boolean(column.descending);
      view.sort = column.key;
      view.rows = ROWS_AT_ONCE;
      redraw();
    });
    return build("th", { scope: "col", role: "columnheader", class: column.numbers ? "numbers" : null }, button);
  });
  const trains = build("th", { scope: "col", role: "columnheader" }, "Trains");
  const row = build("tr", { role: "row" }, ...cells, trains);
  const show = () => {
    columns.forEach(({ key }, i) => {
      const order = view.descending ? "descending" : "ascending";
      cells[i].setAttribute("aria-sort", key === view.sort ? order : "none");
    });
  };
  return { element: build("thead", { role: "rowgroup" }, row), show };
}

/** The row of a layer: {element, show(chosen), focus()}. */
function createLayerRow(scan, facts, layer, focusLayer) {
  const { snr, rank, of, typeName, parameters } = facts[layer];
  const link = build("a", { href: layerAddress(scan.layers.name[layer]) }, scan.layers.name[layer]);
  link.addEventListener("click", () => focusLayer(layer)); // also where the address stays the same
  const name = build("th", { scope: "row", role: "rowheader", class: "layers-name" }, link);
  const trains = build("td", { role: "cell", class: "layers-trains", "data-title": "Trains" });
  const cell = (title, text, kind) => build("td", { role: "cell", class: kind, "data-title": title }, text);
  const element = build(
    "tr",
    { role: "row" },
    name,
    cell("Type", typeName, "layers-type"),
    cell("SNR", formatNumber(snr, 4), "numbers"),
    cell("Rank", `${rank} of ${of}`, "numbers"),
    ...(parameters === null ? [] : [cell("Parameters", withCommas(parameters), "numbers")]),
    trains,
  );
  if (scan.layers.experts[layer]) {
    addExperts(name, scan.layers.experts[layer]);
  }
  const show = (chosen) => {
    setText(trains, howItTrains(chosen, layer));
    element.classList.toggle("selected", trains.textContent !== "");
  };
  const focus = () => {
    document.querySelector(".layers-revealed")?.classList.remove("layers-revealed");
    element.classList.add("layers-revealed");
    element.scrollIntoView({ block: "center" });
    link.focus({ preventScroll: true });
  };
  return { element, show, focus };
}

/** The address of a layer on this page. Half a character of two, which no address can have, is left out. */
function layerAddress(name) {
  return `#layer=${encodeURIComponent(name.replace(/\p{Surrogate}/gu, "\ufffd"))}`;
}

function howItTrains(chosen, layer) {
  if (chosen.isSelected[layer]) {
    return "selected";
  }
  return alwaysTrains(chosen.scan, chosen, layer) ? "always" : "";
}

/** A button in a cell that unfolds the scores of a stack's experts, in the order of the experts. */
function addExperts(cell, scores) {
  const button = build("button", { type: "button", class: "button layers-unfold", "aria-expanded": "false" });
  const list = build("ol", { class: "layers-experts", hidden: true, start: "0" });
  setText(button, plural(scores.length, "expert", "experts"));
  button.addEventListener("click", () => {
    if (!list.hasChildNodes()) {
      list.append(...scores.map((score, i) => build("li", {}, `${i}: ${formatNumber(scoreOf(score), 4)}`)));
    }
    list.hidden = !list.hidden;
    button.setAttribute("aria-expanded", String(!list.hidden));
  });
  cell.append(" ", button, list);
}

/** A note on the layers that have no score; null if all have one. */
function leftOutNote({ leftOut }) {
  if (leftOut.length === 0) {
    return null;
  }
  const title = `${plural(leftOut.length, "layer", "layers")} left out: the weight holds NaN or infinity`;
  return build(
    "details",
    { class: "layers-left-out" },
    build("summary", {}, title),
    build("ul", {}, ...leftOut.map((name) => build("li", {}, name))),
  );
}
