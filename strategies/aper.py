"""APER (first called ADAM): SimpleCIL on a backbone as pre-trained and as adapted, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from protocl.config import StrategyInfo
from protocl.strategies.frozen.session import Session
from protocl.strategies.ready_made.recipes import SimpleCIL
from protocl.strategies.simplecil import SimpleCILConfig

SESSION = Session("adapter", classifier="cosine", two_branches=True)


class APER(SimpleCIL):
    """SimpleCIL on a backbone as pre-trained and as adapted, side by side: APER, first called ADAM.

    The backbone is adapted to the first experience under a cosine classifier, then frozen. From
    then on features are those of both, ``2 D`` wide (Zhou et al., Revisiting Class-Incremental
    Learning with Pre-Trained Models, IJCV 2024).

    Stored between experiences: count and mean of each class; no samples. Each sample passes through
    two networks. On the command line: ``strategy=aper strategy.session.adapt=ssf``.

    The authors train with SGD (momentum 0.9, weight decay 5e-4) and a learning rate that falls to
    zero: ``plugins=[EpochSchedule(cosine=True)]``.

    Args:
        session: what the first experience makes of the backbone.
        **settings: those of :class:`.FrozenBackbone` but ``head``.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> session = Session("finetune", two_branches=True)
        >>> strategy = APER(model=model, optimizer=sgd, session=session, first_experience_epochs=1)
        >>> toy.learn(strategy)[0]  # accuracy on the classes of the first experience
        1.0
        >>> strategy.memory.feature_dim  # 16 features of each branch
        32
    """

    def __init__(self, *, session: Session = SESSION, **settings: Any) -> None:
        super().__init__(session=session, **settings)


@dataclass
class APERConfig(SimpleCILConfig):
    """Settings of :class:`APER`; those of the authors for adapters on CIFAR-100.

    Their others: ``ssf`` and ``vpt_shallow`` as for ``adapter``; ``vpt_deep`` with ``lr=0.05``, 5
    epochs and batches of 16; ``finetune`` with 5 epochs and batches of 128. ``finetune`` and ``bn``
    are for convolutional networks too.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="APER",
        paper="Zhou et al., IJCV 2024",
        stored_between_experiences="count and mean of each class, of both branches",
        keeps_data=False,
        bytes_per_class="32 D + 16",
    )

    name: str = "aper"
    first_experience_epochs: int = 20
    session: Session = field(default_factory=lambda: SESSION)
    cosine_schedule: bool = True
    train_mb_size: int = 48
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
