"""The mode that compares a trained model with its base, and with what was to train."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spectrum.checkpoint.remote.model_names import ModelName
from spectrum.cli import report
from spectrum.cli.console.options import ModelOptions, VerifyOptions
from spectrum.cli.console.terminal import byte_bar
from spectrum.cli.outcome import ModeOutcome
from spectrum.cli.select import selection_of
from spectrum.scanning.job import lead
from spectrum.scanning.request import ScanCallbacks
from spectrum.selection.selection import Selection


def verify(
    model: ModelOptions, options: VerifyOptions, callbacks: ScanCallbacks, *, quiet: bool, columns: int | None
) -> ModeOutcome:
    """Compare a trained model with its base. It is a problem if what moved is not what was to move.

    The last three arguments are those of `select.select`.
    """
    from spectrum.verification import verification
    from spectrum.verification.opening import check_files
    from spectrum.verification.verify import verify as run

    base = ModelName(model.model_name, model.revision)
    listed: Selection | Path | None = options.list
    if listed is None:
        with lead():  # the other processes help to scan, and learn of any error
            # A scan takes long. What is wrong with the trained model is found before it.
            check_files(base, options.verify, trust_remote_code=model.trust_remote_code, warn=callbacks.warn)
            listed = selection_of(model, options.select, callbacks)
    callbacks.wait(f"opening {model.model_name} and {options.verify.name}")
    found = run(
        base,
        options.verify,
        listed,
        model_class=model.model_class,
        trust_remote_code=model.trust_remote_code,
        progress=partial(byte_bar, quiet=quiet),
        warn=callbacks.warn,
    )
    text = "" if quiet else verification.described(found, columns)
    return ModeOutcome(text, report.failure(options.verify.name, found.problems, quiet=quiet))
