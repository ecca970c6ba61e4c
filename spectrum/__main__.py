"""Starts the command, for `spectrum` and for `python -m spectrum`.

The start has two duties before the command is imported, so this module imports next to nothing:

- `python -m` puts the working directory first on the search path. Models and their code are downloaded there, so a
  `tqdm.py` in it must not be run. The directory is removed from the path.
- The imports take a moment. An interrupt during them must look like an interrupt after them: one line, no traceback.
"""

import os  # like `sys`, imported by Python itself before the working directory is on the path
import sys


def command() -> None:
    """Run the command as a process of its own, and end it."""
    import signal

    # The command replaces both handlers later. A shell starts the background jobs of a script with SIGINT ignored: such
    # a process keeps ignoring it.
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    from spectrum.cli import entry

    entry.command()


def _end(number: int, frame: object) -> None:
    """End the process at once. An import could swallow an exception, and there is nothing to clean up yet."""
    try:
        if os.environ.get("RANK", "0") == "0":  # one line for all processes of a run
            os.write(2, b"spectrum: interrupted\n")
    finally:  # even if stderr is closed
        os._exit(128 + number)  # as shells report it


def _remove_working_directory() -> None:
    """Remove the working directory from the search path if Python put it there."""
    if getattr(sys.flags, "safe_path", sys.flags.isolated):  # Python 3.10 has only the latter
        return  # Python did not put it there: the first entry is the user's
    try:
        here = os.getcwd()
    except OSError:  # the directory no longer exists, so Python did not put it there
        return
    if sys.path and sys.path[0] in ("", here):
        del sys.path[0]


if __name__ == "__main__":
    _remove_working_directory()
    command()
