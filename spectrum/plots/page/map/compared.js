"use strict";

// Two scans: which layers enter the selection and which leave it if the second scan replaces the first.

const SIDES = ["enter", "leave"]; // of a change

/** The comparison below the heat maps: {element, show(comparison)}. */
function createCompared(page) {
  const summary = build("p");
  const types = build("tbody");
  const heads = ["layer type", "layers", "rank correlation", "enter", "leave"];
  const cells = heads.map((head, i) => build("th", { scope: "col", class: i ? "numbers" : null }, head));
  const table = build("table", { class: "compared-types" }, build("thead", {}, build("tr", {}, ...cells)), types);
  const lists = SIDES.map(createNameList);
  const only = build("p", { class: "muted" });
  const problem = build("p", { class: "problem" });
  const rest = build(
    "div",
    {},
    summary,
    build("div", { class: "changes" }, ...lists.map((list) => list.element)),
    build("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Comparison by layer type" }, table),
    only,
  );
  const element = build("div", { class: "compared" }, build("h3", {}, "What changes"), problem, rest);
  return {
    element,
    show(comparison) {
      setText(problem, comparison.problem ?? "");
      rest.hidden = comparison.problem !== null;
      if (rest.hidden) {
        return;
      }
      const names = (side) => comparison.types.flatMap((type) => type[side]);
      lists.forEach((list, i) => list.show(names(SIDES[i])));
      setText(summary, changesInWords(names("enter").length, names("leave").length));
      types.replaceChildren(...comparison.types.map(comparedRow));
      setText(only, [depthsInWords(page, comparison), onlyInWords(page, comparison)].join(" ").trim());
    },
  };
}

function changesInWords(enter, leave) {
  if (enter + leave === 0) {
    return "Of the layers that both scans have, both select the same.";
  }
  const entering = plural(enter, "layer enters", "layers enter");
  return `${entering} the selection (+), ${plural(leave, "layer leaves", "layers leave")} it (−).`;
}

/** That the models differ in depth; empty if they do not. */
function depthsInWords(page, { types }) {
  const largest = ({ numFirst, numSecond }) => Math.max(numFirst, numSecond);
  const unequal = types.filter(({ numFirst, numSecond }) => numFirst !== numSecond);
  if (!unequal.length) {
    return "";
  }
  const { name, numFirst, numSecond } = unequal.reduce((a, b) => (largest(b) > largest(a) ? b : a));
  const [first, second] = page.scans.map(({ model }) => model);
  const counts = `${first} has ${plural(numFirst, "layer", "layers")} of ${name}, ${second} has ${numSecond}`;
  return `The depths differ: ${counts}; what enters and leaves is selected only among layers that both have.`;
}

function onlyInWords(page, { onlyFirst, onlySecond }) {
  const sides = [onlyFirst, onlySecond].map((types, i) => [types, page.scans[i].model]);
  const words = sides.filter(([types]) => types.length).map(([types, model]) => `Only in ${model}: ${types.join(", ")}.`);
  return words.join(" ");
}

function comparedRow({ name, numLayers, correlation, enter, leave }) {
  // + 0 turns -0 into 0.
  const rounded = correlation === null ? "" : ((Math.round(correlation * 1000) + 0) / 1000).toFixed(3);
  const numbers = [withCommas(numLayers), rounded, withCommas(enter.length), withCommas(leave.length)];
  const head = build("th", { scope: "row", title: name }, cutInMiddle(name, 60));
  return build("tr", {}, head, ...numbers.map((text) => build("td", { class: "numbers" }, text)));
}

/** The names of the layers that enter or leave. */
function createNameList(side) {
  const sign = side === "enter" ? "+" : "−";
  const summary = build("summary");
  const list = build("ul", { class: "names" });
  const element = build("details", { open: true }, summary, list);
  const show = (names) => {
    setText(summary, `${sign} ${plural(names.length, `layer ${side}s`, `layers ${side}`)}`);
    list.replaceChildren(
      ...names.map((name) => build("li", { title: name }, build("code", {}, `${sign} ${cutInMiddle(name, 80)}`))),
    );
  };
  return { element, show };
}

/** For each layer of both scans, whether it enters (bit 1) or leaves (bit 2) the selection. */
function marksOf(page, comparison) {
  return page.scans.map((scan) => {
    const marks = new Uint8Array(scan.layers.name.length);
    const layerOf = lookup(scan, "layers by name", () => new Map(scan.layers.name.map((name, layer) => [name, layer])));
    comparison.types?.forEach(({ enter, leave }) => {
      enter.forEach((name) => (marks[layerOf.get(name)] |= 1));
      leave.forEach((name) => (marks[layerOf.get(name)] |= 2));
    });
    return marks;
  });
}
