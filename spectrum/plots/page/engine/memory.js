"use strict";

// How many parameters train, and what memory does that take? As `selection.top_params` and `trainers/memory.py`.

/** How many elements these parameters have together, tied ones once; null if the scan does not say. */
function numTrained(scan, names) {
  if (!scan.parameters.size) return null;
  const places = placesOf(scan);
  return numElements(scan, names.map((name) => places.get(name)).filter((place) => place !== undefined));
}

/** How many elements the model has, tied ones once; null if the scan does not say. */
const numTotal = (scan) => lookup(scan, "total", () => numTrained(scan, scan.parameters.name));

/** How many elements the parameters at these places have together, tied ones once. */
function numElements(scan, places) {
  let sum = 0;
  for (const owner of ownersOf(scan, places)) sum += scan.parameters.sizes[scan.parameters.size[owner]].elements;
  return sum;
}

/** The distinct owners of these parameters. */
const ownersOf = (scan, places) => [...new Set(places.map((place) => scan.parameters.owner[place]))];

/** The parameters that train, without their names, which take long to gather. */
function trainedPlaces({ scan, layers, embedding }) {
  const places = placesOf(scan);
  const ends = embedding.map((name) => places.get(name)).filter((place) => place !== undefined);
  return ends.concat(layers.flat().flatMap((layer) => scan.layers.own[layer]));
}

/** How many elements a state trains, tied ones once. The scan must say how large its parameters are. */
const numTrainedAt = (scan, state, isOn) => numElements(scan, trainedPlaces(selectLayers(scan, state, isOn)));

/**
 * The bytes on each device for weights, gradients and optimizer states: if the selection trains, and if everything
 * does. Null if the scan does not say.
 *
 * optimizer, sharding: places in the page's lists. devices: how many there are.
 */
function memoryPerDevice(page, chosen, optimizer, sharding, devices) {
  const { scan } = chosen;
  if (!scan.knowsModules) return null;
  const { dividesWeights, dividesTrainingState, isDeepspeed } = page.shardings[sharding];
  const perElement = page.optimizers[optimizer].weight[Number(isDeepspeed)];
  const weights = (perElement * numTotal(scan)) / (dividesWeights ? devices : 1);
  const bytes = (owners) => {
    let state = 0;
    for (const owner of owners) {
      state += scan.parameters.sizes[scan.parameters.size[owner]].training[optimizer][Number(isDeepspeed)];
    }
    return Math.ceil(weights + state / (dividesTrainingState ? devices : 1));
  };
  const selected = lookup(chosen, "owners", () => ownersOf(scan, trainedPlaces(chosen)));
  const all = lookup(scan, "owners", () => ownersOf(scan, [...scan.parameters.name.keys()]));
  return { selected: bytes(selected), all: bytes(all) };
}

/** The largest selection that trains at most this percentage of all parameters: `{percent}`, or `{problem}`. */
function percentOfParams(scan, state, isOn, text) {
  const typed = parsePercent(text);
  if (typed === null) {
    return { problem: `a number over 0 and at most 100 is expected, such as 25 or 12.5, not '${text}'` };
  }
  const total = numTotal(scan);
  if (total === null) {
    return {
      problem: `the cached scan of ${scan.model} does not say how large its parameters are; scan again with --rescan`,
    };
  }
  const steps = percentSteps(scan, isOn);
  if (steps.length === 0) return { problem: `${scan.model} has no layer to select` };
  const [numerator, denominator] = exactShare(typed);
  const most = Number((numerator * BigInt(total)) / denominator);
  const trainedAt = (step, embeddings) => numTrainedAt(scan, { percent: steps[step], embeddings }, isOn);
  const tooLarge = firstWhere(0, steps.length, (step) => trainedAt(step, state.embeddings) > most);
  if (tooLarge > 0) return { percent: steps[tooLarge - 1] };
  const share = (embeddings) => (100 * trainedAt(0, embeddings)) / total;
  let hint = "";
  if (state.embeddings) {
    const frozen = share(false);
    hint =
      `; ${isAtMost(frozen, numerator, denominator) ? "" : "even "}with input embedding and output head frozen ` +
      `(--no-embeddings, or embeddings=False in Python), it trains ${formatNumber(frozen, 3)} percent`;
  }
  const least = formatNumber(share(state.embeddings), 3);
  return { problem: `the smallest selection trains ${least} percent of all parameters, not ${typed}${hint}` };
}

/** Whether a float is at most 100 numerator / denominator, exactly. Its first 100 decimals are all that it has. */
const isAtMost = (x, numerator, denominator) =>
  BigInt(x.toFixed(100).replace(".", "")) * denominator <= 100n * numerator * 10n ** 100n;
