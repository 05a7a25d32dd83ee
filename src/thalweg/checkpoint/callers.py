"""Where the user's call stands, for warnings that arise far below it."""

import inspect
import os
from pathlib import Path

_OWN = str(Path(__file__).parents[1]) + os.sep


def level_of_caller() -> int:
    """The `stacklevel` by which a warning shows the line that called this package.

    Python 3.12 has `skip_file_prefixes` for this.

    Example:
        >>> level_of_caller()  # the next frame up is no longer of the package
        1
    """
    own = inspect.currentframe()
    frame, level = own.f_back if own else None, 1
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame, level = frame.f_back, level + 1
    return level
