"use strict";

// The lines of a heat map: a table row with a cell for each column that has layers. A line stands for a row of the
// scan's table, for one type of such a row, or for one expert of its stacks.

// How a cell is outlined.
const [NOT_SELECTED, SOME_SELECTED, SELECTED, ALWAYS_TRAINS] = [0, 1, 2, 3];
const OUTLINES = ["", "some", "chosen", "always"]; // CSS classes
const MARKS = ["", "+", "−", "±"]; // of cells that enter the selection, leave it, or both

/** The line's table row. line: {row, label, types, expert, layersAt, head, hasNumbers}. `layersAt` has the layers at
 * each column, or undefined; `expert` is the place of an expert in its stack, or null; `head` is what the row header
 * shows. The line gets its elements: `element`, `cells`, `numbers`. */
function buildLine(map, line, className) {
  line.cells = line.layersAt.map((layers, column) => (layers ? buildCell(map, line, column) : null));
  line.signs = new Set(line.cells.map((cell) => cell?.textContent));
  line.outlines = new Uint8Array(line.cells.length).fill(255); // none is drawn yet
  line.numbers = map.numberColumns.map((name) => build("td", { class: `numbers ${name}` }));
  const header = build("th", { scope: "row", title: line.label, "aria-label": line.label }, build("div", { class: "head" }, ...line.head));
  const empty = (column) => build("td", { class: map.scan.columns[column] === OUTSIDE ? "outside" : null });
  line.element = build("tr", { class: className }, header, ...line.cells.map((cell, column) => cell ?? empty(column)), ...line.numbers);
  map.lines.set(line.element, line);
  return line;
}

function buildCell(map, line, column) {
  const cell = build("td");
  const score = lineScore(map, line, column);
  cell.textContent = signOf(score, map.isVector[line.row]);
  if (!cell.textContent) {
    const colour = map.scale.colourOf(score);
    cell.style.backgroundColor = `rgb(${colour})`;
    cell.style.color = inkOn(colour);
  }
  return cell;
}

/** What the colour of a cell stands for: a score, or the median of several. */
function lineScore(map, line, column) {
  const layers = line.layersAt[column];
  if (line.expert !== null) {
    return scoreOf(map.scan.layers.experts[layers[0]][line.expert]);
  }
  return layers.length === 1 ? scoreAt(map.scan, layers[0]) : medianOf(layers.map((layer) => scoreAt(map.scan, layer)));
}

/** Show what is selected. marks: by layer, bit 1 if it enters the selection and bit 2 if it leaves it. */
function showLine(map, line, chosen, marks) {
  const isOff = line.types.every((type) => !chosen.isOn[type]);
  line.element.classList.toggle("off", isOff);
  line.cells.forEach((cell, column) => {
    if (cell) {
      showCell(map, line, column, outlineOf(map, line.layersAt[column], chosen), marks);
    }
  });
  if (line.hasNumbers) {
    showNumbers(map, line, chosen, isOff);
  }
}

function outlineOf(map, layers, chosen) {
  const numSelected = layers.reduce((sum, layer) => sum + chosen.isSelected[layer], 0);
  if (numSelected > 0) {
    return numSelected === layers.length ? SELECTED : SOME_SELECTED;
  }
  return layers.some((layer) => alwaysTrains(map.scan, chosen, layer)) ? ALWAYS_TRAINS : NOT_SELECTED;
}

/** Whether a layer trains as input embedding or output head, though it is not selected. */
function alwaysTrains(scan, chosen, layer) {
  return chosen.embeddings && Boolean(scan.layers.isEmbedding[layer]) && !chosen.isSelected[layer];
}

/** Draw a cell's outline and mark, if they are others than before. */
function showCell(map, line, column, outline, marks) {
  const mark = marks === null || line.expert !== null ? 0 : line.layersAt[column].reduce((all, layer) => all | marks[layer], 0);
  const drawn = outline + 4 * mark;
  if (line.outlines[column] === drawn && line.layersAt[column].length === 1) {
    return;
  }
  line.outlines[column] = drawn;
  const cell = line.cells[column];
  cell.setAttribute("aria-selected", String(outline === SELECTED || outline === SOME_SELECTED));
  cell.setAttribute("aria-label", cellLabel(map, line, column, drawn));
  if (marks !== null) {
    setText(cell, MARKS[mark] || signOf(lineScore(map, line, column), map.isVector[line.row]));
  }
  const isOutside = map.scan.columns[column] === OUTSIDE;
  const classes = ["cell", OUTLINES[outline], mark && "marked", isOutside && "outside", cell.textContent && "signed"];
  cell.className = classes.filter(Boolean).join(" ");
}

/** All that a cell shows, in words. */
function cellLabel(map, line, column, drawn) {
  const layers = line.layersAt[column];
  const parts = [line.expert === null ? line.label : map.scan.rows[line.row].label, placeName(map.scan.columns[column])];
  if (line.expert !== null) {
    parts.push(`expert ${line.expert}`);
  }
  parts.push(`${medianWords(map.scan, line, layers)}SNR ${formatNumber(lineScore(map, line, column), 4)}`);
  if (layers.length === 1 && line.expert === null) {
    parts.push(rankWords(map, layers[0]));
  }
  const mark = drawn >> 2;
  parts.push(selectedWords(map, line, layers, drawn & 3));
  if (mark) {
    parts.push([null, "enters the selection", "leaves the selection", "some enter the selection, some leave it"][mark]);
  }
  return parts.join(", ");
}

/** What a column stands for, in words. */
function placeName(column) {
  return column === OUTSIDE ? column : `layer ${column}`;
}

function medianWords(scan, line, layers) {
  if (line.expert !== null) {
    return "";
  }
  const experts = layers.length > 1 ? layers.length : scan.layers.experts[layers[0]]?.length;
  return experts ? `median of ${withCommas(experts)} experts, ` : "";
}

/** "rank 3 of 32", and with how many it shares the rank. */
function rankWords(map, layer) {
  const { rankOf, numTied } = map.ranks;
  const shared = numTied[layer] > 1 ? ` shared by ${withCommas(numTied[layer])}` : "";
  return `rank ${withCommas(rankOf[layer])} of ${withCommas(map.scan.types[map.typeOf[layer]].ranked.length)}${shared}`;
}

function selectedWords(map, line, layers, outline) {
  if (outline === SOME_SELECTED) {
    const selected = layers.filter((layer) => map.chosen.isSelected[layer]);
    return `${selected.length} of ${layers.length} selected`;
  }
  const whose = line.expert === null ? "" : "its layer is ";
  return whose + ["not selected", "", "selected", "not selected, but trains as input embedding or output head"][outline];
}

/** The columns beside the cells: how many layers of the line are selected, and the margin of the cut. */
function showNumbers(map, line, chosen, isOff) {
  const count = (lists) => line.types.reduce((sum, type) => sum + lists[type].length, 0);
  const total = count(map.scan.types.map((type) => type.ranked));
  const [selected, margin] = line.numbers;
  setText(selected, isOff ? "off" : `${withCommas(count(chosen.layers))} of ${withCommas(total)}`);
  if (margin) {
    setText(margin, !isOff && line.types.length === 1 ? describeMargin(map.page, chosen, line.types[0]) : "");
  }
}
