"""Which of the processes that train together this one is."""

import os


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
