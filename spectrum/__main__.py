"""`python -m spectrum`.

Python has put the working directory first among the places that modules come from. That is where models and their
code are downloaded to, so it goes before anything is imported: a `tqdm.py` there is not ours to run.
"""

import os  # as Python itself has before it looks there, like `sys`
import sys


def _without_working_directory() -> None:
    if getattr(sys.flags, "safe_path", sys.flags.isolated):  # Python 3.10 has the second alone
        return  # it is not there, and what is first is the user's own
    try:
        here = os.getcwd()
    except OSError:  # it is gone, and Python has put nothing
        return
    if sys.path and sys.path[0] in ("", here):
        del sys.path[0]


_without_working_directory()

from spectrum.cli.entry import command  # noqa: E402

command()
