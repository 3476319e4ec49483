"""A kind of run whose process dies at the first try, and by its seed at every one."""

from __future__ import annotations

import os
import signal
from typing import Any

from protocl.config.arguments import Settings
from protocl.config.compose import build
from protocl.config.schema import RunConfig
from protocl.registry import BACKBONES, BENCHMARKS
from protocl.runner.context import RunContext
from protocl.runner.kind import Kind

HEALTHY, HOPELESS = 0, 9


class Mortal(Kind[RunConfig]):
    """Leaves a mark in its folder before it dies, and goes on where it finds one."""

    name = "mortal"

    def compose(self, settings: Settings) -> RunConfig:
        groups = {"benchmark": BENCHMARKS, "backbone": BACKBONES}
        return build(RunConfig, settings, groups, {"benchmark": "digits", "backbone": "identity"})

    def execute(self, run: RunContext[RunConfig]) -> dict[str, Any]:
        mark = run.folder / "mark.ckpt"
        if run.config.seed == HOPELESS or (run.config.seed != HEALTHY and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"was": "resumed" if mark.exists() else "whole"}
