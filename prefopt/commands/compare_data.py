"""What runs are trained on: whether it is still that, and which test prompts are in it."""

import json
from collections.abc import Sequence

import numpy as np

from prefopt.comparison.plan import Run
from prefopt.data.identity import prompt_hash
from prefopt.data.prepare import PreparedData, prepare_data
from prefopt.errors import UserError
from prefopt.evaluation.types import Prompt
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.run_folder import DATA_FILE
from prefopt.types import Message


class TrainingData:
    """The data of runs, each read once; training finds its tokens in the cache."""

    def __init__(self) -> None:
        """Reads nothing yet."""
        self._known: dict[str, PreparedData] = {}

    def check_unchanged(self, runs: Sequence[Run]) -> None:
        """Refuse runs in whose folder another one lies that was trained on other data.

        Raises:
            UserError: for the first such folder.
        """
        for run in runs:
            file = run.folder / DATA_FILE
            if not file.is_file():
                continue
            if json.loads(file.read_text(encoding="utf-8")) != self._of(run).fingerprints:
                raise UserError(
                    f"{run.folder} holds a run on other data: files or the tokenizer have changed "
                    "since. Put them back, give a new output_dir, or remove the folder."
                )

    def num_seen(self, runs: Sequence[Run], prompts: Sequence[Prompt]) -> int:
        """How many of the prompts, up to case and white space, some run is trained on."""
        stores = {id(data): data.train for data in map(self._of, runs)}
        hashes = np.array([_hash(prompt) for prompt in prompts], dtype=np.uint64)
        is_seen = np.zeros(len(hashes), dtype=bool)
        for store in stores.values():
            is_seen |= np.isin(hashes, store.prompt_hashes)
        return int(is_seen.sum())

    def _of(self, run: Run) -> PreparedData:
        recipe = run.recipe
        key = str((recipe.model, recipe.data))
        if key not in self._known:
            self._known[key] = prepare_data(recipe.data, load_tokenizer(recipe.model))
        return self._known[key]


def _hash(prompt: Prompt) -> int:
    """Of the first turn with what is before it, as in records of preferences."""
    said = Message(role="user", content=prompt.turns[0])
    return prompt_hash([*(Message(**each) for each in prompt.context), said])
