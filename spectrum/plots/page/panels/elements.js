"use strict";

// Elements of the page and text in them. Text is only ever set as text, so that no name can become markup.

/** A new element. attributes: true for one without a value, null or false to leave it out. children: elements or text. */
function build(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) {
      element.setAttribute(key, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A section with a heading, as every panel is. id: of the section; its heading has the id `ID-title`. */
function buildPanel(id, title, ...children) {
  const heading = build("h2", { id: `${id}-title` }, title);
  return build("section", { id, class: "panel", "aria-labelledby": `${id}-title` }, heading, ...children);
}

/** Set an element's text, if it is another: what is unchanged is neither laid out nor read aloud again. */
function setText(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/** Text of at most so many characters: the middle of a longer one is left out, since names differ at their ends. */
function cutInMiddle(text, length) {
  const characters = text.length > length ? [...text] : [];
  if (characters.length <= length) {
    return text;
  }
  const kept = length - 1;
  return `${characters.slice(0, Math.ceil(kept / 2)).join("")}…${characters.slice(-Math.floor(kept / 2)).join("")}`;
}

const COMMAS = new Intl.NumberFormat("en-US"); // made once, since that takes long

/** A whole number with commas: 12,345. */
function withCommas(number) {
  return COMMAS.format(number);
}

/** "1 layer", "2 layers". */
function plural(number, one, many) {
  return `${withCommas(number)} ${number === 1 ? one : many}`;
}
