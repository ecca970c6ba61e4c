"use strict";

// How much trains: the slider, the field for any percentage, its scale, the embeddings, and what follows from them.

const QUIET_BEFORE_READING = 700; // milliseconds without a change until the new counts are read aloud
const SCALES = { types: "each layer type", params: "all parameters" };

function createControlsPanel(page, change) {
  const [scan] = page.scans;
  const latest = { state: null, chosen: null };
  const percentage = createPercentage(latest, change);
  const scale = createScaleChoice(scan, (name) => change({ wantedParams: name === "params" ? paramsOfStep(latest, stepOf(latest)) : null }));
  const embeddings = build("input", { type: "checkbox", id: "embeddings" });
  embeddings.addEventListener("change", () => change({ embeddings: embeddings.checked }));
  const label = build("label", { class: "choice" }, embeddings, "input embedding and output head");
  const report = createReport(page);
  const element = buildPanel(
    "controls",
    "How much to train",
    build(
      "div",
      { class: "inputs no-print" },
      percentage.element,
      scale.element,
      scan.embedding.length
        ? build("fieldset", {}, build("legend", {}, "Always train"), label)
        : build("p", { class: "muted" }, "This model names no input embedding and no output head."),
    ),
    report.element,
  );
  const show = (state, chosen) => {
    Object.assign(latest, { state, chosen });
    embeddings.checked = state.embeddings;
    percentage.show();
    scale.show(state);
    report.show(state, chosen);
  };
  return { element, show };
}

/** The step of the slider that selects what is selected; -1 if the percentage is less than one layer of any type. */
function stepOf({ chosen }) {
  const { scan, isOn, counts } = chosen;
  const { values } = cutsOf(scan, isOn);
  // The same quotients as those of the cuts, so that the two are equal without any tolerance.
  const reached = scan.types.reduce((most, { ranked }, type) => Math.max(most, counts[type] / ranked.length), 0);
  return firstWhere(0, values.length, (i) => values[i] > reached) - 1;
}

/** The shortest percentage of all parameters that selects as much as a step of the slider. Without a step, it is the
 * percentage that is shown: it waits for a type that is switched on. */
function paramsOfStep({ state, chosen }, step) {
  const { scan, isOn } = chosen;
  const steps = percentSteps(scan, isOn);
  if (steps.length === 0) {
    return state.wantedParams ?? state.percent;
  }
  const trainedAt = (at) => numTrainedAt(scan, { ...state, percent: steps[at] }, isOn);
  const at = Math.max(step, 0);
  const trained = trainedAt(at);
  let next = at + 1;
  while (next < steps.length && trainedAt(next) === trained) {
    next++;
  }
  const total = numTotal(scan);
  const cut = trained > 0 ? [trained, total] : [1, 2 * total]; // a percentage is over 0, though nothing trains
  return shortestPercent(cut, next < steps.length ? [trainedAt(next), total] : [101, 100]);
}

/** The percentage in a field, or null. Many type a comma for the point. */
function typedPercent(field) {
  return parsePercent(field.value.trim().replace(",", "."));
}

/** The slider and the field. latest: {state, chosen}, as shown. */
function createPercentage(latest, change) {
  const slider = build("input", { type: "range", id: "slider", min: "0", step: "1" });
  const field = build("input", { type: "text", id: "percent", inputmode: "decimal", autocomplete: "off", size: "7" });
  const problem = build("p", { class: "problem", id: "percent-problem", "aria-live": "polite" });
  field.setAttribute("aria-describedby", "percent-problem");
  const sliderLabel = build("label", { for: "slider" });
  const fieldLabel = build("label", { for: "percent" }, "Any percentage");
  const equal = build("p", { class: "muted equal" });
  let shown = null; // what the field showed last, and for which scale
  const inParams = () => latest.state.wantedParams !== null;
  const take = (text) => change(inParams() ? { wantedParams: text } : { percent: text });
  const refuse = (words) => {
    setText(problem, words);
    field.setAttribute("aria-invalid", String(words !== ""));
  };

  slider.addEventListener("input", () => {
    const step = Number(slider.value);
    take(inParams() ? paramsOfStep(latest, step) : percentSteps(latest.chosen.scan, latest.chosen.isOn)[step]);
  });
  let finished = null; // the percentage before the one that is being typed
  field.addEventListener("focus", () => (finished = latest.state.wantedParams ?? latest.state.percent));
  field.addEventListener("change", () => (finished = typedPercent(field) ?? finished));
  field.addEventListener("input", () => {
    const number = typedPercent(field);
    if (number === null) {
      refuse(`A number over 0 and at most 100 is expected, such as 25 or 12.5, not “${cutInMiddle(field.value, 40)}”.`);
      if (finished !== null && !/^\d+[.,]$/.test(field.value)) {
        take(finished); // and not the first digits of what is refused
      }
    } else {
      refuse("");
      take(number);
    }
  });
  const show = () => {
    const { state, chosen } = latest;
    const steps = percentSteps(chosen.scan, chosen.isOn);
    slider.max = String(Math.max(steps.length - 1, 0));
    slider.disabled = steps.length === 0;
    slider.value = String(Math.max(stepOf(latest), 0));
    const wanted = state.wantedParams ?? state.percent;
    const share = `${state.percent} percent of ${SCALES.types}`;
    const words = inParams() ? `${wanted} percent of ${SCALES.params}, as ${share}` : share;
    slider.setAttribute("aria-valuetext", words);
    setText(sliderLabel, inParams() ? `At most this percent of ${SCALES.params}` : `Percent of ${SCALES.types}`);
    setText(equal, inParams() && state.topParams !== null ? `the same as ${share}` : "");
    const typed = typedPercent(field);
    const isTyping = document.activeElement === field && typed === null; // "12." on the way to "12.5"
    if (shown !== words && !isTyping) {
      shown = words;
      refuse("");
      if (document.activeElement !== field || typed !== wanted) {
        field.value = wanted;
      }
    }
    if (state.paramsProblem !== null || problem.dataset.of === "params") {
      refuse(state.paramsProblem ?? "");
      problem.dataset.of = state.paramsProblem === null ? "" : "params";
    }
  };
  const element = build(
    "div",
    { class: "percentage" },
    build("div", { class: "slide" }, sliderLabel, slider),
    build("div", { class: "type" }, fieldLabel, build("span", {}, field, " %")),
    equal,
    problem,
  );
  return { element, show };
}

/** The choice of the scale: of each layer type, or of all parameters if the scan knows their sizes. */
function createScaleChoice(scan, choose) {
  const radios = Object.entries(SCALES).map(([name, words]) => {
    const radio = build("input", { type: "radio", name: "scale", value: name });
    radio.addEventListener("change", () => choose(name));
    return { radio, label: build("label", { class: "choice" }, radio, words) };
  });
  const knows = numTotal(scan) !== null;
  radios[1].label.hidden = !knows;
  const unknown = build("p", { class: "muted" }, "This scan does not say how large parameters are.");
  const legend = build("legend", {}, "Percent of");
  const labels = radios.map(({ label }) => label);
  const element = build("fieldset", {}, legend, build("div", { class: "choices" }, ...labels), knows ? null : unknown);
  const show = (state) => radios.forEach(({ radio }, i) => (radio.checked = i === Number(state.wantedParams !== null)));
  return { element, show };
}

/** What is selected, in words, and what is wrong with it. */
function createReport(page) {
  const counts = build("p", { class: "counts" });
  const spoken = build("p", { class: "visually-hidden", role: "status" });
  const problem = build("p", { class: "problem" });
  const warning = build("p", { class: "warning" });
  let timer = 0;
  const show = (state, chosen) => {
    const words = countsInWords(page, chosen);
    counts.replaceChildren(build("strong", {}, words[0]), ` ${words.slice(1).join(" ")}`);
    setText(problem, chosen.problem ?? "");
    setText(warning, chosen.warning ?? "");
    clearTimeout(timer);
    timer = setTimeout(() => setText(spoken, [...words, problem.textContent, warning.textContent].join(" ").trim()), QUIET_BEFORE_READING);
  };
  const notes = reportNotes(page);
  return { element: build("div", { class: "report" }, counts, problem, warning, ...notes, spoken), show };
}

function countsInWords(page, chosen) {
  const { scan, layers, isOn } = chosen;
  const all = scan.types.reduce((sum, type, t) => sum + (isOn[t] ? type.ranked.length : 0), 0);
  const selected = layers.reduce((sum, group) => sum + group.length, 0);
  const words = [`${withCommas(selected)} of ${withCommas(all)} layers,`, `${page.share.join(chosen.percent)} of each layer type`];
  const [trained, total] = [numTrained(scan, chosen.trained), numTotal(scan)];
  if (trained !== null && total > 0) {
    words[1] += ":";
    words.push(`${amounts(trained, total)} parameters train (${formatNumber((100 * trained) / total, 3)} percent)`);
  }
  return words;
}

/** "12.3 of 70.6 billion", with the unit of the total. */
function amounts(part, total) {
  const units = [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]];
  const [size, unit] = units.find(([least]) => total >= least) ?? [1, ""];
  const [some, all] = [part, total].map((number) => (size === 1 ? withCommas(number) : formatNumber(number / size, 3)));
  return `${some} of ${all} ${unit}`.trim();
}

/** What holds for every percentage: the order, and layers that have no score. */
function reportNotes(page) {
  const notes = [];
  if (page.order !== "highest") {
    const which = page.order === "lowest" ? "the layers of lowest SNR" : "layers by lot";
    notes.push(build("p", { class: "muted" }, `Order: ${page.order}. As a control, it selects ${which}.`));
  }
  const { leftOut } = page.scans[0];
  if (leftOut.length) {
    const names = listedNames(leftOut.map((layer) => cutInMiddle(layer, 60)), 3);
    notes.push(build("p", { class: "warning" }, `Never selected, since their weights hold NaN or infinity: ${names}`));
  }
  return notes;
}
