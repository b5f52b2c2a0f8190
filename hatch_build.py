"""Builds wheels with kernels compiled ahead of time: `EQUIPOISE_PREBUILT=1 python -m build --wheel`.

Without the variable a wheel is pure Python, and the kernels are compiled on first use.
"""

import os
import runpy
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = Path("equipoise", "kernels", "native")


class Kernels(BuildHookInterface):
    """Adds the compiled kernels to a wheel, which is then one for this system."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile them if the variable asks for it."""
        if os.environ.get("EQUIPOISE_PREBUILT") != "1":
            return
        self.folder = tempfile.TemporaryDirectory()
        compiling = runpy.run_path(str(Path(self.root, "src", _NATIVE, "compiling.py")))
        for path in compiling["compile_ahead"](os.environ.get("CC") or "cc", Path(self.folder.name)):
            build_data["force_include"][str(path)] = str(_NATIVE / "prebuilt" / path.name)
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{system}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the compiled files."""
        if hasattr(self, "folder"):
            self.folder.cleanup()
