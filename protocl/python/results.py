"""Results of several runs: a sequence that can be filtered, shown, drawn and made a data frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from protocl.config.presets import flatten
from protocl.errors import ConfigError, ProtoclError
from protocl.python.values import listed, plain
from protocl.registry import unknown_name
from protocl.report.comparison import Comparison
from protocl.report.groups import Benchmark, group_runs
from protocl.report.runs import Embedding, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

One = TypeVar("One", bound=Run | Embedding)


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end.

    Attributes:
        label: what sets it apart from the others: ``"strategy=slda seed=1"``.
        message: what went wrong.
        folder: where it wrote; gone if it failed before it had a result or a log.
    """

    label: str
    message: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.label}: {self.message}"


class RunsFailedError(ProtoclError):
    """Runs of a sweep failed; the others went to their end.

    Attributes:
        results: those of the others, with the :attr:`Results.failures`.
    """

    def __init__(self, results: Results[Any]) -> None:
        failed, n = results.failures, len(results) + len(results.failures)
        others = (
            "\nThe others are in the results of this error; the same call with resume=True finds "
            "them done, and carries out the rest"
        )
        super().__init__(
            f"{len(failed)} of {n} runs failed:"
            + "".join(f"\n  {failure}" for failure in failed)
            + (others if len(results) else "")
        )
        self.results = results


class Results(Sequence[One], Generic[One]):
    """Runs in the order in which they were asked for.

    Each is a :class:`protocl.report.Run` (of a pretraining an
    :class:`~protocl.report.runs.Embedding`) with the content of its ``result.json`` as attributes:
    ``results[0].accuracy``, ``.metrics.forgetting``, ``.strategy.state_bytes``,
    ``.federation.rounds``. A slice is again a :class:`Results`.

    Args:
        runs: finished ones.
        failures: runs that were asked for and failed.

    Raises:
        TypeError: something else is among them.
    """

    def __init__(self, runs: Iterable[One] = (), failures: Iterable[Failure] = ()) -> None:
        self._runs: tuple[One, ...] = tuple(runs)
        for one in self._runs:
            if not isinstance(one, Run | Embedding):
                raise TypeError(
                    f"Results take runs, got a {type(one).__name__}: protocl.load_run(FOLDER) "
                    "reads one"
                )
        self.failures = tuple(failures)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[One]:
        return iter(self._runs)

    @overload
    def __getitem__(self, index: int) -> One: ...
    @overload
    def __getitem__(self, index: slice) -> Results[One]: ...
    def __getitem__(self, index: int | slice) -> One | Results[One]:
        return Results(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def filter(
        self, *tests: Callable[[One], bool] | Mapping[str, Any], **settings: Any
    ) -> Results[One]:
        """The runs that pass every test and have every setting.

        Args:
            tests: functions of a run, or dictionaries of settings.
            settings: values by key, or the end of a key if only one ends so: ``seed=1``,
                ``strategy="slda"``, ``shrinkage=0.1``; a list is any of its members.

        Raises:
            ConfigError: none of the runs has such a setting.

        Example:
            >>> Results().filter(lambda run: run.accuracy > 0.9)
            no runs
        """
        kept = self._runs
        for test in (*tests, settings):
            passes = test if callable(test) else self._has(test)
            kept = tuple(run for run in kept if passes(run))
        return Results(kept)

    def table(self) -> Comparison:
        """Mean and spread over seeds of every configuration; prints, and shows in notebooks.

        Raises:
            ConfigError: there is no run, or they are pretrainings, which have no answers.
        """
        return Comparison(*group_runs(self._answers("table")))

    def plot(self) -> Figure:
        """Accuracy over the stream, with one standard deviation; of federations over the rounds.

        Raises:
            ConfigError: as :meth:`table`, or the runs are of several benchmarks.
        """
        from protocl.report.plots import overview

        return overview(self._one_benchmark())

    def to_pandas(self) -> DataFrame:
        """One row a run: names, seed, the settings that differ, all metrics in base units.

        Raises:
            ConfigError: as :meth:`table`.
            ImportError: pandas is not installed.
        """
        from protocl.report.table import records

        runs = self._answers("to_pandas")
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError(
                "to_pandas needs pandas, which is not installed: pip install pandas"
            ) from error
        return DataFrame(records(runs))

    def __repr__(self) -> str:
        shown = [str(self.table())] if self._comparable else [repr(run) for run in self]
        return "\n".join([*shown, *(f"failed {one}" for one in self.failures)]) or "no runs"

    def _repr_html_(self) -> str:
        lines = [] if self._comparable else [repr(run) for run in self]
        lines += [f"failed {one}" for one in self.failures]
        table = self.table()._repr_html_() if self._comparable else ""
        return table + "".join(f"<p>{escape(line)}</p>" for line in lines) or "no runs"

    # -- of the runs ------------------------------------------------------------------------

    @property
    def _comparable(self) -> bool:
        return bool(self._runs) and all(isinstance(run, Run) for run in self._runs)

    def _answers(self, method: str) -> list[Run]:
        if not self._comparable:
            lack = "a pretraining has no answers to compare" if self._runs else "there are no runs"
            raise ConfigError(f"{method}(): {lack}")
        return [run for run in self._runs if isinstance(run, Run)]

    def _one_benchmark(self) -> Benchmark:
        benchmarks, _ = group_runs(self._answers("plot"))
        if len(benchmarks) > 1:
            names = "; ".join(benchmark.label for benchmark in benchmarks)
            raise ConfigError(
                f"plot(): these runs are of {len(benchmarks)} benchmarks ({names}), whose "
                "accuracies do not belong in one figure; choose with filter()"
            )
        return benchmarks[0]

    def _has(self, settings: Mapping[str, Any]) -> Callable[[One], bool]:
        """A test whether a run has these settings."""
        known = {name for run in self._runs for name in flatten(run.config)}
        wanted = {_full(key, known): plain(key, value) for key, value in flatten(settings).items()}

        def passes(run: One) -> bool:
            own = flatten(run.config)
            return all(key in own and _fits(own[key], value) for key, value in wanted.items())

        return passes


def _fits(own: Any, wanted: Any) -> bool:
    """Whether a setting is what was asked for, or a member of it."""
    choices = wanted if isinstance(wanted, list) else []
    return own == listed(wanted) or own in map(listed, choices)


def _full(key: str, known: set[str]) -> str:
    """The whole key that a user means."""
    if key in known or not known:
        return key
    if f"{key}.name" in known:
        return f"{key}.name"
    ending = sorted(name for name in known if name.endswith(f".{key}"))
    if len(ending) > 1:
        raise ConfigError(f"{key} can mean {', '.join(ending)}; give the whole key")
    if not ending:
        raise unknown_name("setting", key, known)
    return ending[0]
