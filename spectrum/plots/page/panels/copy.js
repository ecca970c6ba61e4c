"use strict";

// How does text leave the page? Into the clipboard, or into a file: also in a notebook's frame or an old browser, where
// scripts may not use the clipboard.

/** Copy text exactly. Returns a promise of whether that worked. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text); // there is no clipboard, or the frame may not use it
  }
}

/** Copy text as the browser's own command "copy" does, which needs something selected. Returns whether that worked. */
function copyByCommand(text) {
  const [focused, source] = [document.activeElement, build("textarea", { class: "copy-source", readonly: true })];
  let handled = false;
  const handle = (event) => {
    handled = putText(event, text);
  };
  source.value = "text";
  document.body.append(source);
  source.focus({ preventScroll: true });
  source.select();
  document.addEventListener("copy", handle);
  try {
    return document.execCommand("copy") && handled;
  } catch {
    return false;
  } finally {
    document.removeEventListener("copy", handle);
    source.remove();
    focused?.focus({ preventScroll: true });
  }
}

/** Let an event of copying copy this text instead of what is selected. Returns whether the browser can do that. */
function putText(event, text) {
  if (!event.clipboardData) {
    return false;
  }
  event.clipboardData.setData("text/plain", text);
  event.preventDefault();
  return true;
}

/** Save text as a file, under a name that the browser may change. */
function saveText(text, fileName) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  const link = build("a", { href: address, download: fileName, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // some browsers read it a while after the click
}

/** A box of text that is scrolled, selected and copied by keyboard too: `{element, show(text, shown), select()}`.
 *
 * `show` takes the whole text, and what of it the box shows. If all that is shown is selected, the whole text is copied.
 */
function createTextBox(label, attributes = {}) {
  const element = build("pre", { tabindex: "0", role: "region", "aria-label": label, ...attributes });
  let whole = "";
  const isSelected = () => {
    const selected = getSelection();
    return element.firstChild !== null && selected.toString().trim() === element.textContent.trim();
  };
  const select = () => getSelection().selectAllChildren(element);
  element.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") {
      event.preventDefault(); // which would select the page
      select();
    }
  });
  element.addEventListener("copy", (event) => {
    if (isSelected()) {
      putText(event, whole);
    }
  });
  const show = (text, shown = text) => {
    whole = text;
    setText(element, shown);
  };
  return { element, show, select };
}

/** A button that copies what a function returns, and a line beside it that says what happened.
 *
 * box: shows the text; it is selected if the browser lets no script copy.
 * Returns {button, said}.
 */
function createCopyButton(label, textToCopy, box) {
  const said = build("span", { class: "copy-said muted", role: "status" });
  const button = build("button", { class: "button", type: "button" }, label);
  button.addEventListener("click", async () => {
    setText(said, ""); // so that the same words are read aloud again
    const text = textToCopy();
    if (await copyText(text)) {
      setText(said, "Copied");
      return;
    }
    box.show(text);
    box.select();
    box.element.focus();
    setText(said, "This browser does not let the page copy. The text is selected: press Ctrl+C (on a Mac, ⌘C).");
  });
  return { button, said };
}
