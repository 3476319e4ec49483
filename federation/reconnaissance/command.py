"""The command ``protocl reconnaissance``."""

from __future__ import annotations

import argparse

from protocl.cli.arguments import Commands, add_settings_command
from protocl.lazy import first_imports

_HELP = """\
Federated reconnaissance: clients learn classes on missions, merge, and are asked about all.

Settings are KEY=VALUE. reconnaissance=NAME reads a preset; three groups pick parts:
  benchmark=NAME  backbone=NAME  method=prototypes|fedavg|exemplars|finetune|joint
Who sees what when:  scenario.clients=5 scenario.schedule=disjoint|overlapping|handover|random
                     scenario.classes_per_mission=5 scenario.samples_per_class=30
Who meets whom:      scenario.merge=star|gossip scenario.every=1
The very same again: scenario.file=RUN/scenario.json
What is learned:     method.head=lda  benchmark.base_classes=50  unknown=true
Other keys:          seed=1,2,3  name=NAME  output=runs  jobs=2  resume=true
A comma makes a sweep; curves over its seeds are drawn where there are several.
"""

_EXAMPLES = """\
examples:
  protocl reconnaissance reconnaissance=digits
  protocl reconnaissance reconnaissance=digits method=prototypes,fedavg,joint seed=1,2,3
  protocl reconnaissance reconnaissance=digits scenario.merge=gossip
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    add_settings_command(
        commands,
        common,
        "reconnaissance",
        run,
        summary="evaluate methods of federated class-incremental learning in one scenario",
        description=_HELP,
        examples=_EXAMPLES,
    )


def run(args: argparse.Namespace) -> int:
    """Run what ``args.settings`` ask for; the exit code."""
    with first_imports():
        from protocl.cli.sweep import run_command
        from protocl.federation.reconnaissance.run import RECONNAISSANCE

    return run_command(RECONNAISSANCE, args)
