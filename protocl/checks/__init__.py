"""Laws that every memory, head and strategy must keep: ours, and those of other packages.

Each check builds what it needs from a factory, uses random data with a seed of its own, and raises
``AssertionError`` with what was violated. A package that brings a head tests it in one line::

    from protocl import checks
    checks.check_head(lambda: MyHead())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.checks.comparison import (
        assert_same,
        sample_batch,
    )
    from protocl.checks.heads import (
        HEAD_CHECKS,
        HeadFactory,
        check_classes,
        check_function_of_memory,
        check_head,
        check_head_copies,
        check_head_random_state,
        check_learns,
        check_merged_equals_centralised,
        check_pure_prediction,
        check_refits_only_on_change,
        check_refusals,
    )
    from protocl.checks.memories import (
        MEMORY_CHECKS,
        MemoryFactory,
        check_bounded_growth,
        check_casting,
        check_copies,
        check_file,
        check_half_precision_input,
        check_input_untouched,
        check_memory,
        check_merge,
        check_random_state,
        check_refused_batch_changes_nothing,
        check_split,
        check_state_dict,
        check_subtract,
    )
    from protocl.checks.strategies import (
        STRATEGY_CHECKS,
        StrategyFactory,
        check_a_class_comes_back,
        check_answers,
        check_continues,
        check_evaluation_changes_nothing,
        check_strategy,
        check_unseen_never_win,
    )

_HOMES = {
    "assert_same": "comparison",
    "sample_batch": "comparison",
    "MEMORY_CHECKS": "memories",
    "MemoryFactory": "memories",
    "check_bounded_growth": "memories",
    "check_casting": "memories",
    "check_copies": "memories",
    "check_file": "memories",
    "check_half_precision_input": "memories",
    "check_input_untouched": "memories",
    "check_memory": "memories",
    "check_merge": "memories",
    "check_random_state": "memories",
    "check_refused_batch_changes_nothing": "memories",
    "check_split": "memories",
    "check_state_dict": "memories",
    "check_subtract": "memories",
    "HEAD_CHECKS": "heads",
    "HeadFactory": "heads",
    "check_classes": "heads",
    "check_function_of_memory": "heads",
    "check_head": "heads",
    "check_head_copies": "heads",
    "check_head_random_state": "heads",
    "check_learns": "heads",
    "check_merged_equals_centralised": "heads",
    "check_pure_prediction": "heads",
    "check_refits_only_on_change": "heads",
    "check_refusals": "heads",
    "STRATEGY_CHECKS": "strategies",
    "StrategyFactory": "strategies",
    "check_a_class_comes_back": "strategies",
    "check_answers": "strategies",
    "check_continues": "strategies",
    "check_evaluation_changes_nothing": "strategies",
    "check_strategy": "strategies",
    "check_unseen_never_win": "strategies",
}

__all__ = [
    "HEAD_CHECKS",
    "MEMORY_CHECKS",
    "STRATEGY_CHECKS",
    "HeadFactory",
    "MemoryFactory",
    "StrategyFactory",
    "assert_same",
    "check_a_class_comes_back",
    "check_answers",
    "check_bounded_growth",
    "check_casting",
    "check_classes",
    "check_continues",
    "check_copies",
    "check_evaluation_changes_nothing",
    "check_file",
    "check_function_of_memory",
    "check_half_precision_input",
    "check_head",
    "check_head_copies",
    "check_head_random_state",
    "check_input_untouched",
    "check_learns",
    "check_memory",
    "check_merge",
    "check_merged_equals_centralised",
    "check_pure_prediction",
    "check_random_state",
    "check_refits_only_on_change",
    "check_refusals",
    "check_refused_batch_changes_nothing",
    "check_split",
    "check_state_dict",
    "check_strategy",
    "check_subtract",
    "check_unseen_never_win",
    "sample_batch",
]

__getattr__ = importer(__name__, _HOMES, ["toy"])
