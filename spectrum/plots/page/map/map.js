"use strict";

// The heat maps of the scans of the page, with their legend and the details of a cell.

/** The panel of the heat maps. reveal(layer): shows a layer in the table of all layers. */
function createMapPanel(page, change, reveal) {
  const [first] = page.scans;
  let off = new Set(); // the rows that are switched off, as of the last drawing
  const details = createDetails(page, ({ line, column }) => line.cells[column].focus(), reveal);
  const switchRow = (row, isOn) => {
    const rows = new Set(off);
    rows[isOn ? "delete" : "add"](row);
    change({ off: rows });
  };
  const scale = colourScale(page.colours, page.scans.flatMap(scoresOfCells));
  const heatMaps = page.scans.map((scan) =>
    createHeatMap(page, scan, scale, { ...details, switchRow: scan === first ? switchRow : null }),
  );
  const maps = heatMaps.map((heatMap) => heatMap.map);
  const legend = createLegend(page, scale, maps);
  const folding = createFolding(page, (isFolded) => {
    heatMaps.forEach((heatMap) => heatMap.fold(isFolded));
    if (maps[0].chosen) {
      folding.show(maps[0].chosen);
      legend.show();
    }
  });
  const compared = page.scans.length > 1 ? createCompared(page) : null;
  const tools = build("div", { class: "tools" }, folding.button, folding.note, buildSwitches(first, change));
  const element = buildPanel(
    "map",
    "Heat map: SNR by layer type and layer",
    build("div", { class: "maps" }, ...heatMaps.map((heatMap, i) => figureOf(page, heatMap, i))),
    tools,
    legend.element,
    compared?.element ?? null,
    details.element,
  );
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      details.close();
    }
  });

  const show = (state, chosen) => {
    off = state.off;
    const comparison = compared ? compareScans(page, state) : null;
    const marks = compared ? marksOf(page, comparison) : null;
    heatMaps.forEach((heatMap, i) => {
      const scan = page.scans[i];
      const selection = i === 0 ? chosen : selectLayers(scan, state, typesOn(scan, page, state));
      heatMap.show(selection, marks?.[i] ?? null);
    });
    compared?.show(comparison);
    folding.show(chosen);
    legend.show();
    details.show();
  };
  const focus = (layer) => {
    if (first.rows[first.layers.row[layer]].isConstant) {
      folding.unfold();
    }
    heatMaps[0].focusLayer(layer);
  };
  folding.start();
  return { element, show, focusLayer: focus };
}

/** The scores that have a colour: those of the cells of rows. */
function scoresOfCells(scan) {
  const rows = layersAtPlaces(scan).map((row) => row.filter(Boolean).map((layers) => layers.map((layer) => scoreAt(scan, layer))));
  return rows.filter((row) => row.flat().some((score) => score !== 1)).flatMap((row) => row.map(medianOf));
}

/** A heat map, with the name of its model where there are two. */
function figureOf(page, heatMap, place) {
  if (page.scans.length === 1) {
    return heatMap.element;
  }
  const { model } = page.scans[place];
  const heading = build("h3", { title: model }, cutInMiddle(model, 60));
  const which = build("p", { class: "muted" }, place ? "in its place: + enters, − leaves" : "the selection of this page");
  const figure = build("div", { class: "map-of-scan" }, heading, which, heatMap.element);
  // Side by side only where a cell is still wide enough to be pointed at.
  figure.style.setProperty("--columns", page.scans[place].columns.length);
  return figure;
}

/** Rows whose scores are all the same, such as norms, are folded away until they are asked for. */
function createFolding(page, fold) {
  const [scan] = page.scans;
  const constant = scan.rows.filter((row) => row.isConstant);
  const button = build("button", { type: "button", class: "button" });
  const note = build("p", { class: "muted" });
  let isFolded = constant.length > 0 && constant.length < scan.rows.length;
  button.hidden = !isFolded;
  const rows = plural(constant.length, "row of equal scores", "rows of equal scores");
  const set = (news) => {
    isFolded = news;
    button.setAttribute("aria-expanded", String(!isFolded));
    setText(button, `${isFolded ? "Show" : "Hide"} ${rows}`);
    fold(isFolded);
  };
  button.addEventListener("click", () => set(!isFolded));
  return {
    button,
    note,
    start: () => set(isFolded),
    unfold: () => isFolded && set(false),
    show(chosen) {
      const types = constant.flatMap((row) => row.types);
      const [selected, all] = [chosen.layers, scan.types.map((type) => type.ranked)].map((lists) =>
        types.reduce((sum, type) => sum + lists[type].length, 0),
      );
      note.hidden = !isFolded;
      const layers = `${withCommas(selected)} of their ${plural(all, "layer", "layers")} selected`;
      setText(note, `Not shown: ${rows}, as norms have; ${layers}.`);
    },
  };
}

/** Buttons that switch all types on or off at once. */
function buildSwitches(scan, change) {
  const button = (text, rows) => {
    const element = build("button", { type: "button", class: "button" }, text);
    element.addEventListener("click", () => change({ off: new Set(rows) }));
    return element;
  };
  const both = [button("All types on", []), button("All types off", [...scan.rows.keys()])];
  return scan.rows.length > 1 ? build("div", { class: "switches" }, ...both) : null;
}
