"""The only place that touches LAVIS's registry."""

import importlib.util

from lavis_peft.errors import UserError

#: Names that the plugin brings to LAVIS 1.0.2 and LAVIS main has itself.
_IN_LAVIS_MAIN = ("constant_lr",)


def register() -> None:
    """Import LAVIS with the plugin's names registered. Idempotent.

    Raises:
        UserError: LAVIS isn't installed.
    """
    if importlib.util.find_spec("lavis") is None:
        raise UserError(
            "LAVIS isn't installed; install it beside the plugin without its 2023 pins: "
            "pip install --no-deps salesforce-lavis==1.0.2"
        )
    import lavis  # noqa: F401  the import hook registers the names

    register_names()


def register_names() -> None:
    """Add every name of the plugin to LAVIS's registry, once; ``lavis`` must be loaded."""
    import lavis.common.optims  # noqa: F401  LAVIS's own schedules first: it refuses a name that is there already
    from lavis.common.registry import registry

    from lavis_peft import datasets, models, processors, runners, tasks

    tables = [
        (registry.mapping["model_name_mapping"], registry.register_model, models.MODELS),
        (registry.mapping["task_name_mapping"], registry.register_task, tasks.TASKS),
        (registry.mapping["builder_name_mapping"], registry.register_builder, datasets.BUILDERS),
        (registry.mapping["processor_name_mapping"], registry.register_processor, processors.PROCESSORS),
        (registry.mapping["runner_name_mapping"], registry.register_runner, runners.RUNNERS),
        (registry.mapping["lr_scheduler_name_mapping"], registry.register_lr_scheduler, runners.SCHEDULES),
    ]
    for known, add, table in tables:
        for name, cls in table.items():
            if name not in known or (known[name] is not cls and name not in _IN_LAVIS_MAIN):
                add(name)(cls)  # LAVIS raises where another plugin has the name
