"""PRD inside Avalanche, step by step, against the authors' own training loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import nn

from protocl.data import TensorData
from protocl.strategies.avalanche.epoch_schedule import milestone_factor
from protocl.strategies.prd import PRD, PRDPlugin, build_projector
from protocl.strategies.training.relation_losses import PRDLoss
from protocl.strategies.training.views import DatasetViews
from tests.golden.prd import assert_close, golden, output, tensor
from tests.strategies.small import quiet_evaluator, train_on

SETTINGS = golden()["hp_trajectory"]
STEPS = golden()["trajectory_stream"]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weights = golden()["trajectory_weights"]
        self.linear = nn.Linear(6, 8, dtype=torch.float64)
        self.linear.weight.data = tensor(weights["enc.weight"])
        self.linear.bias.data = tensor(weights["enc.bias"])
        self.classifier = nn.Linear(8, 6, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.linear(x).relu())


def projector() -> nn.Sequential:
    weights = golden()["trajectory_weights"]
    made = build_projector(8, 10, 5).double()
    for number, layer in enumerate(made[::2]):
        layer.weight.data = tensor(weights[f"proj.{number}.weight"])
        layer.bias.data = tensor(weights[f"proj.{number}.bias"])
    return made


class GoldenStart:
    """Puts golden prototypes in the place of random ones; orders samples; notes every loss."""

    def __init__(self, plugin: PRDPlugin) -> None:
        self.plugin = plugin
        self.terms: list[list[float]] = []
        make = plugin._make_parameters

        def make_golden(*args: Any) -> None:
            make(*args)
            number = len(plugin.prototypes.parts) - 1
            start = golden()["trajectory_weights"][f"protos.{number}"]
            plugin.prototypes.parts[number].data = tensor(start)

        plugin._make_parameters = make_golden

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        # Avalanche sorts samples by class; every golden batch holds two of each.
        order = [k * 6 + step * 2 + j for step in range(3) for k in range(3) for j in range(2)]
        strategy.adapted_dataset = strategy.adapted_dataset.subset(order)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        assert float(strategy.loss) == float(self.plugin.last_terms.total)
        self.terms.append([float(term) for term in self.plugin.last_terms])


def benchmark(task_labels: bool) -> Any:
    views = torch.stack(
        [torch.cat([tensor(step[view]) for step in STEPS]) for view in ("v1", "v2")], 1
    )
    labels = torch.tensor([label for step in STEPS for label in step["y"]])
    test = TensorData(tensor(golden()["trajectory_test"]), torch.arange(12) // 2)
    train = TensorData(views, labels)
    return nc_benchmark(
        train, test, 2, task_labels=task_labels, shuffle=False, fixed_class_order=list(range(6))
    )


@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize(
    ("key", "relation"),
    [("trajectory_code", "released"), ("trajectory_paper_KL(teacher||student)_tau1", "paper")],
)
def test_trajectory(key: str, relation: Any, task_labels: bool) -> None:
    expected, stream = output(key), benchmark(task_labels)
    loss = PRDLoss(
        temperature=SETTINGS["tau_sc"],
        base_temperature=SETTINGS["base"],
        prototype_weight=SETTINGS["alpha"],
        relation_weight=SETTINGS["beta"],
        relation=relation,
        relation_temperature=SETTINGS["temp_d"],
    )
    plugin = PRDPlugin(loss, views=DatasetViews(), projector=projector())
    notes, model = GoldenStart(plugin), Encoder()
    strategy = PRD(
        model=model,
        optimizer=torch.optim.SGD(
            model.parameters(),
            lr=SETTINGS["lr"],
            momentum=SETTINGS["momentum"],
            weight_decay=SETTINGS["weight_decay"],
        ),
        plugin=plugin,
        plugins=[notes],
        train_mb_size=6,
        eval_mb_size=12,
        evaluator=quiet_evaluator(),
    )
    train_on(strategy, stream.train_stream, shuffle=False)
    assert_close(tensor(notes.terms), expected["losses_sc_p_d_total"])
    assert notes.terms[3][2] == 0, "a student that equals its teacher"
    assert_close(plugin.prototypes.table(), expected["final_protos"])
    assert_close(model.linear.weight[0], expected["final_enc_weight_row0"])

    answers = predictions(strategy, stream)
    expected_answers = expected["pred_task_il" if task_labels else "pred_class_il"]
    assert answers.argmax(1).tolist() == expected_answers
    if not task_labels:
        assert_close(answers[0] * SETTINGS["tau_sc"], expected["test_cos_row0"])


def predictions(strategy: Any, stream: Any) -> torch.Tensor:
    """Logits of the golden test samples, in their order."""
    seen: list[torch.Tensor] = []

    class Recorder:
        def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(strategy.mb_output.clone())

    strategy.plugins.append(Recorder())
    strategy.eval(stream.test_stream)
    return torch.cat(seen)


def test_learning_rates_fall_after_the_milestones() -> None:
    for epoch, rate in output("lr_schedule_lr0.01_miles120_160").items():
        assert 0.01 * milestone_factor(int(epoch), (120, 160)) == pytest.approx(rate)
