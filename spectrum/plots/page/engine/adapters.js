"use strict";

// Adapters on the selected layers, as `trainers/formats/adapters.py` and `lora.py`. Which layer takes one, and whose
// name is part of another's, is in the data.

/** How PEFT adapts a layer: the values of `scan.layers.adapter`. */
const AS_MODULE = 1;
const AS_PARAMETER = 2;

/** The selected layers that get adapters: names of modules and of parameters, and notes; or a problem. */
function adaptersOf({ scan, layers, embedding }) {
  const targets = new Map(layers.flat().map((layer) => [scan.layers.name[layer], layer])); // a layer has one type
  const named = (adapter) => [...targets].filter(([, layer]) => scan.layers.adapter[layer] === adapter);
  const modules = named(AS_MODULE).map(([name]) => name);
  const parameters = named(AS_PARAMETER).map(([, layer]) => ownParameters(scan, layer)[0]);
  const without = named(0).map(([name]) => name);
  if (modules.length + parameters.length === 0) return { problem: "no selected layer takes an adapter" };
  if (!scan.knowsModules) {
    return { problem: `the cached scan of ${scan.model} is of an older version; use --rescan` };
  }
  const clash = firstClash(parameters, (name) => othersEndingIn(scan, name));
  if (clash) return { problem: `PEFT cannot adapt ${clash[0]} without ${clash[1]}, which ends with that name` };
  const notes = [];
  if (without.length > 0) {
    const count = `${modules.length + parameters.length} of ${targets.size} selected layers get an adapter`;
    notes.push(`${count}; LoRA has none for norms and the like: ${listedNames(without, 3)}`);
  }
  if (embedding.length > 0) {
    notes.push("input embedding and output head get no adapter unless they are selected as layers");
  }
  return { targets, modules, parameters, notes };
}

/** The first target of which PEFT would adapt others too, and the first of these; null without one. */
function firstClash(targets, others) {
  const wanted = new Set(targets);
  for (const target of targets) {
    const other = others(target).find((name) => !wanted.has(name));
    if (other !== undefined) return [target, other];
  }
  return null;
}

/** The parameters whose names end with that of another one. */
function othersEndingIn(scan, name) {
  const places = scan.parameters.inside[placesOf(scan).get(name)] ?? [];
  return places.map((place) => scan.parameters.name[place]).filter((other) => other.endsWith(`.${name}`));
}

/** The paths of modules in which a layer's name occurs. */
const pathsWith = (scan, layer) => scan.layers.inside[layer] ?? [];

/** The first module whose name is the end of another one's path, and that path; null without one. */
const endClash = (scan, { targets, modules }) =>
  firstClash(modules, (name) => pathsWith(scan, targets.get(name)).filter((path) => path.endsWith(`.${name}`)));

/** PEFT's `target_modules`: names, or a regular expression if a name is also the end of another module's. */
function namesOrPattern(scan, adapters) {
  const clash = endClash(scan, adapters);
  if (clash === null) return { names: adapters.modules };
  if (scan.fusedExperts) {
    return {
      problem:
        `PEFT cannot adapt ${clash[0]} without ${clash[1]}, which ends with that name, in a model with fused ` +
        "experts; choose other --layer-types",
    };
  }
  const pattern = adapters.modules.map(escapedPattern).join("|");
  // A single name without special characters may look like a number.
  return { pattern, quoted: pattern === adapters.modules[0] ? quotedName(scan, pattern, 1) : pattern };
}

/** A list's text, given adapters and how modules are spelt; their problem, if they have one. */
function withAdapters(chosen, write) {
  const adapters = adaptersOf(chosen);
  if (adapters.problem) return adapters;
  const targets = namesOrPattern(chosen.scan, adapters);
  return targets.problem ? targets : { text: write(targets, adapters.parameters), notes: adapters.notes };
}

/** A key with names or a pattern, as PyYAML writes it. */
const yamlTargets = (scan, key, { names, quoted }) => (names ? yamlList(scan, key, names) : `${key}: ${quoted}\n`);

const yamlList = (scan, key, names) =>
  names.length === 0 ? `${key}: []\n` : `${key}:\n${linesOf(names.map((name) => `- ${quotedName(scan, name, 1)}`))}`;

/** Arguments for PEFT's `LoraConfig`. */
const peftList = (_, chosen) =>
  withAdapters(
    chosen,
    (targets, parameters) =>
      yamlTargets(chosen.scan, "target_modules", targets) +
      (parameters.length > 0 ? yamlList(chosen.scan, "target_parameters", parameters) : ""),
  );

/** Keys of an Axolotl config, which allows no dropout beside parameters. */
const axolotlLoraList = (_, chosen) =>
  withAdapters(chosen, (targets, parameters) => {
    const modules = `adapter: lora\n${yamlTargets(chosen.scan, "lora_target_modules", targets)}`;
    if (parameters.length === 0) return modules;
    return `${modules}${yamlList(chosen.scan, "lora_target_parameters", parameters)}lora_dropout: 0\n`;
  });

/** Arguments of TRL's command line. One name is written twice, and a pattern that matches nothing stands for none. */
const trlLoraList = (_, chosen) =>
  withAdapters(chosen, ({ names, pattern }, parameters) => {
    const words = names?.length === 1 ? [names[0], names[0]] : names;
    const lines = ["--use_peft", `--lora_target_modules ${pattern ?? (words.join(" ") || "$^")}`];
    if (parameters.length > 0) lines.push(`--lora_target_parameters ${parameters.join(" ")}`, "--lora_dropout 0");
    return linesOf(lines);
  });

/** Keys of a LLaMA-Factory config: names of modules only. Where there are towers, it finds them inside others too. */
function llamafactoryList(_, chosen) {
  const { scan } = chosen;
  const adapters = adaptersOf(chosen);
  if (adapters.problem) return adapters;
  if (adapters.parameters.length > 0) {
    return {
      problem:
        "LLaMA-Factory adapts modules only, and these are parameters to PEFT: " +
        `${listedNames(adapters.parameters, 2)}; choose other --layer-types, or use --format peft`,
    };
  }
  let clash = endClash(scan, adapters);
  let modules = adapters.modules;
  const notes = [...adapters.notes];
  const lines = ["finetuning_type: lora"];
  if (scan.towers) {
    clash ??= firstClash(modules, (name) => pathsWith(scan, adapters.targets.get(name)));
    const isWithout = (name) => scan.layers.neverAdapted[adapters.targets.get(name)] === 1;
    const without = modules.filter(isWithout);
    modules = modules.filter((name) => !isWithout(name));
    if (without.length > 0) {
      notes.push(`LLaMA-Factory adapts no such module in some models, so it is left out: ${listedNames(without, 3)}`);
    }
    if (modules.length === 0) return { problem: "no selected layer takes an adapter of LLaMA-Factory" };
    if (modules.some((name) => scan.layers.inTower[adapters.targets.get(name)])) {
      lines.push("freeze_vision_tower: false", "freeze_multi_modal_projector: false");
    }
  }
  if (clash) {
    return {
      problem:
        `LLaMA-Factory cannot adapt ${clash[0]} without ${clash[1]}, in which that name occurs; ` +
        "use --format peft",
    };
  }
  lines.push(`lora_target: ${modules.length === 1 ? quotedName(scan, modules[0], 1) : modules.join(",")}`);
  return { text: linesOf(lines), notes };
}
