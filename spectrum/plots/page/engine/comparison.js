"use strict";

// What would another scan change? As `selection/comparison.py`: only layers that both scans have are compared.

/** The selections from both scans, among the layers that both have; a problem if there is none, or if none is on. */
function compareScans(page, state) {
  const [first, second] = page.scans;
  const [isOn, isOnInSecond] = page.scans.map((scan) => typesOn(scan, page, state));
  if (!isOn.includes(true)) return { problem: "nothing to compare: every layer type is switched off" };
  const ofSecond = new Map(second.types.map(({ name }, type) => [name, type]));
  const share = exactShare(state.percent);
  const types = [];
  first.types.forEach(({ name, ranked }, type) => {
    const other = isOn[type] ? ofSecond.get(name) : undefined;
    if (other === undefined) return;
    const [own, others] = commonLayers(page, type, other);
    if (own.length === 0) return;
    const before = trainingNames(first, own, share, state.embeddings);
    const after = trainingNames(second, others, share, state.embeddings);
    types.push({
      name,
      numLayers: own.length,
      numFirst: ranked.length,
      numSecond: second.types[other].ranked.length,
      correlation: page.correlations[name],
      enter: [...after].filter((layer) => !before.has(layer)),
      leave: [...before].filter((layer) => !after.has(layer)),
    });
  });
  if (types.length === 0) {
    return { problem: `${first.model} and ${second.model} have no layer in common, so there is nothing to compare` };
  }
  const compared = new Set(types.map(({ name }) => name));
  const only = (scan, isOn) =>
    scan.types.map(({ name }) => name).filter((name, type) => isOn[type] && !compared.has(name));
  return { problem: null, types, onlyFirst: only(first, isOn), onlySecond: only(second, isOnInSecond) };
}

/** The layers of a type that both scans have, in the order of selection of each scan. */
function commonLayers(page, type, other) {
  const [first, second] = page.scans;
  return lookup(first, `common ${type}`, () => {
    const names = (scan, { ranked }) => new Set(ranked.map((layer) => scan.layers.name[layer]));
    const [own, others] = [names(first, first.types[type]), names(second, second.types[other])];
    return [
      first.types[type].ranked.filter((layer) => others.has(first.layers.name[layer])),
      second.types[other].ranked.filter((layer) => own.has(second.layers.name[layer])),
    ];
  });
}

/** The names of those layers that train, given all in the order of selection. */
function trainingNames(scan, ranked, share, embeddings) {
  const selected = ranked
    .slice(0, numSelected(ranked.length, share))
    .filter((layer) => embeddings || !scan.layers.isEmbedding[layer]);
  return new Set(selected.map((layer) => scan.layers.name[layer]));
}
