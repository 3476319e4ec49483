"""Which layer of a model is its classifier: the one whose output is what the model returns.

A name does not decide that: ``fc`` is as often a hidden layer as it is the last one. So the model
is run on one sample while the output of one layer after the other is replaced by known numbers.
The classifier is the layer behind which they come out of the model unchanged but for a factor, an
offset, a softmax and masked classes.
"""

from __future__ import annotations

import weakref
from typing import Any

from avalanche.models import TrainEvalModel, avalanche_forward
from torch import Tensor, nn

from protocl.strategies.plugin.feature_hook import FeaturePoint, undisturbed
from protocl.strategies.plugin.layer_trials import (
    Call,
    Forward,
    calls_of,
    is_pointwise,
    place_of_answer,
    widened,
)
from protocl.strategies.plugin.model_output import tensors_of

COMMON_NAMES = ("classifier", "fc", "head", "linear")


class FeatureFinder:
    """Finds the layer at which the features of a model are read, once for each model.

    Args:
        layer: name of the classification layer, if the user gave one.
    """

    def __init__(self, layer: str | None = None) -> None:
        self.layer = layer
        self._found: tuple[weakref.ref[nn.Module], FeaturePoint] | None = None

    def __call__(self, model: nn.Module, forward: Forward) -> FeaturePoint:
        """The point in ``model``, for which ``forward`` may be run.

        Raises:
            ValueError: as :func:`find_features`.
        """
        if self._found is not None:
            known, point = self._found
            if known() is model and _has(model, point.path):
                return point
        point = find_features(model, forward, self.layer)
        self._found = weakref.ref(model), point
        return point

    @property
    def point(self) -> FeaturePoint | None:
        """The point that was found last; None before the first."""
        return None if self._found is None else self._found[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "_found": None}  # neither copied nor pickled


def one_sample(model: nn.Module, x: Any, tasks: Tensor | None) -> Forward:
    """A call that runs ``model`` on the first sample of ``x`` ``(N, ...)``, given twice."""

    def forward() -> Any:
        if not isinstance(x, Tensor) or not len(x):
            return avalanche_forward(model, x, tasks)
        # Twice, for models that drop the dimension of a single sample.
        task = None if tasks is None else tasks[:1].repeat(2)
        return avalanche_forward(model, x[:1].repeat(2, *[1] * (x.ndim - 1)), task)

    return forward


def find_features(model: nn.Module, forward: Forward, layer: str | None = None) -> FeaturePoint:
    """Where the features of ``model`` are: what enters its classification layer.

    Of a model without a linear layer they are what it returns; a 1x1 convolution is linear. The
    model is run in evaluation mode without gradients, and is left as it was.

    Args:
        model: any model.
        forward: runs it on a mini-batch.
        layer: name of the classification layer, if it is to be this one.

    Raises:
        ValueError: no layer has the name, or none can be told to be the classifier; the message
            lists the linear layers.
    """
    if layer is not None:
        return _named(model, path_of(model, find_classifier(model, layer)), forward)
    if isinstance(model, TrainEvalModel):  # whose classifier in evaluation cannot run at first
        return FeaturePoint("feature_extractor", after=True)
    certain = _end_of_sequence(model)
    if certain is not None:
        return FeaturePoint(path_of(model, certain))
    linear = _linear_layers(model)
    with undisturbed(model):
        point = _tried(model, linear, forward)
    if point is not None:
        return point
    if not linear:
        return FeaturePoint("", after=True)
    raise ValueError(
        f"{_unknown(model)}; if what it returns are features already, give the model as "
        "torch.nn.Sequential(model, torch.nn.Identity()) with layer='1'"
    )


def _named(model: nn.Module, path: str, forward: Forward) -> FeaturePoint:
    """The layer that the user gave; a trial only tells which of several outputs are its scores."""
    if isinstance(model, TrainEvalModel):  # as above
        return FeaturePoint(path)
    with undisturbed(model):
        if len(tensors_of(forward())) < 2:
            return FeaturePoint(path)
        call = calls_of(model, [path], forward).get(path)
        place = call and place_of_answer(model, path, call, forward, exactly=False)
    return FeaturePoint(path, scores=place)


def _tried(model: nn.Module, linear: list[str], forward: Forward) -> FeaturePoint | None:
    """The first layer that passes its trial: a linear one, the last first, else a named one.

    Of 1x1 convolutions, which networks have by the dozen, only the last can be the classifier.
    """
    named = _names(model)
    pointwise = [path for path, module in model.named_modules() if is_pointwise(module)]
    calls = calls_of(model, [*linear, *named, *pointwise], forward)
    for path in [*_latest(linear, calls), *_latest(pointwise, calls)[:1]]:
        place = place_of_answer(model, path, calls[path], forward, exactly=True)
        if place is not None:
            outer = widened(model, path, calls[path], forward)
            return FeaturePoint(outer, last=calls[path].times > 1, scores=place)
    for path in named:
        if path in calls:
            place = place_of_answer(model, path, calls[path], forward, exactly=False)
            if place is not None:
                return FeaturePoint(path, last=calls[path].times > 1, scores=place)
    return None


def _latest(paths: list[str], calls: dict[str, Call]) -> list[str]:
    """Those that are called, the last first."""
    return sorted((p for p in paths if p in calls), key=lambda p: calls[p].order, reverse=True)


def find_classifier(model: nn.Module, name: str | None = None) -> nn.Module:
    """The classification layer of ``model`` as far as names tell, without running it.

    Looked for in this order: ``name``; what ``timm`` calls the classifier; an attribute of the
    model called ``classifier``, ``fc``, ``head`` or ``linear``; a linear layer with which a
    ``nn.Sequential`` ends; the only submodule of such a name.

    Raises:
        ValueError: there is no such layer or more than one, or linear layers come after it; the
            message lists the layers there are.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if name in modules:
            return modules[name]
        raise ValueError(f"layer='{name}' is not a layer of {_description(model)}")
    config = getattr(model, "pretrained_cfg", None) or {}
    if isinstance(config.get("classifier"), str) and config["classifier"] in modules:
        return modules[config["classifier"]]
    end = _end_of_sequence(model)
    if end is not None:
        return end
    named = _names(model)
    if len(named) == 1 or (named and named[0] in COMMON_NAMES):
        linear = _linear_layers(model)
        if not linear or linear[-1] == named[0] or linear[-1].startswith(f"{named[0]}."):
            return modules[named[0]]
    raise ValueError(_unknown(model))


def is_linear(module: nn.Module) -> bool:
    """Whether a layer multiplies features by a matrix of its own."""
    if isinstance(module, nn.Linear):
        return True
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return False
    # With layers of its own it is a model, in which the matrix may be anything.
    return not any(True for _ in module.children())


def _linear_layers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if is_linear(module)]


def path_of(model: nn.Module, layer: nn.Module) -> str:
    """The name of a layer of ``model``."""
    return next(path for path, module in model.named_modules() if module is layer)


def _has(model: nn.Module, path: str) -> bool:
    return path == "" or any(path == name for name, _ in model.named_modules())


def _end_of_sequence(model: nn.Module) -> nn.Module | None:
    """The linear layer with which a sequence ends; a linear model is its own."""
    last = model
    while type(last) is nn.Sequential and len(last):
        last = last[-1]
    return last if type(last) is nn.Linear else None


def _names(model: nn.Module) -> list[str]:
    """Paths whose names are those of classifiers, likely ones first."""
    paths = [path for path, _ in model.named_modules()]
    config = getattr(model, "pretrained_cfg", None) or {}
    first = [path for path in (config.get("classifier"), *COMMON_NAMES) if path in paths]
    nested = [path for path in paths if path.rpartition(".")[2] in COMMON_NAMES]
    outermost = [path for path in nested if not any(path.startswith(f"{p}.") for p in nested)]
    return list(dict.fromkeys([*first, *outermost]))


def _unknown(model: nn.Module) -> str:
    return (
        f"cannot tell which layer is the classifier: give layer=NAME, a layer of "
        f"{_description(model)}"
    )


def _description(model: nn.Module) -> str:
    """Class of the model and the names of its linear layers."""
    linear = _linear_layers(model)
    return f"{type(model).__name__}, whose linear layers are: {', '.join(linear) or '(none)'}"
