"""The command ``protocl``: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from protocl import __version__
from protocl.cli.doctor import packages
from protocl.cli.list import KINDS
from protocl.cli.main import _LISTS, main
from protocl.io import provenance
from protocl.registry import COMMANDS
from tests import third_party


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    third_party.install(folder)
    return folder


@pytest.fixture(autouse=True)
def _workplace(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def results() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(Path("runs").rglob("result.json"))]


@pytest.mark.parametrize("command", [[], ["run"], ["list"], ["compare"], ["doctor"], ["bench"]])
def test_help_is_there_and_ends_well(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: protocl" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["run"], ["walk"], ["list", "everything"]])
def test_wrong_arguments_end_with_2(arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["run", "federate", "pretrain", "reconnaissance"])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=../elsewhere", "expected a folder name below output"),
        ("name=/elsewhere", "expected a folder name below output"),
        ("seed=-1", "seed=-1: expected 0 <= seed < 2**32"),
    ],
)
def test_a_run_of_any_kind_has_a_seed_and_a_folder_below_output(
    command: str, word: str, message: str, capsys: pytest.CaptureFixture[str]
):
    strategy = ["strategy=slda"] if command == "run" else []
    assert main([command, *strategy, word]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"protocl {__version__}\n"


def test_a_users_error_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "strategy=acme_replay", "strategy.mem_sise=3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "protocl: unknown key strategy.mem_sise: did you mean strategy.mem_size?\n"
    )
    with pytest.raises(Exception, match="mem_sise"):
        main(["run", "strategy=acme_replay", "strategy.mem_sise=3", "--debug"])


def test_absent_data_ends_with_3_and_leaves_no_folder(capsys: pytest.CaptureFixture[str]):
    arguments = ["strategy=acme_replay", "benchmark=npz", "benchmark.path=nowhere.npz"]
    assert main(["run", *arguments]) == 3
    assert "nowhere.npz" in capsys.readouterr().err
    assert not list(Path("runs").rglob("config.yaml"))


def test_show_prints_every_key_and_runs_nothing(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "strategy=acme_replay", "seed=1,2", "--show"]) == 0
    shown = capsys.readouterr().out.split("---\n")
    assert len(shown) == 2
    assert "mem_size: 60" in shown[0]
    assert "seed: 2" in shown[1]
    assert not Path("runs").exists()


def test_a_run_prints_a_table_and_is_not_repeated(capsys: pytest.CaptureFixture[str]):
    arguments = ["run", "strategy=acme_replay", "strategy.train_epochs=1", "resume=true"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "Acme Replay" in captured.out
    assert "done" in captured.err
    (result,) = results()
    assert result["status"] == "complete"
    assert main(arguments) == 0
    assert "finished before" in capsys.readouterr().err
    assert results() == [result]


def test_a_sweep_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]):
    arguments = ["strategy.fail_in_experience=1,null,0", "strategy.train_epochs=1"]
    assert main(["run", "strategy=acme_replay", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("failed") == 2
    assert "strategy.fail_in_experience=1: ZeroDivisionError: the bomb went off" in captured.err
    assert "Traceback" not in captured.err
    assert sorted(result["status"] for result in results()) == ["complete", "running"]
    (_, log) = sorted(Path("runs").rglob("log.txt"))
    assert "Traceback" in log.read_text()


def test_processes_side_by_side_give_the_numbers_of_one(capsys: pytest.CaptureFixture[str]):
    sweep = ["run", "strategy=acme_replay", "strategy.train_epochs=1", "seed=1,2"]
    assert main([*sweep, "strategy.fail_in_experience=null,2", "jobs=2", "name=many"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("ZeroDivisionError: the bomb went off (see ") == 2
    assert "wrote runs/many/report.html" in captured.out
    many = {r["seed"]: r["metrics"] for r in results() if r["status"] == "complete"}
    code = "import sys; from protocl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    quiet = subprocess.run(
        [sys.executable, "-c", code, *sweep, "name=one"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert quiet.returncode == 0, quiet.stderr
    one = {r["seed"]: r["metrics"] for r in results() if r["name"] == "one"}
    assert one == many
    assert "warning" not in quiet.stderr.lower()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("strategies", ["acme_replay", "Acme 2026", "exemplars", "acme_broken", "cannot be imp"]),
        ("benchmarks", ["digits"]),
        ("backbones", ["conv4", "identity"]),
        (
            "adaptations",
            ["strategy.session.adapt=NAME", "vpt_deep", "Five prompt tokens before each"],
        ),
        ("heads", ["nearest_mean"]),
        ("maps", ["strategy.head.map=NAME", "top_k", "acme_cube", "some power"]),
        ("federated", ["method=NAME", "fedcof", "stsa_e", "how the clients' means spread"]),
        ("experiments", ["demo", "Five strategies", "ten classes at a time, three class orders"]),
        ("federations", ["digits_robust", "up to a third of them may lie."]),
        ("pretrainings", ["omniglot_vit"]),
        ("reconnaissance", ["cifar100_missions"]),
    ],
)
def test_lists(
    what: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "160")  # a narrow terminal folds the texts
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    assert [text for text in expected if text not in out] == []


def test_every_list_can_be_asked_for() -> None:
    assert _LISTS == KINDS


def test_lists_break_no_word_in_a_usual_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "strategies"]) == 0
    words = capsys.readouterr().out.split()
    assert {"experiences", "(Kirkpatrick", "(Malepathirana", "importance,"} <= set(words)


def test_compare_reads_folders_and_names_what_is_missing(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "strategy=acme_replay", "strategy.train_epochs=1"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs", "--output", "page"]) == 0
    assert "Acme Replay" in capsys.readouterr().out
    assert "<html" in Path("page/report.html").read_text()
    assert main(["compare", "nowhere"]) == 3
    assert "nowhere" in capsys.readouterr().err


def test_doctor_finds_what_is_there(capsys: pytest.CaptureFixture[str]):
    code = main(["doctor", "--root", "empty"])
    out = capsys.readouterr().out
    assert code == 1, "the third party's broken registration is reported"
    assert "acme_continual:Missing" in out
    assert "1,797 images, embedded in scikit-learn" in out
    assert "benchmark.download=true" in out


def test_doctor_says_how_to_get_a_package(monkeypatch: pytest.MonkeyPatch):
    installed = {"torch": "1.0", "timm": None, "rich": None}

    def version(name: str) -> str | None:
        return installed.get(name, "99") if name in installed else provenance.versions().get(name)

    monkeypatch.setattr("protocl.cli.doctor.installed_version", version)
    found = {finding.subject: finding for finding in packages()}
    assert found["torch"].state == "bad"
    assert "1.0 is installed; pip install 'torch>=" in found["torch"].detail
    assert found["rich"].state == "bad"
    assert found["timm"].state == "absent"
    assert found["timm"].detail.startswith("optional: pip install 'timm>=")


def test_interruption_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("protocl.runner.kind.Kind.carry_out", interrupt)
    assert main(["run", "strategy=acme_replay"]) == 130
    assert capsys.readouterr().err.endswith(
        "protocl: interrupted; the same command with resume=true goes on\n"
    )


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    words = ["pretrain", "benchmark=digits", f"output={tmp_path / 'file'}"]
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert str(tmp_path / "file") in shown
    assert "--debug" in shown
    with pytest.raises(OSError, match="file"):
        main([*words[:1], "--debug", *words[1:]])


def test_settings_and_help_do_not_import_avalanche():
    code = (
        "import sys\n"
        "from protocl.cli.main import main\n"
        "assert main(['run', 'strategy=acme_replay', '--show']) == 0\n"
        "assert main(['list', 'benchmarks']) == 0\n"
        "heavy = {'avalanche', 'flwr', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("federate", ["federation=digits", "method=fedavg_prototypes,prototypes"]),
        ("reconnaissance", ["reconnaissance=digits", "scenario.classes_per_mission=99,1"]),
        (
            "pretrain",
            ["benchmark=digits", "benchmark.base_classes=5", "epochs=1", "device=cuda:77,cpu"],
        ),
    ],
)
def test_every_sweep_goes_on_after_a_failure(
    command: str, settings: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main([command, *settings, "benchmark.train_per_class=20"]) == 1
    assert capsys.readouterr().err.count("failed  ") == 1
    assert len(results()) == 1 or list(Path("runs").rglob("model/backbone.safetensors"))


def test_a_command_that_cannot_be_imported_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    gone = EntryPoint("federate", "protocl.no_such_module:add_command", "protocl.commands")
    monkeypatch.setattr(COMMANDS, "entries", lambda: {"federate": gone})
    assert main(["federate", "federation=digits"]) == 2
    assert "install that package again" in capsys.readouterr().err


def test_resuming_says_that_no_run_has_these_settings(caplog: pytest.LogCaptureFixture):
    arguments = ["run", "strategy=acme_replay", "resume=true"]
    assert main([*arguments, "strategy.train_epochs=1"]) == 0
    assert not caplog.records
    assert main([*arguments, "strategy.train_epochs=2"]) == 0
    assert "has strategy.train_epochs=1 (now 2). Starting anew" in caplog.text
    caplog.clear()
    assert main([*arguments, "strategy.train_epochs=2", "seed=5"]) == 0
    assert not caplog.records
    assert len(results()) == 3


def test_a_missing_solver_that_nobody_asked_for_is_not_reported():
    hidden = ("quadprog", "cvxopt", "osqp", "scs", "ecos", "highspy", "clarabel", "daqp",
              "proxsuite", "piqp")  # fmt: skip
    code = (
        f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n"
        "from protocl.cli.main import main\n"
        "sys.exit(main(['run', 'strategy=nearest_mean', '--show']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr == ""


def test_help_of_run_says_where_runs_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "launcher=local|ray|slurm" in capsys.readouterr().out
