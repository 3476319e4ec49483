"""What this federation learns, and from which data: the file to edit.

It runs on the server and on every node, and must give the same backbone on all of them. As
delivered it is the task of the simulation with the settings in ``pyproject.toml``.
"""

from __future__ import annotations

from protocl.federation.config import FederateConfig
from protocl.federation.deploy.apps import Task
from protocl.federation.deploy.benchmark import benchmark_task


def new_task(config: FederateConfig) -> Task:
    """The task of a run with these settings.

    For data of your own give a ``load`` of your own. It gets Flower's ``Context`` of the node and
    must return :class:`protocl.federation.ClientData`: a list of chunks, of which chunk ``t``
    counts from round ``t + 1`` on (what was counted may not change), perhaps test data, and names
    of the classes where every node numbers them as it likes. A chunk is **features** ``(N, D)``
    float32 as the backbone gives them, with ``D`` the ``feature_dim`` of the task, and labels
    ``(N,)`` int64; samples only with ``method.distribute=true``. From folders of images::

        from functools import partial

        from protocl.backbones import build_backbone
        from protocl.backbones.features import encode_once
        from protocl.data import BenchmarkConfig, load_data
        from protocl.federation import ClientData

        SIZE = 224  # pixels, of both sides


        def new_task(config):
            backbone = partial(build_backbone, config.backbone, (3, SIZE, SIZE), config.seed)

            def load(context):
                folder = str(context.node_config["images"])  # --node-config "images='/data/mine'"
                own = load_data(BenchmarkConfig("image_folder", path=folder, image_size=SIZE))
                own = encode_once(own, backbone(), config.cache)
                chunks, test = [(own.x_train, own.y_train)], (own.x_test, own.y_test)
                return ClientData(chunks, test, class_names=own.class_names)

            return Task(load, backbone, feature_dim=backbone().feature_dim, n_classes=0)

    A protected federation must know all classes: ``Task(..., class_names=NAMES)``, or ``n_classes``
    where they are numbered.
    """
    return benchmark_task(config)
