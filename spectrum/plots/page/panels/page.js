"use strict";

// START HERE: the state of the page, and what happens when it changes. A panel shows the state; its controls call
// `change` with what is new, and every panel is then shown again.

const page = JSON.parse(document.getElementById("data").textContent);

/** The state at first: {percent, topParams, wantedParams, paramsProblem, embeddings, off, format, optimizer, sharding,
 * devices}. `wantedParams` is the percentage of all parameters that the user asks for, or null; `topParams` is the same,
 * but null where no selection is that small, as `paramsProblem` then says. `off` is a set of rows of the first scan. */
function startState(start, scan) {
  const off = new Set(start.off);
  const rows = scan.rows.keys();
  return {
    percent: start.percent,
    topParams: start.topParams,
    wantedParams: start.topParams,
    paramsProblem: null,
    embeddings: start.embeddings,
    off: new Set([...rows].filter((row) => scan.rows[row].types.every((type) => off.has(scan.types[type].name)))),
    format: start.format,
    optimizer: 0,
    sharding: 0,
    devices: start.devices,
  };
}

/** The state with the percentage that the wanted share of all parameters comes to. */
function settled(next) {
  if (next.wantedParams === null) {
    return { ...next, topParams: null, paramsProblem: null };
  }
  const scan = page.scans[0];
  const found = percentOfParams(scan, next, typesOn(scan, page, next), next.wantedParams);
  return found.problem
    ? { ...next, topParams: null, paramsProblem: found.problem }
    : { ...next, topParams: next.wantedParams, paramsProblem: null, percent: found.percent };
}

let state = startState(page.start, page.scans[0]);
let drawing = 0; // the animation frame in which the page is drawn again; 0 if it is up to date

/** Take over new values of the state, and draw all that follows from them, at most once per frame. */
function change(news) {
  state = settled({ ...state, ...news });
  drawing ||= requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  const chosen = selectLayers(page.scans[0], state, typesOn(page.scans[0], page, state));
  for (const panel of panels) {
    panel.show(state, chosen);
  }
}

/** Scroll to a layer's cell in the heat map, and show its details. */
function focusLayer(layer) {
  mapPanel.focusLayer(layer);
}

/** Follow a link to a layer, `#layer=NAME`. */
function followLink() {
  const [key, ...rest] = location.hash.slice(1).split("=");
  if (key !== "layer") {
    return;
  }
  const layer = page.scans[0].layers.name.indexOf(decoded(rest.join("=")));
  if (layer >= 0) {
    focusLayer(layer);
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not written by this page
  }
}

/** Follow a link within the page. In a frame without an address of its own, the browser itself would leave the page. */
function followWithin(event) {
  const address = event.target.closest?.("a[href^='#']")?.getAttribute("href");
  if (address && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    location.hash = address;
    focusTarget(document.getElementById(address.slice(1)));
  }
}

/** Go to an element that a link leads to, if it is one, also where the address stays the same. */
function focusTarget(element) {
  if (element !== null) {
    element.tabIndex = -1;
    element.focus({ preventScroll: true });
    element.scrollIntoView();
  }
}

function createHeader() {
  const scan = page.scans[0];
  const about = [
    scan.modelClass,
    `${withCommas(scan.layers.name.length)} layers`,
    page.scans[1] ? `compared with ${cutInMiddle(page.scans[1].model, 80)}` : null,
  ];
  return build(
    "header",
    {},
    build("h1", { title: scan.model }, cutInMiddle(scan.model, 120)),
    build("p", { class: "muted" }, about.filter(Boolean).join(" · ")),
  );
}

const layersPanel = createLayersPanel(page, focusLayer);
const mapPanel = createMapPanel(page, change, layersPanel.reveal);
const panels = [
  createControlsPanel(page, change),
  mapPanel,
  createPlanPanel(page, change),
  createListPanel(page, change),
  layersPanel,
];

document.getElementById("main").append(createHeader(), ...panels.map((panel) => panel.element));
state = settled(state);
draw();
followLink();
addEventListener("hashchange", followLink);
addEventListener("click", followWithin);
