"use strict";

// One heat map: the table of one scan, with its rows, what they unfold to, and what is pointed at in it.

const OUTSIDE = "outside the stack"; // the column of lm_head and other modules that have no layer index
const KEPT_END = 12; // characters at the end of a name that are always shown, or its last part if that is shorter
const PRINTED_WIDTH = 700; // of all columns on paper, in CSS pixels

/** A heat map. events: {point(spot), hold(spot), enter(), switchRow(row, isOn)}, where a spot is
 * {map, line, column}: `point` is told where the pointer is (null: nowhere), `hold` what has the focus or was clicked; without `switchRow`, rows have no
 * checkboxes. Returns {map, element, show(chosen, marks), fold(isFolded), focusLayer(layer)}. */
function createHeatMap(page, scan, scale, events) {
  const places = layersAtPlaces(scan);
  const map = {
    page,
    scan,
    scale,
    typeOf: ranksOf(scan).type,
    ranks: scoreRanks(scan),
    isVector: places.map((row) => row.filter(Boolean).flat().every((layer) => scoreAt(scan, layer) === 1)),
    numberColumns: page.byScore ? ["selected", "margin"] : ["selected"],
    lines: new Map(), // of table rows
    chosen: null,
  };
  const marks = { current: null };
  const body = build("tbody");
  const table = build("table", { class: "heat-map", role: "grid", "aria-label": `Scores of ${scan.model}` });
  table.append(build("thead", {}, headRow(map)), body);
  const lines = scan.rows.map((row, r) => buildRow(map, r, places[r], events));
  body.append(...lines.map((line) => line.element));
  const navigation = makeNavigable(table, "td.cell, th input, th button");

  const showLines = (shown) => shown.forEach((line) => showLine(map, line, map.chosen, marks.current));
  const unfold = (line, isOpen) => {
    if (!line.inner) {
      line.inner = buildInnerLines(map, line);
      line.element.after(...line.inner.map((inner) => inner.element));
    }
    line.inner.forEach((inner) => (inner.element.hidden = !isOpen));
    line.toggle.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) {
      showLines(line.inner);
    }
    navigation.keepStop();
  };
  lines.filter((line) => line.toggle).forEach((line) => {
    line.toggle.addEventListener("click", () => unfold(line, line.toggle.getAttribute("aria-expanded") === "false"));
  });
  listenTo(map, table, navigation, events);
  const element = build("div", { class: "heat-box" }, table);
  const hasOutside = Number(scan.columns[0] === OUTSIDE);
  element.style.setProperty("--outside", hasOutside);
  element.style.setProperty("--columns", Math.max(scan.columns.length - hasOutside, 1));
  element.style.setProperty("--longest", Math.max(...lines.map((line) => line.label.length + (line.toggle ? 7 : 0))));
  const largest = Math.max(...lines.map((line) => line.layersAt.filter(Boolean).flat().length));
  element.style.setProperty("--longest-count", `${withCommas(largest)} of ${withCommas(largest)}`.length);
  const fit = () => labelColumns(map, map.heads.at(-1).getBoundingClientRect().width);
  new ResizeObserver(fit).observe(element);
  addEventListener("beforeprint", () => labelColumns(map, PRINTED_WIDTH / map.heads.length));
  addEventListener("afterprint", fit);

  return {
    map,
    element,
    show(chosen, news) {
      map.chosen = chosen;
      marks.current = news;
      lines.forEach((line) => {
        if (line.box) {
          line.box.checked = line.types.some((type) => chosen.isOn[type]);
        }
      });
      showLines([...map.lines.values()].filter((line) => !line.element.hidden));
      navigation.keepStop();
    },
    fold(isFolded) {
      lines.forEach((line) => {
        line.element.hidden = isFolded && scan.rows[line.row].isConstant;
        if (line.inner && line.element.hidden) {
          unfold(line, false);
        }
      });
      if (map.chosen) {
        showLines(lines.filter((line) => !line.element.hidden));
      }
      navigation.keepStop();
    },
    focusLayer(layer) {
      let line = lines[scan.layers.row[layer]];
      if (line.types.length > 1) {
        unfold(line, true);
        line = line.inner.find((inner) => inner.types[0] === map.typeOf[layer]);
      }
      const cell = line.cells[scan.layers.column[layer]];
      navigation.moveTo(cell);
      cell.scrollIntoView({ block: "center", inline: "nearest" });
    },
  };
}

/** The line of a row of the scan's table. */
function buildRow(map, row, layersAt, events) {
  const { label, types } = map.scan.rows[row];
  const name = buildName(label);
  const line = { row, label, types, expert: null, layersAt, hasNumbers: true, head: [name] };
  if (events.switchRow) {
    line.box = build("input", { type: "checkbox", tabindex: "-1", "aria-label": `select layers of ${label}` });
    line.box.addEventListener("change", () => events.switchRow(row, line.box.checked));
    line.head = [build("label", {}, line.box, name)];
  }
  const experts = numExperts(map.scan, line);
  if (experts > 1) {
    line.toggle = build(
      "button",
      { type: "button", class: "unfold", tabindex: "-1", "aria-expanded": "false", "aria-label": `experts of ${label}` },
      withCommas(experts),
    );
    line.head.push(line.toggle);
  }
  return buildLine(map, line, "row");
}

/** How many experts a line unfolds to: those of modules of their own, else those of its largest stack; 0 for none. */
function numExperts(scan, line) {
  if (line.types.length > 1) {
    return line.types.length;
  }
  return line.layersAt.filter(Boolean).flat().reduce((most, layer) => Math.max(most, scan.layers.experts[layer]?.length ?? 0), 0);
}

/** A line for each expert of a line. */
function buildInnerLines(map, line) {
  if (line.types.length > 1) {
    return line.types.map((type) => {
      const layersAt = Array(line.layersAt.length).fill(undefined);
      map.scan.types[type].ranked.forEach((layer) => (layersAt[map.scan.layers.column[layer]] ??= []).push(layer));
      const { name } = map.scan.types[type];
      return buildLine(map, { ...innerOf(line, name, layersAt), types: [type], hasNumbers: true }, "inner");
    });
  }
  return Array.from({ length: numExperts(map.scan, line) }, (_, expert) => {
    const has = (layers) => layers && (map.scan.layers.experts[layers[0]]?.length ?? 0) > expert;
    const layersAt = line.layersAt.map((layers) => (has(layers) ? layers : undefined));
    return buildLine(map, { ...innerOf(line, `expert ${expert}`, layersAt), expert }, "inner");
  });
}

/** A name of which the beginning is cut where there is no room for all of it. */
function buildName(label) {
  const shown = cutInMiddle(label, 80);
  const last = shown.lastIndexOf(".") + 1;
  const at = shown.length - last <= KEPT_END ? last : shown.length - KEPT_END;
  const [start, end] = [shown.slice(0, at), shown.slice(at)];
  return build("span", { class: "label" }, build("span", { class: "start" }, start), build("span", {}, end));
}

function innerOf(line, label, layersAt) {
  const head = [buildName(label)];
  return { row: line.row, label, types: line.types, expert: null, layersAt, head, hasNumbers: false };
}

/** The row of column headers. The map gets them, to choose which of them are labelled. */
function headRow(map) {
  map.heads = map.scan.columns.map((column) =>
    column === OUTSIDE
      ? build("th", { scope: "col", class: "outside" }, build("span", {}, column))
      : build("th", { scope: "col", class: "index", "aria-label": placeName(column) }, build("span", {}, cutInMiddle(column, 6))),
  );
  const numbers = map.numberColumns.map((name) => build("th", { scope: "col", class: `numbers ${name}` }, name));
  return build("tr", {}, build("th", { scope: "col" }, "layer type"), ...map.heads, ...numbers);
}

/** Label as many columns as there is room for. width: of a column, in CSS pixels. */
function labelColumns(map, width) {
  const indexes = map.heads.filter((head) => head.className.startsWith("index"));
  const digits = indexes.reduce((most, head) => Math.max(most, head.textContent.length), 1);
  let step = 1;
  for (let i = 0; step * width < digits * 7 + 3; i++) {
    step = [2, 5, 10][i % 3] * 10 ** Math.floor(i / 3);
  }
  indexes.forEach((head, i) => head.classList.toggle("unlabelled", i % step !== 0));
}

/** Tell where the pointer and the focus are. */
function listenTo(map, table, navigation, events) {
  const spotAt = (target) => {
    const cell = target.closest("td.cell");
    const line = cell && map.lines.get(cell.parentElement);
    return line ? { map, line, column: line.cells.indexOf(cell) } : null;
  };
  table.addEventListener("pointerover", (event) => event.pointerType === "mouse" && events.point(spotAt(event.target)));
  table.addEventListener("pointerleave", () => events.point(null));
  table.addEventListener("focusin", (event) => events.hold(spotAt(event.target)));
  table.addEventListener("click", (event) => {
    const spot = spotAt(event.target);
    if (spot) {
      navigation.moveTo(spot.line.cells[spot.column]);
      events.hold(spot); // even if the cell had the focus already
    }
  });
  table.addEventListener("keydown", (event) => {
    const spot = spotAt(event.target);
    if (spot && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      events.hold(spot);
      events.enter();
    }
  });
}
