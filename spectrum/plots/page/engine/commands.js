"use strict";

// What to type for the list that is shown: in a shell, and in Python.

/** Python's shlex.join: words as a POSIX shell takes them. */
const shellWords = (words) =>
  words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`))
    .join(" ");

/** The command that writes this list; null if no command can scan the model. */
function commandLine(page, chosen, state) {
  if (page.command === null) return null;
  const words = [...page.command];
  // First, since it takes all words up to the next option.
  if (state.off.size > 0) words.push("--layer-types", ...wordsOfTypes(page.scans[0], state));
  if (state.topParams === null) words.push("--top-percent", chosen.percent);
  else words.push("--top-params", parsePercent(state.topParams));
  if (page.order !== "highest") words.push("--order", page.order);
  if (!chosen.embeddings) words.push("--no-embeddings");
  if (state.format !== "axolotl") words.push("--format", state.format);
  return shellWords(words);
}

/** The words that choose the rows that are switched on. */
const wordsOfTypes = (scan, state) => scan.rows.filter((_, row) => !state.off.has(row)).flatMap(({ words }) => words);

/** The line of Python that selects the same layers of `result`, what `spectrum.scan` has returned. */
function pythonLine(page, chosen, state) {
  const types = chosen.scan.types.filter((_, type) => chosen.isOn[type]).map(({ name }) => jsonText(name));
  const percent = state.topParams === null ? chosen.percent : parsePercent(state.topParams);
  // As a number where that says the same: Python has no 007, and floats have few digits.
  const value = /^(0|[1-9]\d*)(\.\d+)?$/.test(percent) && percent.length < 16 ? percent : jsonText(percent);
  const words = [
    state.off.size === 0 ? "result" : `result.only([${types.join(", ")}])`,
    `${state.topParams === null ? "top_percent" : "top_params"}=${value}`,
    ...(chosen.embeddings ? [] : ["embeddings=False"]),
    ...(page.order === "highest" ? [] : [`order=${jsonText(page.order)}`]),
  ];
  return `selection = spectrum.select(${words.join(", ")})`;
}
