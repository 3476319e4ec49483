"""Prototype memory for any Avalanche strategy, attached in one line.

``Naive(model, optimizer, ..., plugins=[PrototypePlugin()])`` trains as before, to the last bit of
its weights. Beside it the plugin keeps the statistics of each class's features, and at evaluation
it answers through a head that follows from them, in place of the model's own classifier.

Stored between experiences: the statistics of :class:`protocl.PrototypeMemory`; no samples.

Which prototypes a moving backbone leaves behind: those of old classes stay as they were computed,
so they age as the backbone trains on. With a frozen or slowly moving backbone that costs little;
otherwise they may be worth nothing: carry them along with :class:`.DriftCompensation`, or call
:meth:`PrototypePlugin.refresh` with data of the old classes (a replay buffer).

Avalanche 0.6.0 has faults that no plugin can mend. What to do about them:

* ``avalanche.training.checkpoint.save_checkpoint`` fails with every torch optimizer
  (``PicklingError``): save ``strategy.model.state_dict()``, ``strategy.optimizer.state_dict()`` and
  ``plugin.state_dict()`` with ``torch.save``, or run by ``protocl run``, which resumes by itself.
* ``class_incremental_benchmark`` drops classes that do not divide evenly (10 classes in 3
  experiences lose one), and LwF, iCaRL, FeCAM and SCR fail on it: use ``nc_benchmark``.
* ``Replay`` with ``persistent_workers=True`` and no workers fails: leave the argument out.
* ``Replay(..., plugins=mine)`` and its like may append to ``mine``: give each strategy a new list.
* The first ``train`` puts every parameter of the model in the optimizer, whatever you gave it:
  freeze a backbone by ``requires_grad_(False)``. Its BatchNorm layers are then kept from moving.
* Unknown keywords of ``train`` and ``eval`` are ignored: ``num_workrs=2`` does nothing.
* Stream accuracy with task labels is logged under the last task's name only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

from avalanche.core import SupervisedPlugin

from protocl.heads.base import Head
from protocl.strategies.plugin.extra_pass import ExtraPass
from protocl.strategies.plugin.extraction import classes_of, features_of
from protocl.strategies.plugin.feature_hook import refuse_compiled, undisturbed
from protocl.strategies.plugin.feature_reader import FeatureReader
from protocl.strategies.plugin.prototypes import Prototypes
from protocl.strategies.plugin.still_backbone import StillBackbone
from protocl.strategies.plugin.task_classes import refuse_empty, tasks_of
from protocl.strategies.plugin.training_pass import TrainingPass, was_cut


class PrototypePlugin(Prototypes, SupervisedPlugin[Any]):
    """Maintains a prototype memory during training and answers from it at evaluation.

    Args:
        head: turns the memory into logits; ``NearestMean()`` by default.
        layer: name of the model's classification layer, whose input are the features; by default
            the layer whose output is what the model returns. A model without a linear layer is a
            feature extractor.
        collect: ``"extra_pass"`` reads the experience once more after it was trained on, in
            evaluation mode; training on the same experience again straight away replaces what it
            contributed, so that nothing counts twice.
            ``"training"`` takes the features of the last training epoch as they come by, at almost
            no cost, but they were computed before the epoch's remaining steps, in training mode
            and with augmentation; replayed samples of classes that are not in the experience are
            left out. Where that epoch is cut short, drops samples or replays some of the classes of
            the experience, an extra pass takes its place, with a warning.
        num_workers: processes that load data in the extra pass; by default those of ``train``.
        **settings: those of :class:`.Prototypes`: ``memory``, ``level``, ``floor``, ``mask_tasks``,
            ``per_task``, ``fingerprint``, ``exact``, ``step`` and ``moments``.

    Attributes:
        reader: reads the features of mini-batches.
        still: holds the buffers of a frozen backbone; None to let them move.
        memory: the statistics, or None until the first features were seen. With
            ``collect="training"`` up to 8,192 samples wait to be added until the next evaluation
            or the end of the experience.
        head: fitted to the memory whenever it is asked.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), PrototypePlugin()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> settings = dict(train_epochs=1, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))  # on the classes seen
        [1.0, 0.958, 1.0]
        >>> plugin.memory.classes.tolist()
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        head: Head | None = None,
        *,
        layer: str | None = None,
        collect: Literal["extra_pass", "training"] = "extra_pass",
        num_workers: int | None = None,
        **settings: Any,
    ) -> None:
        SupervisedPlugin.__init__(self)
        if collect not in ("extra_pass", "training"):
            raise ValueError(f"collect='{collect}': expected 'extra_pass' or 'training'")
        Prototypes.__init__(self, head, **settings)
        self.layer = layer
        self.collect = collect
        self.num_workers = num_workers
        self.reader = FeatureReader(layer)
        self.still: StillBackbone | None = StillBackbone()
        self._collects = False
        self._training_pass = TrainingPass()
        self._extra_pass = ExtraPass()

    # -- learning ---------------------------------------------------------------------------

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        if self.reader.meet(strategy.model) and self.memory is not None:
            warnings.warn(
                "this PrototypePlugin holds statistics of another model, to which those of this "
                "one are added; attach a new plugin, or set plugin.memory = None, to begin anew",
                stacklevel=2,
            )

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        refuse_empty(strategy.experience)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.collect == "training":  # at once, so that unknown classes are refused at once
            classes = classes_of(strategy.experience.dataset).to(strategy.device)
            self._training_pass = TrainingPass(classes)
        if self.still is not None:
            self.still.begin(strategy.model)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        last = strategy.clock.train_exp_epochs == strategy.train_epochs - 1
        self._collects = last and self.collect == "training"

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        point = self.reader.find(strategy)
        if self.still is not None:
            self.still.before_forward(strategy.model, point)
        if self._collects:
            self.reader.hook.open_at(strategy.model, point)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        features = self.reader.close(strategy)
        if self.still is not None:
            self.still.after_forward(strategy.model)
        if features is None:
            return
        batch = features, strategy.mb_y, tasks_of(strategy)
        if not self._training_pass.fits(batch):
            self._add_waiting()
        self._training_pass.add(batch)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self._collects:
            self._add_waiting()
            size, cut = len(strategy.experience.dataset), was_cut(strategy)
            if cut or self._training_pass.counted != size:
                self.memory = self._training_pass.taken_back(self.memory, size, cut)
                self._training_pass = TrainingPass()
        self._collects = False
        if self.still is not None:
            self.still.end_epoch(strategy.model)

    def after_training_exp(self, strategy: Any, num_workers: int = 0, **kwargs: Any) -> None:
        if self.still is not None:
            self.still.end(strategy.model)
        # Early stopping ends an experience before the epoch that collects.
        if self._training_pass.samples:
            self._add_waiting()
            self._training_pass = TrainingPass()  # its memory is not needed until the next one
            return
        workers = num_workers if self.num_workers is None else self.num_workers
        with undisturbed(strategy.model):
            part = self._statistics(self._extra_pass.chunks(strategy, self.layer, workers))
        moves = any(parameter.requires_grad for parameter in strategy.model.parameters())
        moves = moves or (self.still is not None and self.still.moved)
        if part is not None:
            self.memory = self._extra_pass.added(self.memory, part, moves)

    def refresh(self, strategy: Any, datasets: Iterable[Any]) -> None:
        """Compute the whole memory anew, with the model as it is now.

        Args:
            strategy: the strategy that the plugin is attached to.
            datasets: Avalanche datasets with samples of every class to be kept, such as
                ``[replay.storage_policy.buffer]``; classes without samples are forgotten.
        """
        passes = (features_of(strategy, dataset, self.layer) for dataset in datasets)
        self.memory = self._statistics(batch[1:] for one in passes for batch in one)
        self._extra_pass.forget()

    def _add_waiting(self) -> None:
        part = self._statistics(self._training_pass.take())
        self.memory = self._training_pass.give(self.memory, part)

    # -- answering --------------------------------------------------------------------------

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        refuse_compiled(strategy.model)
        self._add_waiting()  # an evaluation in the middle of training
        self.to(strategy.device)

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self.memory is not None and len(self.memory) > 0:
            self.reader.open(strategy)

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        features = self.reader.close(strategy)
        if features is not None:
            width = self.reader.width(strategy)
            strategy.mb_output = self.logits(features, tasks_of(strategy), width)

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that ``torch.load`` needs no pickled code.

        What the last experience contributed is not part of it: after loading, training on that
        same experience again adds to what it contributed before.
        """
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        self._extra_pass.forget()
        super().load_state_dict(state)
