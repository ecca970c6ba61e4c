"use strict";

// The memory that training takes on each device, with the same figures and words as the command's report.

const MOST_DEVICES = 1_000_000;

function createPlanPanel(page, change) {
  const counts = build("p", { class: "plan-counts" });
  const reason = build("p", { class: "muted" });
  const choice = createPlanChoice(page, change);
  const figures = createPlanFigures();
  const table = createPlanTable(page);
  const meaning =
    "Counted: weights, gradients and optimizer states. Not counted: activations, and what the framework takes for itself.";
  const plan = build(
    "div",
    { class: "plan" },
    choice.element,
    figures.element,
    build("p", { class: "muted" }, meaning),
    table.element,
  );
  const element = buildPanel("plan", "Training memory", counts, reason, plan);
  const show = (state, chosen) => {
    const why = whyNoPlan(page, chosen, state);
    plan.hidden = why !== "";
    setText(reason, why);
    setText(counts, chosen.scan.knowsModules ? describeTrained(chosen) : "");
    if (why === "") {
      choice.show(state);
      figures.show(page, chosen, state);
      table.show(chosen, state);
    }
  };
  return { element, show };
}

/** Why there is no plan; empty if there is one. */
function whyNoPlan(page, chosen, state) {
  if (page.formats.find((format) => format.name === state.format).adapters) {
    return `The list ${state.format} is for adapters. Their memory depends on their rank, and is not estimated.`;
  }
  if (!chosen.scan.knowsModules) {
    return "This scan does not record parameter sizes, so training memory is unknown; --rescan finds out.";
  }
  return "";
}

/** How many parameters train, with and without embeddings. */
function describeTrained(chosen) {
  const { scan, trained } = chosen;
  const [total, count] = [numTotal(scan), numTrained(scan, trained)];
  const ends = numTrained(scan, scan.embedding);
  const both = numTrained(scan, [...trained, ...scan.embedding]);
  const without = count - (ends - (both - count)); // less those embeddings that are among the trained
  let text = `${withCommas(count)} of ${withCommas(total)} parameters train, ${percentOf(count, total)}`;
  if (without < count) {
    text += `; without input embedding and output head ${percentOf(without, total)}`;
  } else if (ends > 0) {
    text += `; with input embedding and output head ${percentOf(both, total)}`;
  }
  return text;
}

function percentOf(part, whole) {
  return `${formatNumber((100 * part) / whole, 3)} percent`;
}

/** The choices of optimizer, sharding and number of devices. */
function createPlanChoice(page, change) {
  const options = (all) => all.map(({ name }, i) => build("option", { value: i }, name));
  const optimizer = build("select", { id: "plan-optimizer" }, ...options(page.optimizers));
  const sharding = build("select", { id: "plan-sharding", "aria-describedby": "plan-hint" }, ...options(page.shardings));
  const devices = build("input", {
    id: "plan-devices",
    type: "number",
    min: "1",
    max: MOST_DEVICES,
    step: "1",
    inputmode: "numeric",
    "aria-describedby": "plan-hint",
  });
  const hint = build("p", { id: "plan-hint", class: "muted", role: "status" });
  const field = (label, control) => build("p", {}, build("label", { for: control.id }, label), control);
  const element = build(
    "div",
    {},
    build(
      "div",
      { class: "plan-choice" },
      field("Optimizer", optimizer),
      field("Sharding", sharding),
      field("Devices", devices),
    ),
    hint,
  );
  let shown = { devices: 1 };
  const say = (isValid, text) => {
    devices.setAttribute("aria-invalid", String(!isValid));
    setText(hint, text);
  };
  optimizer.addEventListener("change", () => change({ optimizer: Number(optimizer.value) }));
  sharding.addEventListener("change", () => {
    const chosen = Number(sharding.value);
    change({ sharding: chosen, devices: chosen > 0 ? Math.max(shown.devices, 2) : shown.devices });
  });
  devices.addEventListener("input", () => {
    const number = parseDevices(devices.value);
    if (number === null) {
      say(false, `A whole number from 1 to ${withCommas(MOST_DEVICES)} is expected.`);
    } else {
      change({ devices: number });
    }
  });
  const show = (state) => {
    shown = state;
    optimizer.value = state.optimizer;
    sharding.value = shardingOf(state);
    const typed = parseDevices(devices.value);
    if (typed === null && document.activeElement === devices) {
      return; // somebody is typing
    }
    if (typed !== state.devices) {
      devices.value = state.devices;
    }
    say(true, hintOnDevices(state));
  };
  devices.addEventListener("blur", () => {
    devices.value = shown.devices; // the last number that was one
    say(true, hintOnDevices(shown));
  });
  return { element, show };
}

/** The number of devices that a text says; null if it says none. */
function parseDevices(text) {
  const number = /^\d{1,7}$/.test(text) ? Number(text) : 0;
  return number >= 1 && number <= MOST_DEVICES ? number : null;
}

/** One device has nothing to divide. The choice is kept, for whoever types 16 has typed 1 on the way. */
function shardingOf({ sharding, devices }) {
  return devices > 1 ? sharding : 0;
}

function hintOnDevices({ sharding, devices }) {
  if (devices === 1) {
    return "Sharding needs two or more devices.";
  }
  return sharding === 0 ? "Without sharding, each device holds everything, however many there are." : "";
}

/** The memory with the chosen optimizer, sharding and number of devices. */
function createPlanFigures() {
  const rows = ["if the selection trains", "if all parameters train"].map((label) => ({
    label,
    value: build("strong", { class: "plan-value" }),
    bar: build("span", { class: "plan-bar" }),
  }));
  const element = build("dl", { class: "plan-figures" });
  for (const { label, value, bar } of rows) {
    const track = build("span", { class: "plan-track", "aria-hidden": "true" }, bar);
    element.append(build("div", {}, build("dt", {}, label), build("dd", {}, value, " on each device", track)));
  }
  const show = (page, chosen, state) => {
    const { optimizer, devices } = state;
    const { selected, all } = memoryPerDevice(page, chosen, optimizer, shardingOf(state), devices);
    const unit = memoryUnit(page, chosen);
    rows.forEach(({ value, bar }, i) => {
      const bytes = [selected, all][i];
      setText(value, `${threeDigits(bytes / unit.bytes)} ${unit.name}`);
      bar.style.inlineSize = `${(100 * bytes) / all}%`;
    });
  };
  return { element, show };
}

/** A table of the memory with every optimizer and sharding. It is filled when it is open. */
function createPlanTable(page) {
  const body = build("tbody");
  const head = build("tr", {}, build("td"), ...page.optimizers.map(({ name }) => build("th", { scope: "col" }, name)));
  const meaning = build("p", { id: "plan-meaning", class: "muted" });
  const table = build("table", { class: "plan-table", "aria-describedby": meaning.id }, build("thead", {}, head), body);
  const label = "Memory with every optimizer and sharding";
  const scroller = build("div", { class: "plan-scroller", tabindex: "0", role: "region", "aria-label": label }, table);
  const element = build("details", {}, build("summary", {}, "All optimizers and shardings"), meaning, scroller);
  let current = null;
  const draw = () => {
    if (element.open && current !== null) {
      const [chosen, devices] = current;
      const { name } = memoryUnit(page, chosen);
      setText(meaning, `${name} on each device. A of B: A if the selected parameters train, B if all parameters train`);
      body.replaceChildren(...planRows(page, chosen, devices));
    }
  };
  element.addEventListener("toggle", draw);
  const show = (chosen, { devices }) => {
    current = [chosen, devices];
    draw();
  };
  return { element, show };
}

function planRows(page, chosen, devices) {
  const { bytes } = memoryUnit(page, chosen);
  const shardings = [...page.shardings.keys()].slice(0, devices > 1 ? undefined : 1);
  return shardings.map((sharding) => {
    const label = sharding === 0 ? page.shardings[0].name : `${page.shardings[sharding].name} of ${devices}`;
    const cells = [...page.optimizers.keys()].map((optimizer) => {
      const { selected, all } = memoryPerDevice(page, chosen, optimizer, sharding, devices);
      return build("td", { class: "numbers" }, `${threeDigits(selected / bytes)} of ${threeDigits(all / bytes)}`);
    });
    return build("tr", {}, build("th", { scope: "row" }, label), ...cells);
  });
}

/** The unit of all figures: GiB if the largest of them is at least one GiB. No plan takes more than an unsharded one. */
function memoryUnit(page, chosen) {
  const largest = Math.max(...[...page.optimizers.keys()].map((each) => memoryPerDevice(page, chosen, each, 0, 1).all));
  return largest >= 2 ** 30 ? { name: "GiB", bytes: 2 ** 30 } : { name: "MiB", bytes: 2 ** 20 };
}

/** A number with three significant digits, or all digits before the point if these are more. */
function threeDigits(number) {
  return number < 100 ? formatNumber(number, 3) : withCommas(roundHalfEven(number));
}

/** The nearest whole number; of two that are as near, the even one, as Python rounds. */
function roundHalfEven(number) {
  const below = Math.floor(number);
  return number - below === 0.5 ? below + (below % 2) : Math.round(number);
}
