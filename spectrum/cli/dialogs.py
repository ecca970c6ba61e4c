"""What does the command ask on a terminal? Two prompt_toolkit dialogs that return plain values."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from prompt_toolkit.application import Application
from prompt_toolkit.application.current import create_app_session, get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import checkboxlist_dialog, input_dialog
from prompt_toolkit.validation import Validator

from spectrum.compute.batches import parse_batch_size
from spectrum.errors import Cancelled, LayerTypeError
from spectrum.text import plural

_Answer = TypeVar("_Answer")


def ask_batch_size() -> int | None:
    """Ask how many same-shape matrices to decompose together; None for `auto`. Raises Cancelled."""
    text = "Same-shape matrices to decompose together: a number or auto."
    default = "auto"
    while True:
        with _on_stderr():
            dialog = input_dialog(
                title="Batch size",
                text=f"{text}\nEnter to accept, Tab to reach the buttons, Esc to cancel.",
                default=default,
                validator=Validator.from_callable(
                    _is_batch_size, error_message="a whole number from 1 up, or auto", move_cursor_to_end=True
                ),
            )
            if field := dialog.layout.current_buffer:
                field.cursor_position = len(default)
                field.accept_handler = _accept  # otherwise Enter moves to the button and has to be pressed again
            answer = _run(dialog).strip()
        try:
            return parse_batch_size(answer)
        except ValueError as error:  # the button does not run the validator, only Enter in the field does
            text, default = str(error).capitalize(), answer


def ask_layer_types(layers: Sequence[tuple[str, int]]) -> list[str]:
    """Ask which layer types to scan; all are checked at first.

    Raises Cancelled, and LayerTypeError if no type is checked.

    Args:
        layers: each layer type and its number of layers, in display order.
    """
    width = max(len(name) for name, _ in layers)
    with _on_stderr():
        chosen = _run(
            checkboxlist_dialog(
                title="Layer types",
                text="Layer types to scan. Enter or Space toggles one, Tab reaches the buttons, Esc cancels.",
                values=[(name, f"{name:<{width}}  {plural(count, 'layer')}") for name, count in layers],
                default_values=[name for name, _ in layers],
            )
        )
    if not chosen:
        raise LayerTypeError("no layer type was left checked; nothing was scanned, nothing was written")
    return chosen


def _is_batch_size(text: str) -> bool:
    try:
        parse_batch_size(text.strip())
    except ValueError:
        return False
    return True


def _accept(field: Buffer) -> bool:
    get_app().exit(result=field.text)
    return True  # keeps the text


def _on_stderr() -> Any:
    """Draw dialogs on stderr, so that stdout, which holds the results, can be redirected meanwhile."""
    return create_app_session(output=create_output(stdout=sys.stderr))


def _run(dialog: Application[_Answer | None]) -> _Answer:
    """Show a dialog and return its answer. Esc, Ctrl-C and SIGINT cancel it. Raises Cancelled."""
    keys = KeyBindings()

    @keys.add("escape", eager=True)
    @keys.add("c-c")
    @keys.add("<sigint>")  # sent by another process; Ctrl-C arrives as a key
    def _(event: KeyPressEvent) -> None:
        _close(event.app)

    dialog.key_bindings = merge_key_bindings([dialog.key_bindings or KeyBindings(), keys])
    with _closed_by_sigterm(dialog) as received:
        answer: _Answer | None = dialog.run(pre_run=lambda: _close(dialog) if received else None)
    if answer is None:
        raise Cancelled("cancelled; nothing was scanned, nothing was written")
    return answer


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
        dialog.exit(result=None)
