"use strict";

// The entries of the list for Axolotl and ms-swift, as `selection/entries.py`. Trainers read an entry as a prefix.

/** The parameters' names, sorted, and the place of each parameter among them. */
const sortedNames = (scan) =>
  lookup(scan, "sorted", () => {
    const names = [...scan.parameters.name].sort();
    const places = placesOf(scan);
    const position = new Int32Array(names.length);
    names.forEach((name, at) => {
      position[places.get(name)] = at;
    });
    return { names, position };
  });

/** Which parameters do not begin names that train: for each place among the sorted names, how many before it do not. */
function leftOutBefore(scan, layers) {
  const { names, position } = sortedNames(scan);
  const isSelected = new Uint8Array(names.length);
  for (const group of layers) {
    for (const layer of group) for (const own of scan.layers.own[layer]) isSelected[position[own]] = 1;
  }
  const before = new Int32Array(names.length + 1);
  for (let at = 0; at < names.length; at++) before[at + 1] = before[at] + 1 - isSelected[at];
  return before;
}

/** Where the sorted names that start with a prefix begin and end. within: the place of one of them, or -1. */
function prefixRange(names, prefix, within) {
  let start = within;
  if (within < 0) start = firstWhere(0, names.length, (at) => names[at] >= prefix);
  else while (start > 0 && names[start - 1].startsWith(prefix)) start--;
  let end = Math.max(start, within);
  while (end < names.length && names[end].startsWith(prefix)) end++;
  return [start, end];
}

/**
 * The entries of each type. The bare name of a layer is one only if every parameter that it begins is selected.
 * A tied parameter is followed by its owner, unless the list has it already.
 */
function unfrozenEntries({ scan, layers, embedding }) {
  const before = leftOutBefore(scan, layers);
  const covered = new Set(embedding);
  for (const group of layers) for (const layer of group) for (const own of namesOfOwn(scan, layer)) covered.add(own);
  return layers.map((group) =>
    group.flatMap((layer) => {
      const owners = namesOfOwn(scan, layer)
        .map((name) => ownerName(scan, name))
        .filter((owner) => !covered.has(owner));
      owners.forEach((owner) => covered.add(owner));
      return [...layerEntries(scan, layer, before), ...owners.map((owner) => parameterEntry(scan, owner, before))];
    }),
  );
}

/** The names of those of a layer's own parameters that the scan has. */
const namesOfOwn = (scan, layer) => scan.layers.own[layer].map((place) => scan.parameters.name[place]);

function layerEntries(scan, layer, before) {
  const { names, position } = sortedNames(scan);
  const [name, own] = [scan.layers.name[layer], scan.layers.own[layer]];
  const [start, end] = prefixRange(names, name, own.length > 0 ? position[own[0]] : -1);
  if (before[start] === before[end]) return [name];
  return ownParameters(scan, layer).map((parameter) => parameterEntry(scan, parameter, before));
}

/** A parameter's name, anchored if it begins the name of another one that is not selected. */
function parameterEntry(scan, name, before) {
  const { names, position } = sortedNames(scan);
  const place = placesOf(scan).get(name);
  const at = place === undefined ? -1 : position[place];
  const [start, end] = prefixRange(names, name, at);
  const itself = at < 0 ? 0 : before[at + 1] - before[at];
  return before[end] - before[start] === itself ? name : `^${name}$`;
}

/** A name as YAML text, in the spelling of the list for Axolotl (0) or of PyYAML (1). */
function quotedName(scan, name, spelling) {
  const quoted = lookup(scan, "quoted", () => new Map(Object.entries(scan.quoted)));
  return quoted.get(name)?.[spelling] ?? name;
}

/** `unfrozen_parameters` of Axolotl. Each type has a comment, even if it has no entry. */
function axolotlList(page, chosen) {
  const { scan, percent, isOn, embedding } = chosen;
  const lines = ["unfrozen_parameters:"];
  if (page.order !== "highest") lines.push(`# control: ${page.share.join(percent)} of each layer type`);
  for (const name of embedding) lines.push(`- ^${name}$`);
  unfrozenEntries(chosen).forEach((group, type) => {
    if (!isOn[type]) return;
    lines.push(`# ${scan.types[type].name} layers`);
    for (const entry of group) lines.push(`- ${quotedName(scan, entry, 0)}`);
  });
  return { text: linesOf(lines) };
}

/** Arguments of ms-swift. A name that begins others is in a regular expression instead. */
function swiftList(_, chosen) {
  const entries = unfrozenEntries(chosen).flat();
  const prefixes = new Set([...chosen.embedding, ...entries.filter((entry) => !entry.startsWith("^"))]);
  const lines = ["--freeze_parameters_ratio 1", `--trainable_parameters ${[...prefixes].join(" ")}`];
  const anchored = new Set(entries.filter((entry) => entry.startsWith("^")).map((entry) => entry.slice(1, -1)));
  if (anchored.size > 0) {
    lines.push(`--trainable_parameters_regex ^(${[...anchored].map(escapedPattern).join("|")})$`);
  }
  return { text: linesOf(lines) };
}

const linesOf = (lines) => lines.map((line) => `${line}\n`).join("");
