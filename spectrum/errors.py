"""What can go wrong for a user. Each message is one line: what was found, where, what to do.

SpectrumError
├── CheckpointError     a model directory, its config, a shard, an index, a weight
│   └── HubError        a repository that cannot be found, entered or reached
├── LayerTypeError      a layer type that the model does not have
├── SelectionError      a selection that cannot be made, or does not fit a model
├── ResultsError        a cached scan that cannot be read; a file that cannot be written
├── DeviceError         a device that this machine does not have, or that cannot do the work
├── ProcessError        processes of one run that lost each other
│   └── UnmetError      or never met
└── Cancelled           the user closed a dialog
"""

from spectrum.text import in_line


class SpectrumError(Exception):
    """The job cannot be done; the message says why in one line, whatever the names in it hold."""

    def __init__(self, message: str) -> None:
        super().__init__(in_line(message))


class CheckpointError(SpectrumError):
    """A checkpoint is missing, damaged or of a kind that is not read."""


class HubError(CheckpointError):
    """The Hugging Face Hub does not hand out a checkpoint."""


class LayerTypeError(SpectrumError):
    """A requested layer type does not exist."""


class SelectionError(SpectrumError):
    """A selection cannot be made as wanted, or names what a model does not have."""


class ResultsError(SpectrumError):
    """A results file is malformed, or cannot be written."""


class DeviceError(SpectrumError):
    """A requested device does not exist here."""


class ProcessError(SpectrumError):
    """The processes that scan together cannot reach each other, or one has ended."""


class UnmetError(ProcessError):
    """The processes that are to scan together have not met."""


class Cancelled(SpectrumError):  # noqa: N818 - a choice of the user's, not a fault
    """A dialog was cancelled: nothing is scanned, nothing is written."""


def first_line(error: BaseException) -> str:
    """What an exception of a library's says, in a line: its first, and the second where that only leads to it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return next(iter(lines), type(error).__name__)
