"""Which of the processes that train together this one is."""

from equipoise.core.torchrun import is_main_process

__all__ = ["is_main_process"]
