"use strict";

// START HERE for lists: the text of each format, byte for byte what the command writes. Or its refusal, as `problem`.

/** How each format is written, by its name. */
const WRITERS = {
  axolotl: axolotlList,
  swift: swiftList,
  nemo: nemoList,
  frozen: frozenList,
  peft: peftList,
  "axolotl-lora": axolotlLoraList,
  "trl-lora": trlLoraList,
  llamafactory: llamafactoryList,
  names: (_, chosen) => ({ text: linesOf(chosen.trained) }),
  json: jsonList,
};

/** The list in the format of a name: `{text, notes, problem}`. The text is null if there is a problem. */
function writtenList(page, chosen, format) {
  const { refused } = page.formats.find(({ name }) => name === format);
  const written = refused === null ? WRITERS[format](page, chosen) : { problem: refused };
  return { text: null, notes: [], problem: null, ...written };
}

/** The name of the list's file. */
const listFile = (page, chosen, format) => page.formats.find(({ name }) => name === format).file.join(chosen.percent);

/** For each parameter, whether it trains, under its own name or its owner's. */
function isTrained({ scan, trained }) {
  const places = placesOf(scan);
  const isListed = new Uint8Array(scan.parameters.name.length); // owners among them
  for (const name of trained) isListed[places.get(name)] = 1;
  return scan.parameters.owner.map((owner) => isListed[owner] === 1);
}

/** `freeze_config` of NeMo Automodel: modules as a whole train, those that hold a trained parameter themselves. */
function nemoList(_, chosen) {
  const { scan, embedding } = chosen;
  const trains = isTrained(chosen);
  const modules = new Map(); // each with the first parameter that it trains
  for (const name of chosen.trained) {
    const path = name.slice(0, Math.max(name.lastIndexOf("."), 0));
    if (path && placesOf(scan).has(name) && !modules.has(path)) modules.set(path, name);
  }
  for (const [place, name] of scan.parameters.name.entries()) {
    if (trains[place]) continue;
    if (!name.includes(".")) {
      return { problem: `NeMo Automodel freezes modules, and ${name} is in none; use another --format` };
    }
    const module = pathsAbove(name).find((path) => modules.has(path));
    if (module !== undefined) {
      const advice = embedding.includes(modules.get(module)) ? "use --no-embeddings" : "choose other --layer-types";
      return {
        problem:
          `NeMo Automodel trains modules as a whole, and ${module} holds ${modules.get(module)}, which trains, and ` +
          `${name}, which does not; ${advice}, or use another --format`,
      };
    }
  }
  const paths = [...modules.keys()].map((path) => `  - path: ${quotedName(scan, path, 1)}`);
  const unfreeze = paths.length === 0 ? ["  unfreeze_modules: []"] : ["  unfreeze_modules:", ...paths];
  return { text: linesOf(["freeze_config:", "  freeze_modules:", "  - glob: '*'", ...unfreeze]) };
}

/** The paths of the modules that a parameter is in, outermost first. */
function pathsAbove(name) {
  const paths = [];
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) paths.push(name.slice(0, dot));
  return paths;
}

/** What does not train, as each of four trainers lists it. Trainers see tied parameters under their owner's name. */
function frozenList(_, chosen) {
  const { scan } = chosen;
  const trains = isTrained(chosen);
  const frozen = [...scan.parameters.name.keys()].filter(
    (place) => scan.parameters.owner[place] === place && !trains[place],
  );
  if (frozen.length === 0) {
    return { problem: "every parameter trains, so there is none to freeze; train without a list" };
  }
  const names = frozen.map((place) => scan.parameters.name[place]);
  const escaped = names.map(escapedPattern);
  const wrapped = names.map((name) => `    - model.${name}`);
  const parts = [
    ["# DistillKit 2", "frozen_res:", ...escaped.map((name) => `- ^${name}$`)],
    ["# llm-foundry", "callbacks:", "  layer_freezing:", "    layer_names:", ...wrapped],
    ["# Ludwig, without an adapter", "trainer:", `  layers_to_freeze_regex: ^model\\.(${escaped.join("|")})$`],
  ];
  const notes = [];
  const found = partOfTrained(chosen, frozen);
  if (found) {
    notes.push(
      `the list has nothing for H2O LLM Studio, which would freeze ${found[1]} with ${found[0]}, part of that name`,
    );
  } else {
    const listed = names.map((name) => `  - ${quotedName(scan, name, 1)}`);
    parts.push(["# H2O LLM Studio", "training:", "  lora: false", "  freeze_layers:", ...listed]);
  }
  const text = `# Copy the part for your trainer into its config.\n\n${parts.map(linesOf).join("\n")}`;
  return { text, notes };
}

/** The first frozen name that is part of the name of what trains, and the first of these; null without one. */
function partOfTrained(chosen, frozen) {
  const { scan, trained } = chosen;
  const trains = isTrained(chosen);
  for (const place of frozen) {
    const others = (scan.parameters.inside[place] ?? []).filter(
      (other) => trains[other] && scan.parameters.owner[other] === other,
    );
    if (others.length === 0) continue;
    const names = new Set(others.map((other) => scan.parameters.name[other]));
    const first = trained.map((name) => ownerName(scan, name)).find((name) => names.has(name));
    return [scan.parameters.name[place], first];
  }
  return null;
}

/** The selection as JSON for programs. */
function jsonList(page, chosen) {
  const { scan, percent, layers, embedding } = chosen;
  const [model, modelClass, versions] = scan.json;
  // By name, since a scan of another tool may have a name under two types. The last one gives the score.
  const selected = new Map(layers.flat().map((layer) => [scan.layers.name[layer], layer]));
  const entries = [...selected].map(([name, layer]) => layerJson(scan, name, layer));
  const fields = [
    ["model", model],
    ["model_class", modelClass],
    ["versions", versions],
    ["top_percent", pythonFloat(Number(percent))],
    ["order", jsonText(page.order)],
    ["embeddings", jsonArray(embedding.map((name) => parameterJson(scan, name, "  ")), " ")],
    ["layers", jsonArray(entries, " ")],
  ];
  return { text: `${jsonObject(fields, "")}\n` };
}

function layerJson(scan, name, layer) {
  const snr = scan.layers.snr[layer];
  return jsonObject(
    [
      ["name", jsonText(name)],
      ["type", jsonText(scan.types[ranksOf(scan).type[layer]].name)],
      ["snr", typeof snr === "number" ? pythonFloat(snr) : "null"],
      ["parameters", jsonArray(ownParameters(scan, layer).map((own) => parameterJson(scan, own, "    ")), "   ")],
    ],
    "  ",
  );
}

/** A parameter, with its shape and dtype if the scan describes it. */
function parameterJson(scan, name, indent) {
  const place = placesOf(scan).get(name);
  const rest = place === undefined || !scan.parameters.shape ? "" : describedJson(scan, place, indent);
  return `{\n${indent} "name": ${jsonText(name)}${rest}\n${indent}}`;
}

/** The shape and the dtype of a parameter. Most have those of many others. */
function describedJson(scan, place, indent) {
  const [shape, dtype] = [scan.parameters.shape[place], scan.parameters.dtype[place]];
  return lookup(scan, `json ${shape} ${dtype} ${indent.length}`, () => {
    const sizes = jsonArray(scan.parameters.shapes[shape].map(String), `${indent} `);
    return `,\n${indent} "shape": ${sizes},\n${indent} "dtype": ${jsonText(scan.parameters.dtypes[dtype])}`;
  });
}

/** JSON as Python lays it out with `indent=1`. indent: of the line that the value begins in. */
const jsonObject = (fields, indent) =>
  `{\n${fields.map(([key, value]) => `${indent} "${key}": ${value}`).join(",\n")}\n${indent}}`;

const jsonArray = (values, indent) =>
  values.length === 0 ? "[]" : `[\n${values.map((value) => `${indent} ${value}`).join(",\n")}\n${indent}]`;
