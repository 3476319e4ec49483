"""Read a model's features: what enters its classification layer during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

COMMON_NAMES = ("classifier", "fc", "head", "linear")


def find_classifier(model: nn.Module, name: str | None = None) -> nn.Module:
    """The classification layer of ``model``, whose input is the feature vector.

    Looked for in this order: ``name``; what ``timm`` calls the classifier; an attribute of the
    model called ``classifier``, ``fc``, ``head`` or ``linear``; a linear layer with which a
    ``nn.Sequential`` ends; the only submodule of such a name.

    Raises:
        ValueError: there is no such layer or more than one; the message lists the layers there are.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if name in modules:
            return modules[name]
        raise ValueError(f"layer='{name}' is not a layer of {_description(model)}")
    config = getattr(model, "pretrained_cfg", None) or {}
    for candidate in (config.get("classifier"), *COMMON_NAMES):
        if isinstance(candidate, str) and candidate in modules:
            return modules[candidate]
    last = model
    while type(last) is nn.Sequential and len(last):
        last = last[-1]
    if isinstance(last, nn.Linear) and last is not model:
        return last
    nested = [path for path in modules if path.rpartition(".")[2] in COMMON_NAMES]
    outermost = [path for path in nested if not any(path.startswith(f"{p}.") for p in nested)]
    if len(outermost) == 1:
        return modules[outermost[0]]
    raise ValueError(
        f"cannot tell which layer is the classifier: give layer=NAME, a layer of "
        f"{_description(model)}"
    )


def _description(model: nn.Module) -> str:
    """Class of the model and the names of its linear layers."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return f"{type(model).__name__}, whose linear layers are: {', '.join(linear) or '(none)'}"


def refuse_compiled(model: nn.Module) -> None:
    """Compiled code runs without hooks that were added later, so features could not be read.

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


class FeatureTap:
    """Keeps what enters ``layer`` from :meth:`open` to :meth:`close`.

    The hook is on the layer only in between: copies of the model (the teachers of LwF and iCaRL)
    would carry it along and overwrite what the student wrote.

    Args:
        differentiable: keep the features in the graph, for losses that train the backbone;
            otherwise they are detached copies.
        features_only: nobody reads what the model returns, so that a linear layer need not be
            computed: zeros of its shape take the place of its output.
    """

    def __init__(self, differentiable: bool = False, features_only: bool = False) -> None:
        self.differentiable = differentiable
        self.features_only = features_only
        self._skipped: nn.Module | None = None
        self._handle: RemovableHandle | None = None
        self._seen: list[Tensor] = []

    def open(self, layer: nn.Module) -> None:
        """Start to listen; what an interrupted pass left behind is dropped."""
        self.close()
        self._handle = layer.register_forward_pre_hook(self._keep, with_kwargs=True)
        if self.features_only and type(layer) is nn.Linear and not _is_watched(layer):
            layer.forward = partial(_zeros_like_output, layer.out_features)  # type: ignore[method-assign]
            self._skipped = layer

    def _keep(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else next(iter(kwargs.values()))
        features = features if self.differentiable else features.detach()
        # A copy, since a layer may begin with an operation in place (dropout, ReLU). A linear one
        # does not, and for its gradient torch itself refuses changes to what entered it.
        features = features.flatten(1)
        self._seen.append(features if type(layer) is nn.Linear else features.clone())

    def close(self) -> list[Tensor]:
        """Stop to listen.

        Returns:
            The features ``(n, D)`` of each call of the layer.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._skipped is not None:
            del self._skipped.forward
            self._skipped = None
        seen, self._seen = self._seen, []
        return seen


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
