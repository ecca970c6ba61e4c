"use strict";

// What the colours, outlines and signs of the heat maps mean.

/** The legend of all maps: {element, show(maps)}. */
function createLegend(page, scale, maps) {
  const items = [
    ["swatch chosen", "", "selected", () => true],
    ["swatch some", "", "some of the experts selected", hasExperts],
    ["swatch always", "", "trains as input embedding or output head, though not selected", alwaysTrainsAny],
    ["sign", "+", `selected of ${page.scans[1]?.model} only: enters`, () => page.scans.length > 1],
    ["sign", "−", `selected of ${page.scans[0].model} only: leaves`, () => page.scans.length > 1],
    ["sign", "0", "no singular value lies above the bulk edge", hasSign("0")],
    ["sign", "1", "every layer of the type scores exactly 1, as a vector does", hasSign("1")],
    ["sign", INFINITE, "no noise to divide by, in the tool that made this scan", hasSign(INFINITE)],
  ].map(([look, sign, text, isNeeded]) => {
    const mark = build("span", { class: look, "aria-hidden": "true" }, sign);
    return { element: build("li", {}, mark, build("span", {}, cutInMiddle(text, 120))), isNeeded };
  });
  const notes = legendNotes(page, maps).map((text) => build("p", { class: "muted" }, text));
  const list = build("ul", { class: "marks", "aria-label": "Signs" }, ...items.map((item) => item.element));
  const element = build("div", { class: "legend" }, scale.isEmpty ? null : buildScale(page, scale), list, ...notes);
  return {
    element,
    show: () => items.forEach((item) => (item.element.hidden = !item.isNeeded(maps))),
  };
}

/** Whether a sign stands in a line that is shown. */
const hasSign = (sign) => (maps) =>
  maps.some(({ lines }) => [...lines.values()].some((line) => !line.element.hidden && line.signs.has(sign)));

const hasExperts = (maps) => maps.some(({ scan }) => scan.rows.some((row) => row.types.length > 1));

const alwaysTrainsAny = (maps) =>
  maps.some(({ scan, chosen }) => scan.layers.isEmbedding.some((is, layer) => is && alwaysTrains(scan, chosen, layer)));

/** The bar of colours, with round numbers beside it. */
function buildScale(page, scale) {
  const bar = build("div", { class: "bar" });
  bar.style.backgroundImage = `linear-gradient(to right, ${page.colours.join(", ")})`;
  const ticks = logTicks(scale.low, scale.high).map((tick) => {
    const label = build("span", {}, formatNumber(tick, 4));
    label.style.left = `${100 * scale.place(tick)}%`;
    return label;
  });
  const [low, high] = [scale.low, scale.high].map((score) => formatNumber(score, 3));
  const words = `Colours: SNR from ${low}, dark, to ${high}, light, on a logarithmic scale`;
  return build(
    "div",
    { class: "scale", role: "img", "aria-label": words },
    build("span", { class: "unit" }, "SNR"),
    build("div", {}, bar, build("div", { class: "ticks" }, ...ticks)),
  );
}

function legendNotes(page, maps) {
  const notes = [];
  if (page.byScore) {
    const [one, other] = ["the best layer left out", "the lowest one selected"];
    const lowest = ["the best layer selected", "the lowest one left out"];
    const [first, second] = page.order === "lowest" ? lowest : [one, other];
    notes.push(`margin: how far ${first} scores below ${second}`);
  }
  if (maps.some(({ scan }) => hasExperts([{ scan }]) || scan.layers.experts.some(Boolean))) {
    notes.push(
      "The colour of a row of experts is that of the median of a layer's experts. The score of a single expert beyond " +
        "the scale has the colour of its end.",
    );
  }
  return notes;
}
