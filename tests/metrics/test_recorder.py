"""The recorder in a real Avalanche loop on digits: our metrics against Avalanche's own."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
)
from avalanche.training import Naive, Replay
from avalanche.training.plugins import EvaluationPlugin
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from protocl import metrics
from protocl.errors import DivergedError
from protocl.metrics.history import Evaluation, History
from protocl.metrics.recorder import EvaluationRecorder

N_EXPERIENCES = 5
pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


def digits(test_per_class: int) -> tuple[TensorDataset, TensorDataset]:
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    rank = torch.stack([(labels == c).cumsum(0) * (labels == c) for c in range(10)]).sum(0)
    test = rank <= test_per_class
    return with_targets(images[~test], labels[~test]), with_targets(images[test], labels[test])


def with_targets(x: Tensor, y: Tensor) -> TensorDataset:
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()  # type: ignore[attr-defined]
    return dataset


def run(strategy_class: type, test_per_class: int, eval_mb_size: int) -> tuple[History, list[dict]]:
    """Train and evaluate with both recorders; Avalanche's metrics after each experience."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        confusion_matrix_metrics(num_classes=10, save_image=False, stream=True),
        loggers=[],
    )
    recorder, history, theirs = EvaluationRecorder(), History(), []
    strategy = strategy_class(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.2),
        criterion=nn.CrossEntropyLoss(), train_mb_size=32, train_epochs=1,
        eval_mb_size=eval_mb_size, plugins=[recorder], evaluator=evaluator,
        **({"mem_size": 50} if strategy_class is Replay else {}),
    )  # fmt: skip
    benchmark = nc_benchmark(
        *digits(test_per_class), n_experiences=N_EXPERIENCES, task_labels=False, seed=3
    )
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        theirs.append(dict(strategy.eval(benchmark.test_stream[: t + 1])))
        history.append(recorder.last)
    return history, theirs


def avalanche_accuracies(result: dict, t: int) -> list[float]:
    name = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp00{}"
    return [result[name.format(i)] for i in range(t + 1)]


# With 32 images a batch Avalanche's running mean rounds nothing: equal to the last bit. With 7
# its mean of rounded batch means may differ in the last of 16 digits from our exact ratio.
@pytest.mark.parametrize(("eval_mb_size", "tolerance"), [(32, 0.0), (7, 1e-14)])
@pytest.mark.parametrize("strategy_class", [Naive, Replay])
def test_metrics_equal_those_of_avalanche(
    strategy_class: type, eval_mb_size: int, tolerance: float
) -> None:
    history, theirs = run(strategy_class, test_per_class=32, eval_mb_size=eval_mb_size)
    stream = "{}/eval_phase/test_stream"
    assert metrics.forgetting(history.accuracy_matrix) > 0.01
    for t, result in enumerate(theirs):
        matrix = history.accuracy_matrix[: t + 1]
        compared = [
            *zip(matrix[t], avalanche_accuracies(result, t), strict=True),
            (history.stream_accuracy[t], result["Top1_Acc_Stream/eval_phase/test_stream/Task000"]),
            (metrics.forgetting(matrix), result[stream.format("StreamForgetting")]),
            (metrics.backward_transfer(matrix), result[stream.format("StreamBWT")]),
        ]
        for ours, expected in compared:
            assert abs(ours - expected) <= tolerance
    theirs_counts = theirs[-1][stream.format("ConfusionMatrix_Stream")]
    assert history.confusion_table()["counts"] == theirs_counts.tolist()


@pytest.fixture(scope="module")
def history() -> History:
    return run(Naive, test_per_class=20, eval_mb_size=64)[0]


def test_the_history_survives_json_without_loss(history: History) -> None:
    restored = History.from_dict(json.loads(json.dumps(history.to_dict())))
    assert restored.summary() == history.summary()
    assert restored.confusion_table() == history.confusion_table()


def test_the_summary_follows_from_the_counts(history: History) -> None:
    summary = history.summary()
    assert summary["last_accuracy"] == history.confusion.accuracy
    assert history.confusion.total == 200
    assert summary["average_accuracy"] == pytest.approx(summary["last_accuracy"])
    assert 0 < summary["expected_calibration_error"] < 1


def test_an_evaluation_must_cover_all_experiences_seen(history: History) -> None:
    first = history.evaluations[0]
    short = History([first])
    with pytest.raises(ValueError, match=r"0 to 1, but it lacks \[1\]; evaluate on test_stream"):
        short.append(first)
    with pytest.raises(ValueError, match="at least one"):
        History().summary()


def test_later_experiences_enter_no_metric(history: History) -> None:
    early = History()
    early.append(Evaluation(history.evaluations[-1].confusion))
    assert early.confusion.total == 40
    assert early.summary()["expected_calibration_error"] is None


def batch(experience: int, logits: Tensor, labels: Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        experience=SimpleNamespace(current_experience=experience), mb_output=logits, mb_y=labels
    )


def test_an_interrupted_evaluation_leaves_nothing_behind() -> None:
    recorder = EvaluationRecorder()
    with pytest.raises(RuntimeError, match="no evaluation has ended"):
        _ = recorder.last
    wrong, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    recorder.before_eval(None)
    recorder.after_eval_iteration(batch(0, wrong, torch.tensor([1])))
    recorder.before_eval(None)
    recorder.after_eval_iteration(batch(0, right, torch.tensor([1])))
    recorder.after_eval(None)
    assert recorder.last.confusion[0].total == 1
    assert recorder.last.confusion[0].accuracy == 1.0


def test_logits_that_are_none_are_refused() -> None:
    recorder = EvaluationRecorder()
    recorder.before_eval(None)
    with pytest.raises(ValueError, match=r"logits of shape \(N, classes\).*got \(1,\)"):
        recorder.after_eval_iteration(batch(0, torch.tensor([1.0]), torch.tensor([1])))


@pytest.mark.parametrize("calibration", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_named(value: float, calibration: bool) -> None:
    recorder = EvaluationRecorder(calibration=calibration)
    recorder.before_eval(None)
    recorder.after_eval_iteration(batch(3, torch.zeros(1, 3), torch.tensor([0])))
    recorder.after_eval_iteration(batch(3, torch.full((2, 3), value), torch.tensor([1, 2])))
    with pytest.raises(DivergedError, match=r"2 of 3 answers to test experience 3.*learning rate"):
        recorder.after_eval(None)


def test_classes_never_seen_score_minus_infinity_and_calibration_still_works() -> None:
    recorder = EvaluationRecorder()
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]] * 2)
    recorder.before_eval(None)
    recorder.after_eval_iteration(batch(4, logits, torch.tensor([1, 0])))
    recorder.after_eval(None)
    assert recorder.last.reliability is not None
    assert recorder.last.reliability.expected_error() == 0.5


def test_importing_recorder_and_report_loads_no_framework() -> None:
    code = (
        "import sys, protocl.metrics.recorder, protocl.metrics.history, protocl.report\n"
        "heavy = {'avalanche', 'matplotlib', 'jinja2', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
