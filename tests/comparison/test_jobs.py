from dataclasses import replace

import pytest

from prefopt.comparison.jobs import reads_cache, records_needed
from prefopt.comparison.plan import Run, Setting
from tests.support.runs import recipe


def run_of(folder, **sections) -> Run:
    setting = Setting(method="dpo", number=0, values={})
    return Run(setting=setting, seed=0, recipe=recipe(folder, **sections), is_alone=True)


def test_a_float64_reference_is_computed_anew_in_every_step(tmp_path):
    run = run_of(tmp_path)
    model = run.recipe.model.model_copy(update={"dtype": "float64"})

    assert reads_cache(run)
    wide = replace(run, recipe=run.recipe.model_copy(update={"model": model}))
    assert not reads_cache(wide)


@pytest.mark.parametrize(
    ("training", "needed"),
    [
        # 3 steps of 4 groups.
        ({"max_steps": 3, "groups_per_step": 4}, 12),
        ({"max_steps": 30, "groups_per_step": 4}, 60),
        # A quarter of an epoch, and two of them.
        ({"max_steps": -1, "num_train_epochs": 0.25}, 15),
        ({"max_steps": -1, "num_train_epochs": 2}, 60),
    ],
)
def test_a_run_alone_needs_the_reference_of_what_it_trains_on(tmp_path, training, needed):
    assert records_needed(run_of(tmp_path, training=training), 60) == needed
