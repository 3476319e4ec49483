"""One of several processes, as ``torchrun`` starts them: carries out commands of ``protocl``.

``python -m tests.runner.together.ranks`` with a JSON list of ports and commands on standard input;
writes their exit codes. ``{rank}`` in a command is the number of the process. A command that begins
with ``killed`` ends the last process in the middle. Each meets at a port of its own: who is done
early would find the others of the command before at the same one.
"""

from __future__ import annotations

import json
import os
import sys

import torch.distributed as dist

from protocl.cli import follower
from protocl.cli.main import main
from protocl.runner.together.feature_run import SharedFeatureRun

LAST = int(os.environ["WORLD_SIZE"]) - 1


def end(run: SharedFeatureRun, t: int) -> None:
    """Learn the first two experiences; then the last process is gone."""
    if t == 2 and int(os.environ["RANK"]) == LAST:
        os._exit(9)
    learn(run, t)


follower._HEAD_START = 0.0  # nobody ends the others here
codes = []
learn = SharedFeatureRun._learn
for port, command in json.load(sys.stdin):
    os.environ["MASTER_PORT"] = str(port)
    if command[0] == "killed":
        SharedFeatureRun._learn = end
    codes.append(main([word.replace("{rank}", os.environ["RANK"]) for word in command[1:]]))
    if dist.is_initialized():  # a process ends after a failure, and this one does not
        dist.destroy_process_group()
if os.environ["RANK"] == "0":
    sys.stdout.write(f"\nCODES {json.dumps(codes)}\n")
