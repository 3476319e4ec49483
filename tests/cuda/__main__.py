"""``python -m tests.cuda``: all checks and measurements of a device, into one folder.

Needs no network: from the root of a checkout that is installed (``pip install -e .``), with pytest.
Without a CUDA device it takes the CPU, by the same code path.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

_HERE = Path(__file__).parent
OVERRUN = 124
"""Exit code of a step that took too long, as that of ``timeout``."""


def main() -> int:
    """Run tests, then measurements; 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description="Check and measure protocl on a device.")
    parser.add_argument("--output", type=Path, default=Path("build/cuda"), metavar="FOLDER")
    parser.add_argument(
        "--size", choices=("full", "small"), default=None, help="default: small on a CPU"
    )
    parser.add_argument("--skip-bench", action="store_true", help="the tests alone")
    parser.add_argument(
        "--minutes", type=float, default=None,
        help="for all of it, then what runs is ended (default: 8; on a CPU as long as it takes)",
    )  # fmt: skip
    args = parser.parse_args()
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes {args.minutes}: expected more than 0")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.output.mkdir(parents=True, exist_ok=True)
    report = args.output.resolve()
    size = args.size or ("full" if device == "cuda" else "small")
    tests = [sys.executable, "-m", "pytest", str(_HERE), "-p", "no:cacheprovider",
             "-o", "addopts=-v", f"--junitxml={report / 'tests.xml'}"]  # fmt: skip
    bench = [sys.executable, "-m", "protocl", "bench", "accelerator", "steps", "--device", device,
             "--size", size, "--output", str(report / "bench.json")]  # fmt: skip
    steps = {"tests": tests} | ({} if args.skip_bench else {"bench": bench})
    minutes = args.minutes if args.minutes is not None else 8 if device == "cuda" else None
    end = None if minutes is None else time.monotonic() + 60 * minutes
    codes: dict[str, tuple[int, float]] = {}
    about = {"device": _named(device), "torch": torch.__version__, "python": sys.version}
    for name, command in steps.items():
        codes[name] = run(command, report / f"{name}.txt", end)
        # After each: whoever lent the device may take it back at any time.
        (report / "summary.json").write_text(json.dumps(about | codes, indent=1) + "\n")
    _say(f"on {about['device']}: {codes}; results in {report}")
    return max(code for code, _ in codes.values())


def run(command: list[str], log: Path, end: float | None) -> tuple[int, float]:
    """Exit code and seconds; what is said goes to a file and to the terminal's end.

    Args:
        command: is ended at ``end``.
        log: the file, which has all that was said until then.
        end: on the clock :func:`time.monotonic`; None for never.
    """
    start = time.monotonic()
    environment = {
        **os.environ, "PYTHONUNBUFFERED": "1",
        "PROTOCL_TEST_DEVICE": "cpu",  # where there is no CUDA device
    }  # fmt: skip
    left = None if end is None else max(1.0, end - start)
    with log.open("wb") as output:
        try:
            code = subprocess.call(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, timeout=left
            )
        except subprocess.TimeoutExpired:
            code = OVERRUN
    code = code if code >= 0 else 128 - code  # a signal, as a shell has it: no step ended well
    _say("\n".join(log.read_text(errors="replace").splitlines()[-30:]))
    return code, round(time.monotonic() - start, 1)


def _named(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
