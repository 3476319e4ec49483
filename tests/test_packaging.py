"""What the package ships, what importing it costs, and which way its dependencies point."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "protocl",
    "strategies",
    "federation",
    "configs",
)
# Folder in the repository -> folder in the wheel.
ROOMS = {
    "protocl": "protocl",
    "strategies": "protocl/strategies",
    "federation": "protocl/federation",
    "configs": "protocl/configs",
}
# Each costs a fraction of a second up to several seconds to import.
HEAVY = (
    "avalanche",
    "flwr",
    "timm",
    "matplotlib",
    "torchvision",
    "sklearn",
    "tensorboard",
    "wandb",
)


def copy_sources(target: Path, *, links: bool = False) -> Path:
    """The files a build reads, apart from the work tree so that building leaves no trace in it."""
    target.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(source, target / name)
    for name in set(ROOMS) - {"protocl"} if links else ():
        (target / "protocl" / name).symlink_to(f"../{name}")
    return target


def left_out(folder: str, names: list[str]) -> list[str]:
    """Bytecode and the links of ``make setup``, of which a fresh clone has neither."""
    return [name for name in names if name == "__pycache__" or (Path(folder) / name).is_symlink()]


def build(source: Path, hook: str) -> Path:
    """Run a PEP 517 hook of setuptools in ``source``; the path of what it built."""
    script = f"from setuptools import build_meta; print(build_meta.{hook}('dist'))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return source / "dist" / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_sources(tmp_path_factory.mktemp("wheel") / "source"), "build_wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_sources(tmp_path_factory.mktemp("sdist") / "source"), "build_sdist")


def shipped(wheel: Path) -> set[str]:
    """Names in a wheel, its metadata folder left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_ships_every_module_and_config(wheel: Path) -> None:
    expected = {"protocl/py.typed"}
    for folder, target in ROOMS.items():
        for suffix in ("py", "yaml", "css", "j2", "bib", "js", "html"):
            expected |= {
                f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
                for path in (ROOT / folder).rglob(f"*.{suffix}")
            }
    assert any(name.startswith("protocl/configs/") and name.endswith(".yaml") for name in expected)
    assert shipped(wheel) == expected


def test_the_links_of_setup_change_nothing_in_a_build(wheel: Path, tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source", links=True)
    assert shipped(build(source, "build_wheel")) == shipped(wheel)


def test_python_started_above_a_checkout_imports_the_package(tmp_path: Path) -> None:
    (tmp_path / "protocl" / "tests").mkdir(parents=True)  # a folder of that name, without a package
    script = "import protocl.strategies as found; print(found.__name__)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "protocl.strategies", run.stderr


def test_wheel_has_the_command_and_the_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(name).decode()
    assert "protocl = protocl.cli.main:main" in text
    assert "[protocl.heads]" in text


def test_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert shipped(build(source, "build_wheel")) == shipped(wheel)


def declared_entry_points() -> list[EntryPoint]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    return [
        EntryPoint(name=name, value=value, group=group)
        for group, entries in groups.items()
        for name, value in entries.items()
    ]


@pytest.mark.parametrize("entry", declared_entry_points(), ids=lambda e: f"{e.group}:{e.name}")
def test_entry_point_loads(entry: EntryPoint) -> None:
    assert callable(entry.load())


@pytest.mark.parametrize(
    ("module", "needs_torch"),
    [
        ("protocl", False),
        ("protocl.cli.main", False),
        ("protocl.heads", True),
        ("protocl.config", False),
    ],
)
def test_import_loads_nothing_heavy(module: str, needs_torch: bool) -> None:
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout))
    assert "json" in loaded, "the list of modules does not look like one"
    assert ("torch" in loaded) is needs_torch
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("package", ["protocl.strategies", "protocl.federation"])
def test_every_public_name_is_found_when_it_is_asked_for(package: str) -> None:
    module = importlib.import_module(package)
    assert [getattr(module, name).__name__ for name in module.__all__] == module.__all__
    with pytest.raises(AttributeError, match="no attribute 'SLAD'"):
        module.SLAD  # noqa: B018


LIGHT = [
    ["--version"],
    ["--help"],
    *([name, "--help"] for name in ("run", "list", "compare", "doctor", "federate", "pretrain")),
    ["list"],
    ["lst"],
    ["run"],
    ["run", "slda"],
    ["run", "strategy=sdla"],
    ["run", "strategy=slda", "benchmark=digit"],
    ["run", "experiment=dmo"],
    ["run", "strategy=slda,sdla", "backbone=[1"],
]
"""Commands and mistakes that are answered without torch."""


def test_what_needs_no_torch_does_not_import_it() -> None:
    script = (
        "import sys\n"
        "from protocl.cli.main import main\n"
        f"for words in {LIGHT}:\n"
        "    try:\n"
        "        code = main(words)\n"
        "    except SystemExit as ended:\n"
        "        code = ended.code\n"
        "    heavy = {'torch', 'numpy', 'avalanche', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
        "    assert code == (2 if words[0] in ('lst', 'run') and '--help' not in words else 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "did you mean 'slda'?" in run.stderr
    assert "Hayes & Kanan" in run.stdout


def imported_modules(path: Path) -> set[str]:
    """Full names of everything that a file of the core imports, at its top or inside functions."""
    package = ("protocl", *path.relative_to(ROOT / "protocl").parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_core_imports_neither_strategies_nor_federation() -> None:
    files = sorted((ROOT / "protocl").rglob("*.py"))
    assert len(files) > 5
    outer = ("protocl.strategies", "protocl.federation", "strategies", "federation")
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported_modules(path)
        if any(name == room or name.startswith(f"{room}.") for room in outer)
    }
    assert not found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which pip is a script that says what PIP_SAYS, and ends with PIP_ENDS."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/bash\n[ "$2" != pip ] || { seq "$PIP_SAYS"; exit "$PIP_ENDS"; }\n')
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", ".ci"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for room in ROOMS:
        (tmp_path / room).mkdir()
    return tmp_path


def set_up(checkout: Path, ends: int) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PIP_SAYS": "578", "PIP_ENDS": str(ends)}
    return subprocess.run(
        ["make", "setup"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_setting_up_says_what_it_does_and_no_more(checkout: Path) -> None:
    run = set_up(checkout, ends=0)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 2
    assert "log: .venv/install.log" in run.stdout
    assert len((checkout / ".venv" / "install.log").read_text().splitlines()) == 578
    again = set_up(checkout, ends=1)
    assert again.returncode == 0
    assert "Installing" not in again.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_setting_up_shows_the_end_of_what_failed_and_where_the_rest_is(checkout: Path) -> None:
    run = set_up(checkout, ends=3)
    assert run.returncode != 0
    lines = run.stderr.splitlines()
    assert lines[:20] == [str(n) for n in range(559, 579)]
    assert lines[20] == "Failed; everything that was said is in .venv/install.log"
    assert not (checkout / ".venv" / ".installed").exists()
    assert set_up(checkout, ends=0).returncode == 0
