"""Run a command and say what it took: ``python launcher.py LOG COMMAND ...``, as a small process.

A system that counts the largest resident set of a process begins with that of the one it was
started by. Whoever measures has imported much; this imports nothing.
"""

import json
import os
import subprocess
import sys
import time


def main(log: str, *command: str) -> None:
    """Print exit code, seconds, processor seconds and the largest resident set, as JSON."""
    with open(log, "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    taken = [process.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss]
    sys.stdout.write(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
