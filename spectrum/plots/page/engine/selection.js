"use strict";

// START HERE: which layers train at a percentage? As `selection/selection.py`: percentages are exact, and each cut has
// its shortest percentage.
//
// Layers, types and parameters are integers, places in the columns of the data. `isOn` says for each type whether its
// row is switched on.

/** The longest percentage, in characters: it becomes part of a file's name. */
const MAX_PERCENT_LENGTH = 24;

/** A percentage as typed, without a percent sign; null if it is not a decimal number in (0, 100]. */
function parsePercent(text) {
  const number = text.endsWith("%") ? text.slice(0, -1).replace(/ +$/, "") : text;
  if (number.length > MAX_PERCENT_LENGTH || !/^(?:\d+(?:\.\d+)?|\.\d+)$/.test(number)) return null;
  const [numerator, denominator] = exactShare(number);
  return numerator > 0n && numerator <= denominator ? number : null;
}

/** A percentage as an exact fraction of one: numerator and denominator. Binary floats would move some cuts. */
function exactShare(percent) {
  const [whole, decimals = ""] = percent.split(".");
  return [BigInt(whole + decimals), 100n * 10n ** BigInt(decimals.length)];
}

/** How many of so many layers a share of them is, rounded down. */
const numSelected = (size, [numerator, denominator]) => Number((BigInt(size) * numerator) / denominator);

/** For each type of a scan, whether it is on: by the rows of the first scan, in another scan by the types' names. */
function typesOn(scan, page, state) {
  if (state.off.size === 0) return scan.types.map(() => true); // those too that the first scan lacks
  const [first] = page.scans;
  const on = new Set(
    first.rows.flatMap(({ types }, row) => (state.off.has(row) ? [] : types.map((type) => first.types[type].name))),
  );
  return scan.types.map(({ name }) => on.has(name));
}

/** The selection of a state. `trained` are the names of all parameters that train, owners of tied ones among them. */
function selectLayers(scan, state, isOn) {
  const { percent, embeddings } = state;
  const share = exactShare(percent);
  const counts = scan.types.map(({ ranked }, type) => (isOn[type] ? numSelected(ranked.length, share) : 0));
  const layers = scan.types.map(({ ranked }, type) => {
    const selected = ranked.slice(0, counts[type]);
    return embeddings ? selected : selected.filter((layer) => !scan.layers.isEmbedding[layer]);
  });
  const isSelected = new Uint8Array(scan.layers.name.length);
  for (const group of layers) for (const layer of group) isSelected[layer] = 1;
  const chosen = { scan, percent, embeddings, isOn, counts, layers, isSelected };
  chosen.embedding = embeddings ? scan.embedding : [];
  let trained = null; // only when it is asked for, since moving the slider needs no names
  Object.defineProperty(chosen, "trained", { enumerable: true, get: () => (trained ??= trainedNames(chosen)) });
  return Object.assign(chosen, whatIsWrong(chosen));
}

/** What the command says if no layer trains, or only embeddings do: a problem, or a warning. */
function whatIsWrong(chosen) {
  const { scan, isOn, counts, layers, embedding } = chosen;
  if (!isOn.includes(true)) return { problem: "nothing to train: every layer type is switched off", warning: null };
  const all = layers.flat();
  const onlyEmbeddings = all.length > 0 && all.every((layer) => scan.layers.isEmbedding[layer]);
  if (all.length > 0 && !onlyEmbeddings) return { problem: null, warning: null };
  let reason = "--no-embeddings keeps every selected layer frozen";
  if (onlyEmbeddings) reason = "no other layer is selected; choose other --layer-types, or raise --top-percent";
  else if (counts.every((count) => count === 0)) reason = noWholeLayer(chosen);
  if (embedding.length === 0) return { problem: `nothing to train: ${reason}`, warning: null };
  return { problem: null, warning: `nothing but input embedding and output head trains: ${reason}` };
}

function noWholeLayer({ scan, percent, isOn }) {
  const most = scan.types.reduce((most, { ranked }, type) => (isOn[type] ? Math.max(most, ranked.length) : most), 0);
  const least = percentSteps(scan, isOn)[0];
  return (
    `${percent} percent is less than one layer of every type; the largest types have ${most}, so ` +
    `${least} percent is the least that selects a layer`
  );
}

/** The names of a layer's own parameters. A scan by another tool names none, and a weight is assumed. */
function ownParameters(scan, layer) {
  const own = scan.layers.own[layer];
  if (own.length === 0) return [`${scan.layers.name[layer]}.weight`];
  return own.map((place) => scan.parameters.name[place]);
}

function trainedNames({ scan, layers, embedding }) {
  const names = new Set(embedding);
  for (const group of layers) for (const layer of group) for (const name of ownParameters(scan, layer)) names.add(name);
  for (const name of [...names]) names.add(ownerName(scan, name));
  return [...names];
}

/** What is looked up often, made once: values by the scan, or the other object, and by the name of the lookup. */
const lookups = new WeakMap();

function lookup(object, key, make) {
  if (!lookups.has(object)) lookups.set(object, new Map());
  const known = lookups.get(object);
  if (!known.has(key)) known.set(key, make());
  return known.get(key);
}

/** The place of each parameter, by its name. */
const placesOf = (scan) =>
  lookup(scan, "places", () => new Map(scan.parameters.name.map((name, place) => [name, place])));

/** The owner of a tied parameter, under whose name trainers see it; any other parameter's own name. */
function ownerName(scan, name) {
  const place = placesOf(scan).get(name);
  return place === undefined || !scan.parameters.owner ? name : scan.parameters.name[scan.parameters.owner[place]];
}

/** The percentages at which one more layer of some type is selected, ascending, as pairs: layers, of how many. */
function cutsOf(scan, isOn) {
  const sizes = lookup(isOn, "sizes", () =>
    [...new Set(scan.types.filter((_, type) => isOn[type]).map(({ ranked }) => ranked.length))].sort((a, b) => a - b),
  );
  return lookup(scan, `cuts ${sizes}`, () => {
    // Equal fractions have equal quotients, and so do no others, as long as a type has fewer than 60 million layers.
    const cuts = new Map();
    for (const size of sizes) for (let count = 1; count <= size; count++) cuts.set(count / size, [count, size]);
    const values = [...cuts.keys()].sort((a, b) => a - b);
    return { values, percents: shortestPercents(values.map((value) => cuts.get(value))) };
  });
}

/** For each cut, the decimal number of fewest digits from it on and below the next one. */
const shortestPercents = (cuts) => cuts.map((cut, i) => shortestPercent(cut, cuts[i + 1] ?? [101, 100]));

function shortestPercent([count, size], [nextCount, nextSize]) {
  for (let digits = 0, scale = 100n; ; digits++, scale *= 10n) {
    const number = (BigInt(count) * scale + BigInt(size) - 1n) / BigInt(size);
    if (number * BigInt(nextSize) >= BigInt(nextCount) * scale) continue;
    const text = String(number).padStart(digits + 1, "0");
    return digits === 0 ? text : `${text.slice(0, -digits)}.${text.slice(-digits)}`;
  }
}

/** The shortest percentages of all distinct cuts, ascending. */
const percentSteps = (scan, isOn) => cutsOf(scan, isOn).percents;

/** The type of each layer, and its place in the order of selection. */
const ranksOf = (scan) =>
  lookup(scan, "ranks", () => {
    const type = new Int32Array(scan.layers.name.length);
    const rank = new Int32Array(scan.layers.name.length);
    scan.types.forEach(({ ranked }, at) => {
      ranked.forEach((layer, place) => {
        type[layer] = at;
        rank[layer] = place;
      });
    });
    return { type, rank };
  });

/**
 * The least percentage of at most two decimals that selects a layer; null if its type is switched off. Unlike the
 * shortest percentage of a cut, it is as near to the cut as people read percentages: 12.5 for the first of 8 layers.
 */
function enteringPercent(scan, layer, isOn) {
  const { type, rank } = ranksOf(scan);
  if (!isOn[type[layer]]) return null;
  const size = BigInt(scan.types[type[layer]].ranked.length);
  const hundredths = (10_000n * BigInt(rank[layer] + 1) + size - 1n) / size; // rounded up, exactly
  return String(Number(hundredths) / 100);
}

/** The first whole number in [start, end) for which a condition holds that holds from some number on; end if none. */
function firstWhere(start, end, condition) {
  while (start < end) {
    const middle = Math.floor((start + end) / 2);
    if (condition(middle)) end = middle;
    else start = middle + 1;
  }
  return start;
}

/** How much lower the lower score at the cut of a type is: `6.2 %`, `tie`, `all tie`; empty without a cut. */
function describeMargin(page, chosen, type) {
  const { ranked } = chosen.scan.types[type];
  const count = chosen.counts[type];
  if (!page.byScore || count === 0 || count === ranked.length) return "";
  const score = (layer) => scoreOf(chosen.scan.layers.snr[layer]);
  const cut = [score(ranked[count - 1]), score(ranked[count])];
  const [lower, higher] = [Math.min(...cut), Math.max(...cut)];
  // In order of selection, so all are the same if the ends are.
  if (lower === higher) return score(ranked[0]) === score(ranked.at(-1)) ? "all tie" : "tie";
  return `${formatNumber(Number(formatNumber(100 * (1 - lower / higher), 2)), 6)} %`;
}
