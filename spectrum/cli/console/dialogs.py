"""What does the command ask on a terminal? Two prompt_toolkit dialogs that return plain values."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from prompt_toolkit.application import Application
from prompt_toolkit.application.current import create_app_session, get_app
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.key_binding.bindings.focus import focus_next, focus_previous
from prompt_toolkit.key_binding.defaults import load_key_bindings
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout
from prompt_toolkit.layout.dimension import D
from prompt_toolkit.layout.processors import AfterInput, ConditionalProcessor
from prompt_toolkit.output import create_output
from prompt_toolkit.widgets import Button, CheckboxList, Dialog, Label, TextArea

from spectrum.compute.batches import parse_batch_size
from spectrum.errors import Cancelled
from spectrum.text import plural, shortened, wrapped

_NOTHING_DONE = "nothing was scanned, nothing was written"

# What a dialog takes beside its text: frame, padding and shadow; and beside the label of a checkbox, that and more.
_FRAME_COLUMNS = 5
_BOX_COLUMNS = 6 + _FRAME_COLUMNS  # the box, a space, the scroll bar

# Words in the path of a layer type that belongs to an MLP or to attention, as transformers calls them.
_MLP = re.compile(r"mlp|feed_?forward|ffn|moe|expert|\bfc\d", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)

_Answer = TypeVar("_Answer")


def ask_batch_size() -> int | None:
    """Ask how many same-shape matrices to decompose together; None for `auto`.

    Raises Cancelled if the user cancels, KeyboardInterrupt for Ctrl-C and SIGINT.
    """
    suggestion = AfterInput("auto", style="class:placeholder fg:ansibrightblack")
    field = TextArea(
        multiline=False,
        input_processors=[ConditionalProcessor(suggestion, Condition(lambda: not field.text))],
    )
    text = (
        "Matrices of the same shape to decompose together: a number, or auto.\n"
        "Enter accepts (an empty field is auto), Esc cancels."
    )
    return _ask("Batch size", text, field, lambda: parse_batch_size(field.text.strip() or "auto"))


def ask_layer_types(layers: Sequence[tuple[str, int]]) -> list[str]:
    """Ask which layer types to scan; all are checked at first. At least one is returned.

    Raises Cancelled if the user cancels, KeyboardInterrupt for Ctrl-C and SIGINT.

    Args:
        layers: each layer type and its number of layers, in display order.
    """
    names = [name for name, _ in layers]
    counts = [plural(count, "layer") for _, count in layers]
    shown = shortened(names, _columns() - _BOX_COLUMNS - 2 - max(map(len, counts)))
    width = max(map(len, shown))
    labels = [f"{name:<{width}}  {count} " for name, count in zip(shown, counts, strict=True)]
    boxes = CheckboxList(list(zip(names, labels, strict=True)), names)
    groups = {"a": names, "n": []}
    choices = "a checks all, n none"
    if blocks := mlp_and_attention(names):
        groups["m"] = blocks
        choices += ", m only MLP and attention"
    text = f"Layer types to scan. Space toggles one; {choices}. Enter accepts, Esc cancels."

    def answer() -> list[str]:
        if not boxes.current_values:
            raise ValueError("nothing is checked; check at least one layer type")
        return [name for name in names if name in boxes.current_values]

    keys = KeyBindings()
    for key, group in groups.items():

        @keys.add(key, filter=has_focus(boxes), eager=True)
        def _(event: KeyPressEvent, group: Sequence[str] = group) -> None:
            boxes.current_values = list(group)

    return _ask("Layer types", text, boxes, answer, keys)


def mlp_and_attention(layer_types: Sequence[str]) -> list[str]:
    """The layer types of MLPs, experts among them, and of attention, by their paths; norms are none of them.

    Empty if the model has only one of both, or nothing else: it is no choice then.
    """
    matrices = [name for name in layer_types if "norm" not in name.lower()]
    mlp, attention = ([name for name in matrices if words.search(name)] for words in (_MLP, _ATTENTION))
    found = [name for name in layer_types if name in {*mlp, *attention}]
    return found if mlp and attention and len(found) < len(layer_types) else []


def _ask(
    title: str,
    text: str,
    body: TextArea | CheckboxList[str],
    answer: Callable[[], _Answer],
    keys: KeyBindings | None = None,
) -> _Answer:
    """Show a dialog and return its answer. Raises Cancelled, and KeyboardInterrupt.

    Args:
        title: what the frame says.
        text: what stands above the body.
        body: where the user answers.
        answer: the answer. It raises ValueError, and the dialog stays open, if the body holds none.
        keys: what more keys do.
    """
    is_refused = False

    def problem() -> str:
        """Why the answer was refused, for as long as it would be."""
        try:
            answer()
        except ValueError as error:
            return shortened([f"{error}"], _columns() - _FRAME_COLUMNS)[0] if is_refused else ""
        return ""

    def accept() -> None:
        nonlocal is_refused
        is_refused = True
        if not problem():
            get_app().exit(result=(answer(),))

    def cancel() -> None:
        get_app().exit(result=Cancelled(f"cancelled; {_NOTHING_DONE}"))

    bindings = KeyBindings()
    bindings.add("tab")(focus_next)
    bindings.add("s-tab")(focus_previous)
    bindings.add("enter", filter=has_focus(body), eager=True)(lambda event: accept())
    bindings.add("escape", eager=True)(lambda event: cancel())

    @bindings.add("c-c")
    @bindings.add("<sigint>")  # sent by another process; Ctrl-C arrives as a key
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result=KeyboardInterrupt(_NOTHING_DONE))

    dialog = Dialog(
        HSplit(
            [
                Label(wrapped(text, _columns() - _FRAME_COLUMNS), dont_extend_height=True),
                body,
                ConditionalContainer(
                    Label(problem, style="class:validation-toolbar", dont_extend_height=True),
                    Condition(lambda: bool(problem())),
                ),
            ],
            padding=D(preferred=1, max=1),
        ),
        title=title,
        buttons=[Button("Accept", accept), Button("Cancel", cancel)],
        with_background=True,
    )
    # Drawn on stderr, so that stdout, which holds the results, can be redirected meanwhile.
    with create_app_session(output=create_output(stdout=sys.stderr)):
        return _run(
            Application(
                layout=Layout(dialog),
                key_bindings=merge_key_bindings([load_key_bindings(), bindings, keys or KeyBindings()]),
                mouse_support=True,
                full_screen=True,
            )
        )


def _columns() -> int:
    """The width of the terminal on which dialogs are drawn."""
    return create_output(stdout=sys.stderr).get_size().columns


def _run(dialog: Application[tuple[_Answer] | BaseException]) -> _Answer:
    """Run a dialog, and return its answer or raise its error."""
    with _closed_by_sigterm(dialog) as received:
        result = dialog.run(pre_run=lambda: _close(dialog) if received else None)
    if isinstance(result, BaseException):
        raise result
    return result[0]


@contextmanager
def _closed_by_sigterm(dialog: Application[Any]) -> Iterator[list[int]]:
    """Make SIGTERM close a dialog first, and then do what it did before. Yields the signals received so far.

    If SIGTERM raised its exception inside the dialog, the terminal could be left without echo.
    """
    received: list[int] = []

    def close(number: int, frame: object) -> None:
        received.append(number)
        if dialog.loop is not None:
            dialog.loop.call_soon_threadsafe(_close, dialog)

    before = signal.signal(signal.SIGTERM, close)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
        if received:
            signal.raise_signal(signal.SIGTERM)


def _close(dialog: Application[Any]) -> None:
    if dialog.is_running and not dialog.is_done:
        dialog.exit(result=Cancelled(f"cancelled; {_NOTHING_DONE}"))
