"use strict";

// All that the page knows of one cell: a layer, one expert of a layer, or several layers of a row of experts.

const MARGIN = 8; // CSS pixels between a cell and its details

/** The details. focusCell: gives the focus back to the cell. reveal(layer): shows a layer in the table of all layers. */
function createDetails(page, focusCell, reveal) {
  const title = build("h3");
  const facts = build("dl");
  const hint = build("p", { class: "muted" }, "Point at, tap or focus a cell for its details. Enter reads them, Escape closes them.");
  const find = build("button", { type: "button", class: "button" }, "Find in the table");
  const close = build("button", { type: "button", class: "button", "aria-label": "Close the details" }, "✕");
  const buttons = build("div", { class: "buttons" }, find, close);
  const card = build("div", { class: "card" }, title, facts, buttons);
  const element = build("div", { id: "details", class: "details", role: "region", tabindex: "-1" }, hint, card);
  element.setAttribute("aria-label", "Details of a cell");
  let [held, pointed] = [null, null];

  const show = () => {
    const spot = pointed ?? held;
    hint.hidden = spot !== null;
    card.hidden = spot === null;
    element.classList.toggle("open", spot !== null);
    if (spot !== null) {
      setText(title, cutInMiddle(spotName(spot), 90));
      title.title = spotName(spot);
      facts.replaceChildren(...factsOf(page, spot).map(([term, ...words]) => build("div", { class: words.length > 2 ? "wide" : null }, build("dt", {}, term), ...words)));
      const layers = spot.line.layersAt[spot.column];
      find.hidden = layers.length > 1 || spot.map.scan !== page.scans[0];
    }
  };
  // The details are at the lower edge of the screen, and must not hide the cell that they are of.
  const uncover = (spot) => {
    const box = spot?.line.cells[spot.column].getBoundingClientRect();
    const hidden = box ? box.bottom + MARGIN - element.getBoundingClientRect().top : 0;
    if (hidden > 0) {
      scrollBy({ top: hidden, behavior: "instant" });
    }
  };
  const closeAll = () => {
    if (element.contains(document.activeElement) && held !== null) {
      focusCell(held);
    }
    [held, pointed] = [null, null];
    show();
  };
  close.addEventListener("click", closeAll);
  find.addEventListener("click", () => {
    const { line, column } = pointed ?? held;
    reveal(line.layersAt[column][0]);
  });
  show();
  return {
    element,
    show,
    close: closeAll,
    enter: () => element.focus(),
    point: (spot) => {
      pointed = spot ?? (held === null ? pointed : null); // else the details would come and go under the pointer
      show();
    },
    hold: (spot) => {
      [held, pointed] = [spot ?? held, null];
      show();
      uncover(spot);
    },
  };
}

function spotName({ map, line, column }) {
  const layers = line.layersAt[column];
  const layer = layers.length === 1 ? map.scan.layers.name[layers[0]] : `${line.label}, ${placeName(map.scan.columns[column])}`;
  return line.expert === null ? layer : `${layer}, expert ${line.expert}`;
}

/** The facts on a cell: terms with their descriptions, <dd> elements. */
function factsOf(page, spot) {
  const { map, line, column } = spot;
  const layers = line.layersAt[column];
  if (layers.length > 1) {
    return factsOfGroup(map, layers);
  }
  return line.expert === null ? factsOfLayer(page, map, layers[0]) : factsOfExpert(map, layers[0], line.expert);
}

const fact = (term, ...texts) => [term, ...texts.filter(Boolean).map((text) => build("dd", {}, text))];

/** A <dd> that warns. */
const caution = (text) => build("dd", { class: "caution" }, text);

function factsOfLayer(page, map, layer) {
  const { scan } = map;
  const experts = scan.layers.experts[layer];
  return [
    fact(experts ? "SNR, median of its experts" : "SNR", formatNumber(scoreAt(scan, layer), 4), snrMeaning(scan, layer)),
    fact("Rank in its type", rankWords(map, layer).replace("rank ", ""), placeInOrder(page, map, layer)),
    selectedFact(map, layer),
    marginFact(page, map, map.typeOf[layer]),
    ...factsOfParameters(scan, layer),
    edgeFact(page, scan, layer),
    experts ? fact("Experts", expertsRange(experts)) : null,
  ].filter(Boolean);
}

function factsOfExpert(map, layer, expert) {
  const scores = map.scan.layers.experts[layer].map(scoreOf);
  const rank = 1 + scores.filter((score) => score > scores[expert]).length;
  return [
    fact("SNR of this expert", formatNumber(scores[expert], 4)),
    fact("Rank in its layer", `${withCommas(rank)} of ${withCommas(scores.length)} experts`),
    fact("SNR of the layer, the median", formatNumber(scoreAt(map.scan, layer), 4)),
    selectedFact(map, layer),
  ];
}

/** The facts on several layers at one place: experts that are modules of their own. */
function factsOfGroup(map, layers) {
  const scores = layers.map((layer) => scoreAt(map.scan, layer));
  const selected = layers.filter((layer) => map.chosen.isSelected[layer]).length;
  return [
    fact("SNR, median of the experts", formatNumber(medianOf(scores), 4)),
    fact("Experts", expertsRange(scores)),
    fact("Selected", `${withCommas(selected)} of ${withCommas(layers.length)}`),
    fact("Ranked", "each expert among those of the same number; unfold the row to see them"),
  ];
}

function expertsRange(values) {
  const scores = values.map(scoreOf).sort((a, b) => a - b);
  return `${withCommas(scores.length)}, SNR ${formatNumber(scores[0], 4)} to ${formatNumber(scores.at(-1), 4)}`;
}

function snrMeaning(scan, layer) {
  const score = scoreAt(scan, layer);
  if (score === 0) {
    return "no singular value lies above the bulk edge";
  }
  return score === Infinity ? "no noise to divide by, in the tool that made this scan" : "";
}

/** The place in the order of selection, where that is not the order of scores. */
function placeInOrder(page, map, layer) {
  if (page.order === "highest") {
    return "";
  }
  const { type, rank } = ranksOf(map.scan);
  const { ranked } = map.scan.types[type[layer]];
  return `place ${withCommas(rank[layer] + 1)} of ${withCommas(ranked.length)} in the order ${page.order}`;
}

function selectedFact(map, layer) {
  const { scan, chosen } = map;
  const from = enteringPercent(scan, layer, chosen.isOn);
  if (from === null) {
    return fact("Selected", "no, since its type is switched off", alwaysWords(scan, chosen, layer));
  }
  if (!chosen.embeddings && scan.layers.isEmbedding[layer]) {
    return fact("Selected", "no, since embeddings are kept frozen");
  }
  return fact("Selected", `${chosen.isSelected[layer] ? "yes" : "no"}, from ${from} % on`, alwaysWords(scan, chosen, layer));
}

function alwaysWords(scan, chosen, layer) {
  return alwaysTrains(scan, chosen, layer) ? "trains anyway, as input embedding or output head" : "";
}

function marginFact(page, map, type) {
  const margin = describeMargin(page, map.chosen, type);
  return margin ? fact("Margin of its type's cut", margin) : null;
}

/** Shape, dtype and size of a layer's parameters, as far as the scan says. */
function factsOfParameters(scan, layer) {
  const { parameters } = scan;
  const own = scan.layers.own[layer];
  if (!parameters.shape || !own.length) {
    return [fact("Shape", "not in this scan")];
  }
  const shapes = own.map((place) => {
    const name = own.length > 1 ? `${parameters.name[place].split(".").at(-1)} ` : "";
    return `${name}${parameters.shapes[parameters.shape[place]].map(withCommas).join(" × ") || "one number"}`;
  });
  const dtypes = new Set(own.map((place) => parameters.dtypes[parameters.dtype[place]]));
  const tied = own.filter((place) => parameters.owner[place] !== place).map((place) => parameters.name[parameters.owner[place]]);
  return [
    fact("Shape", shapes.join(", "), [...dtypes].join(", ")),
    fact("Parameters", withCommas(numElements(scan, own)), tied.length ? `tied to ${cutInMiddle(tied.join(", "), 60)}` : ""),
  ];
}

/** What lies at the bulk edge of a layer. */
function edgeFact(page, scan, layer) {
  const edge = scan.layers.edge[layer];
  if (!edge) {
    return null;
  }
  const [above, below, nearest, sensitivity] = edge.map(scoreOf);
  if (above + below < 2) {
    return fact("Bulk edge", "a vector has one singular value, so there is no bulk");
  }
  const percent = (share) => `${formatNumber(100 * share, 3)} %`;
  const words = fact(
    "Bulk edge",
    `${withCommas(above)} singular values above, ${withCommas(below)} below`,
    `the nearest is ${percent(nearest)} away`,
    `moving the edge by 1 % varies the score by ${percent(sensitivity)}`,
  );
  return sensitivity > page.crowded ? [...words, caution("singular values crowd the edge: this score says little")] : words;
}
