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


def main() -> int:
    """Run tests, then measurements; 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description="Check and measure protocl on a device.")
    parser.add_argument("--output", type=Path, default=Path("build/cuda"), metavar="FOLDER")
    parser.add_argument(
        "--size", choices=("full", "small"), default=None, help="default: small on a CPU"
    )
    parser.add_argument("--skip-bench", action="store_true", help="the tests alone")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.output.mkdir(parents=True, exist_ok=True)
    report = args.output.resolve()
    size = args.size or ("full" if device == "cuda" else "small")
    tests = [sys.executable, "-m", "pytest", str(_HERE), "-p", "no:cacheprovider",
             "-o", "addopts=-q", f"--junitxml={report / 'tests.xml'}"]  # fmt: skip
    bench = [sys.executable, "-m", "protocl", "bench", "accelerator", "steps", "--device", device,
             "--size", size, "--output", str(report / "bench.json")]  # fmt: skip
    steps = {"tests": tests} | ({} if args.skip_bench else {"bench": bench})
    codes = {name: _run(command, report / f"{name}.txt") for name, command in steps.items()}
    summary = {"device": _named(device), "torch": torch.__version__, "python": sys.version, **codes}
    (report / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _say(f"on {summary['device']}: {codes}; results in {report}")
    return max(code for code, _ in codes.values())


def _run(command: list[str], log: Path) -> tuple[int, float]:
    """Exit code and seconds; what is said goes to a file and to the terminal's end."""
    start = time.monotonic()
    environment = {**os.environ, "PROTOCL_TEST_DEVICE": "cpu"}  # where there is no CUDA device
    with log.open("wb") as output:
        code = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    _say("\n".join(log.read_text(errors="replace").splitlines()[-30:]))
    return code, round(time.monotonic() - start, 1)


def _named(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
