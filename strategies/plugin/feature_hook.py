"""Read a model's features during a forward pass: what enters its classification layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protocl.strategies.plugin.model_output import Place, main_output


class FeaturePoint(NamedTuple):
    """The layer of a model at which its features are read.

    Attributes:
        path: of the layer in the model; ``""`` for the model itself.
        after: they are what the layer returns, not what enters it.
        last: the layer is called more than once in a forward pass, and the last call counts.
        scores: where the scores are in what the model returns; None if a trial did not tell.
    """

    path: str
    after: bool = False
    last: bool = False
    scores: Place | None = None


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a compiled model, which runs without hooks that are added later.

    Raises:
        ValueError: the model or a part of it was compiled.
    """
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ValueError(
                f"{f'layer {path!r}' if path else 'the model'} is compiled, and features cannot "
                "be read from compiled code: give the strategy the model that you passed to "
                "torch.compile (compiled._orig_mod)"
            )


class Enough(Exception):  # noqa: N818 - an answer, not a fault
    """Ends a forward pass whose features were read and whose outputs nobody wants."""


class FeatureHook:
    """Keeps the features that enter a layer, from :meth:`open` to :meth:`close`.

    The hook is on the layer only in between: copies of the model (the teachers of LwF and iCaRL)
    would carry it along and overwrite what the student wrote.

    Args:
        differentiable: keep the features in the graph, for losses that train the backbone;
            otherwise they are detached copies.
        features_only: nobody reads what the model returns, so that a linear layer need not be
            computed: zeros of its shape take the place of its output. Where the features are what
            a layer returns, the pass ends there by :class:`Enough`.
    """

    def __init__(self, differentiable: bool = False, features_only: bool = False) -> None:
        self.differentiable = differentiable
        self.features_only = features_only
        self._skipped: nn.Module | None = None
        self._handles: list[RemovableHandle] = []
        self._seen: list[Tensor] = []
        self._calls: list[tuple[Any, list[Tensor]]] = []
        self._last = self._ends = False

    def open_at(self, model: nn.Module, point: FeaturePoint) -> None:
        """Start to listen where the features of ``model`` are."""
        layer = model.get_submodule(point.path)
        if point.after:
            self._drop()
            self._ends = self.features_only and layer is not model
            self._handles.append(layer.register_forward_hook(self._read_output))
        else:
            self.open(layer, last=point.last)
        self._handles.append(model.register_forward_hook(self._end_call))

    def open(self, layer: nn.Module, last: bool = False) -> None:
        """Start to listen to a layer; what an interrupted pass left behind is dropped.

        Args:
            layer: the layer.
            last: forget what entered it when it is called again.
        """
        self._drop()
        self._last = last
        self._handles.append(layer.register_forward_pre_hook(self._read_input, with_kwargs=True))
        if self.features_only and type(layer) is nn.Linear and not _is_watched(layer):
            vars(layer)["forward"] = partial(_zeros_like_output, layer.out_features)
            self._skipped = layer

    def _read_input(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._last:
            self._seen.clear()
        features = args[0] if args else next(iter(kwargs.values()))
        features = features if self.differentiable else features.detach()
        # A copy, since a layer may begin with an operation in place (dropout, ReLU). A linear one
        # does not, and for its gradient torch itself refuses changes to what entered it.
        features = _rows(features)
        self._seen.append(features if type(layer) is nn.Linear else features.clone())

    def _read_output(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        features = main_output(output)
        if features is None:
            raise TypeError(
                f"{type(model).__name__} returned a {type(output).__name__}: expected "
                "a tensor of features, or an object that holds one"
            )
        self._seen.append(_rows(features if self.differentiable else features.detach()))
        if self._ends:
            raise Enough

    def _end_call(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._seen:
            self._calls.append((output, self._seen))
            self._seen = []

    def close(self, answer: Any = None) -> list[Tensor]:
        """Stop to listen, and give what was read.

        Args:
            answer: what the strategy took for the model's output. It tells which call counts if
                the strategy, or a plugin, called the model more than once, as on replayed samples.

        Returns:
            The features ``(n, D)`` of each call of the layer, in the call of the model that counts.

        Raises:
            RuntimeError: none of several calls of the model returned ``answer``.
        """
        calls = [*self._calls, *([(None, self._seen)] if self._seen else [])]
        self._drop()
        if len(calls) < 2:
            return calls[0][1] if calls else []
        for output, seen in calls:
            if output is answer:
                return seen
        raise RuntimeError(
            f"the model was called {len(calls)} times for one mini-batch, and none of its outputs "
            "is strategy.mb_output, which would tell whose features count: use a strategy that "
            "keeps what the model returned for the mini-batch as mb_output, or, for prototypes "
            "alone, PrototypePlugin(collect='extra_pass')"
        )

    def _drop(self) -> None:
        """Stop to listen, and forget what was read."""
        for handle in self._handles:
            handle.remove()
        if self._skipped is not None:
            del self._skipped.forward
            self._skipped = None
        self._handles, self._seen, self._calls = [], [], []


def _rows(features: Tensor) -> Tensor:
    """Features ``(n, D)``; a model that squeezes drops the dimension of a single sample."""
    return features.flatten(1) if features.ndim > 1 else features[None]


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody else changed what a layer does, or looks at what it returns."""
    return "forward" in vars(layer) or bool(layer._forward_hooks)


def _zeros_like_output(width: int, features: Tensor) -> Tensor:
    return features.new_zeros((*features.shape[:-1], width))


def joined(seen: list[Tensor], tasks: Tensor | None) -> Tensor:
    """Features ``(N, D)`` of a mini-batch in its own order.

    Args:
        seen: features of each call of the layer. A multi-task model calls it once for each task
            in the batch, in ascending order of the tasks.
        tasks: task labels ``(N,)``, if there are any.

    Raises:
        RuntimeError: the calls do not account for the samples.
    """
    if len(seen) == 1:
        return seen[0]
    if not seen or tasks is None:
        raise RuntimeError(
            f"the classification layer was called {len(seen)} times in one forward pass; expected "
            "one call: give layer=NAME of a layer that sees each sample once"
        )
    present = [tasks == task for task in tasks.unique()]
    if [int(mask.sum()) for mask in present] != [len(part) for part in seen]:
        raise RuntimeError(
            f"the classification layer saw batches of {[len(part) for part in seen]} samples, "
            "which are not those of the tasks in the mini-batch: give layer=NAME of another layer"
        )
    features = seen[0].new_empty((len(tasks), seen[0].shape[1]))
    for mask, part in zip(present, seen, strict=True):
        features[mask] = part
    return features


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, after which the model and the random state are as before.

    Every submodule gets its own mode back: ``model.train()`` would thaw a BatchNorm that the user
    froze. Whatever random numbers are drawn inside were never drawn for the user.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
