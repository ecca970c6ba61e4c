"use strict";

// What the table of all layers is sorted and filtered by.

/** What the table shows of each layer: {layer, place, type, typeName, snr, rank, of, parameters}. */
function tableFacts(scan) {
  const { type, rank } = ranksOf(scan);
  return scan.layers.name.map((_, layer) => ({
    layer,
    place: placeInModel(scan, layer),
    type: type[layer],
    typeName: scan.types[type[layer]].name,
    snr: scoreOf(scan.layers.snr[layer]),
    rank: rank[layer] + 1,
    of: scan.types[type[layer]].ranked.length,
    parameters: scan.parameters.size ? numElements(scan, scan.layers.own[layer]) : null,
  }));
}

/** By what layers are sorted in model order: by their parameters if these are in model order, else by layer index. */
function placeInModel(scan, layer) {
  return scan.knowsModules ? (scan.layers.own[layer][0] ?? Infinity) : scan.layers.column[layer];
}

/** The layers in the order that the table shows. Among equals, it is by type and rank. */
function sortedLayers(facts, { sort, descending }) {
  const sign = descending ? -1 : 1;
  const compare = (a, b) => (a[sort] === b[sort] ? 0 : a[sort] < b[sort] ? -sign : sign);
  return [...facts].sort((a, b) => compare(a, b) || a.type - b.type || a.rank - b.rank).map(({ layer }) => layer);
}

/** Whether a layer has every word of a filter in its name or type. A word with * ? or [ is a shell pattern. */
function layerMatcher(scan, facts, filter) {
  const tests = filter.toLowerCase().split(/\s+/).filter(Boolean).map(wordMatcher);
  return (layer) => {
    const names = [scan.layers.name[layer], facts[layer].typeName].map((text) => text.toLowerCase());
    return tests.every((matches) => names.some(matches));
  };
}

function wordMatcher(word) {
  if (!/[*?[]/.test(word)) {
    return (text) => text.includes(word);
  }
  const source = word.replace(/\*+|\?|\[(!?)([^\]]+)\]|[^*?[]+|\[/g, (part, negated, characters) => {
    if (part[0] === "*") return ".*";
    if (part === "?") return ".";
    if (characters) return `[${negated ? "^" : ""}${characters.replace(/[\\^[]/g, "\\$&")}]`;
    return part.replace(/[\\^$.+()|{}[\]/]/g, "\\$&");
  });
  try {
    const pattern = new RegExp(`^(?:${source})$`, "su");
    return (text) => pattern.test(text) || text.includes(word); // a name may have these signs itself
  } catch {
    return (text) => text.includes(word); // such as [z-a], which is no pattern
  }
}
