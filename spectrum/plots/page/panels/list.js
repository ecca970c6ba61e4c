"use strict";

// The list to copy: the text that the command writes for what is shown, and the command that writes it.

const SHOWN_LINES = 1000; // lines of a list that the page shows; the clipboard, the file and the print have all
const MANY_LAYERS = 5000; // a list of a larger scan, or one that is out of sight, is written when the slider rests
const REST = 200; // milliseconds

function createListPanel(page, change) {
  let [current, isVisible, isStale, timer] = [null, false, true, 0];
  const choice = createFormatChoice(page, change);
  const list = createListText(() => current); // what is copied is up to date, though the text shown may not be yet
  const command = createCommand(() => current);
  const element = buildPanel("list", "List to copy", choice.element, list.element, command.element);

  const draw = () => {
    if (isStale && current !== null) {
      isStale = false;
      choice.show(current);
      list.show(current);
      command.show(current);
    }
  };
  const show = (state, chosen) => {
    current = listToCopy(page, chosen, state);
    isStale = true;
    [list.said, command.said].forEach((said) => setText(said, "")); // which was about another list
    clearTimeout(timer);
    if (isVisible && chosen.scan.layers.name.length <= MANY_LAYERS) {
      draw();
    } else {
      timer = setTimeout(draw, REST);
    }
  };
  new IntersectionObserver(([entry]) => {
    isVisible = entry.isIntersecting;
    if (isVisible) {
      draw();
    }
  }).observe(element);
  addEventListener("beforeprint", () => {
    draw();
    list.showAll();
  });
  addEventListener("afterprint", () => list.show(current)); // its first lines again, since a long text is slow
  return { element, show };
}

/** What the panel shows. The list is written when somebody asks for it, and then only once. */
function listToCopy(page, chosen, state) {
  const problem = chosen.problem ?? state.paramsProblem;
  let list = null;
  return {
    format: page.formats.find((format) => format.name === state.format),
    file: listFile(page, chosen, state.format),
    command: commandLine(page, chosen, state),
    python: pythonLine(page, chosen, state),
    written: () => (list ??= problem ? { problem } : writtenList(page, chosen, state.format)),
  };
}

/** The choice of the format, and what is done with a list in this format. */
function createFormatChoice(page, change) {
  const select = build("select", { id: "list-format" });
  for (const [label, adapters] of [["Training of whole layers", false], ["Adapters on layers", true]]) {
    const formats = page.formats.filter((format) => format.adapters === adapters);
    const options = formats.map(({ name, readers }) =>
      build("option", { value: name }, `${name}: ${readers.join(", ")}`),
    );
    select.append(build("optgroup", { label }, ...options));
  }
  select.addEventListener("change", () => {
    const { top } = select.getBoundingClientRect();
    change({ format: select.value });
    // After the page is drawn: what is above, such as the plan, may be higher or lower now.
    const keepInPlace = () => scrollBy({ top: select.getBoundingClientRect().top - top, behavior: "instant" });
    requestAnimationFrame(keepInPlace);
  });
  const use = build("p", { class: "list-use muted" });
  const element = build(
    "div",
    {},
    build("p", { class: "list-choice" }, build("label", { for: "list-format" }, "Format"), select),
    use,
  );
  const show = ({ format, file }) => {
    select.value = format.name;
    setText(use, format.use.replaceAll("LIST", () => quotedFile(file)));
  };
  return { element, show };
}

/** The name of a file in Python's quotes. */
function quotedFile(file) {
  return file.includes("'") && !file.includes('"') ? `"${file}"` : `'${file.replaceAll("'", "\\'")}'`;
}

/** The text of the list, or why there is none; its file's name; buttons that copy and save it.
 *
 * latest: returns the list that is to be copied and saved.
 */
function createListText(latest) {
  const box = createTextBox("Text of the list", { class: "list-text" });
  const copy = createCopyButton("Copy the list", () => latest().written().text, box);
  copy.button.classList.add("main");
  const save = build("button", { class: "button", type: "button" }, "Save as a file");
  save.addEventListener("click", () => saveText(latest().written().text, latest().file));
  const [file, size] = [build("code", { class: "list-file" }), build("span", { class: "muted" })];
  const problem = build("p", { class: "problem" });
  const more = build("p", { class: "muted no-print" });
  const notes = build("ul", { class: "list-notes" });
  const element = build(
    "div",
    { class: "list-written" },
    build("p", { class: "list-about" }, file, size),
    build("p", { class: "list-buttons" }, copy.button, save, copy.said),
    box.element,
    more,
    problem,
    notes,
  );
  const show = (list) => {
    const { text, notes: noted = [], problem: refused } = list.written();
    const lines = text ? text.split("\n").length - 1 : 0;
    setText(file, list.file);
    setText(size, refused ? "is not written" : plural(lines, "line", "lines"));
    setText(problem, refused ?? "");
    copy.button.disabled = save.disabled = Boolean(refused);
    box.element.hidden = Boolean(refused);
    box.show(text ?? "", firstLines(text ?? "", SHOWN_LINES));
    setText(more, lines > SHOWN_LINES ? `${withCommas(lines - SHOWN_LINES)} more lines are copied and saved too.` : "");
    notes.replaceChildren(...(refused ? [] : noted).map((note) => build("li", {}, note)));
  };
  const showAll = () => {
    if (!latest().written().problem) {
      box.show(latest().written().text);
    }
  };
  return { element, show, showAll, said: copy.said };
}

function firstLines(text, count) {
  let end = 0;
  for (let line = 0; line < count; line++) {
    end = text.indexOf("\n", end) + 1;
    if (end === 0) {
      return text;
    }
  }
  return text.slice(0, end);
}

/** The command that writes the list; for a model in memory, the line of Python that selects the same. */
function createCommand(latest) {
  const lineOf = ({ command, python }) => command ?? python;
  const box = createTextBox("Command", { class: "command-text" });
  const copy = createCopyButton("Copy the command", () => lineOf(latest()), box);
  const title = build("h3", {});
  const element = build(
    "div",
    { class: "command" },
    title,
    box.element,
    build("p", { class: "list-buttons" }, copy.button, copy.said),
  );
  const show = (list) => {
    element.hidden = Boolean(list.written().problem);
    setText(title, list.command === null ? "The same selection in Python" : "The command that writes this list");
    setText(copy.button, list.command === null ? "Copy the line" : "Copy the command");
    box.show(lineOf(list));
  };
  return { element, show, said: copy.said };
}
