"use strict";

// The keyboard in a heat map: the whole table is one stop of the Tab key, and arrow keys move within it.

const PAGE_OF_LINES = 10; // lines that Page Up and Page Down move by

/** Make a table one stop of the Tab key. selector: of the elements in it that can have the focus. Returns
 * {moveTo(element), keepStop()}: give one of them the focus; choose another stop if the present one is hidden. */
function makeNavigable(table, selector) {
  let current = null;
  let goal = null; // the column that moves up and down return to, past lines that have no cell there

  const setCurrent = (element) => {
    current?.setAttribute("tabindex", "-1");
    current = element;
    current.setAttribute("tabindex", "0");
  };
  const moveTo = (element) => {
    setCurrent(element);
    element.focus();
  };
  table.addEventListener("focusin", (event) => {
    const element = event.target.closest(selector);
    if (element) {
      setCurrent(element);
      goal = null;
    }
  });
  table.addEventListener("keydown", (event) => {
    const from = event.target.closest(selector);
    if (!from || event.altKey || event.shiftKey || event.metaKey) {
      return;
    }
    const lines = shownLines(table);
    const stops = stopsOf(from.closest("tr"), selector);
    const column = goal ?? columnOf(from);
    const sideways = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const upwards = { ArrowUp: -1, ArrowDown: 1, PageUp: -PAGE_OF_LINES, PageDown: PAGE_OF_LINES }[event.key];
    if (event.ctrlKey && (event.key === "Home" || event.key === "End")) {
      const all = lines.flatMap((line) => stopsOf(line, selector));
      moveTo(all.at(event.key === "Home" ? 0 : -1));
    } else if (event.ctrlKey || (sideways ?? upwards) === undefined) {
      return;
    } else if (sideways !== undefined) {
      moveTo(stops[within(stops.indexOf(from) + sideways, stops.length)]);
    } else {
      const line = lines[within(lines.indexOf(from.closest("tr")) + upwards, lines.length)];
      moveTo(nearestStop(line, selector, column) ?? from);
      goal = column;
    }
    event.preventDefault();
  });
  const keepStop = () => {
    if (!current?.isConnected || current.closest("tr").hidden) {
      const first = shownLines(table).flatMap((line) => stopsOf(line, selector))[0];
      if (first) {
        setCurrent(first);
      }
    }
  };
  return { moveTo, keepStop };
}

function within(place, length) {
  return Math.min(Math.max(place, 0), length - 1);
}

function shownLines(table) {
  return [...table.querySelectorAll("tbody tr")].filter((line) => !line.hidden);
}

function stopsOf(line, selector) {
  return [...line.querySelectorAll(selector)];
}

/** The column of a stop. What is in the row header is before the first one. */
function columnOf(stop) {
  return { INPUT: -2, BUTTON: -1 }[stop.tagName] ?? stop.cellIndex;
}

/** The stop of a line that is nearest to a column; undefined if it has none. */
function nearestStop(line, selector, column) {
  const columns = new Map([...line.cells].map((cell, i) => [cell, i])); // `cellIndex` counts anew at each call
  const distance = (stop) => Math.abs((columns.get(stop) ?? columnOf(stop)) - column);
  return stopsOf(line, selector).reduce((best, stop) => (best && distance(best) <= distance(stop) ? best : stop), undefined);
}
