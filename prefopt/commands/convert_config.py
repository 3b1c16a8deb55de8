"""A TRL config as TRL would read it: whose trainer's it is, types, defaults, and what was read."""

import dataclasses
import json
import sys
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prefopt.commands.convert_tables import CHANGES, LEFT_OUT, OLD_CHANGES, OLD_NAMES
from prefopt.errors import UserError, did_you_mean

TRAINERS = ("dpo", "kto", "cpo", "orpo")

_WITHOUT_EFFECT = "TRL does not read it beside the other keys of this file"

Fields = Mapping[str, "dataclasses.Field[Any]"]


@cache
def trl_fields(trainer: str) -> Fields:
    """The keys that TRL's script of a trainer reads, with their types and defaults."""
    trl: Any = import_module("trl")
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        # Half of the trainers are experimental there, and trl says so at every import. What greets
        # on standard output beside it must not stand in the recipe.
        warnings.simplefilter("ignore")
        from trl.experimental.cpo import CPOConfig
        from trl.experimental.orpo import ORPOConfig
    own = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "cpo": CPOConfig, "orpo": ORPOConfig}
    parts = (own[trainer], trl.ScriptArguments, trl.ModelConfig, trl.DatasetMixtureConfig)
    return {field.name: field for part in parts for field in dataclasses.fields(part)}


class TrlConfig:
    """What a config says, TRL's defaults for the rest, and a list of what cannot be carried over.

    A key that nobody has read when the recipe is written has no effect in TRL either.
    """

    def __init__(self, given: Mapping[str, Any], trainer: str, processes: int) -> None:
        self.trainer = trainer
        self.processes = processes
        self.notes: list[str] = []
        self._problems: list[str] = []
        self._read: set[str] = set()
        self._fields = trl_fields(trainer)
        self._given: dict[str, Any] = {}
        for key, value in given.items():
            self._take(key, value)
        self._look_for_changes()

    def __getitem__(self, key: str) -> Any:
        """What TRL would take for a key."""
        self._read.add(key)
        return self._given[key] if key in self._given else default_of(self._fields[key])

    def __contains__(self, key: str) -> bool:
        """Whether TRL's trainer has such a key."""
        return key in self._fields

    def says(self, key: str) -> bool:
        """Whether the file itself has the key."""
        return key in self._given

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Note that a key stops the conversion; all such keys are said at once.

        Args:
            key: its name; that of a key inside another one has dots.
            value: what it has.
            why: what is missing, without a full stop.
        """
        self._problems.append(
            f"{key}: {value!r}: {why}. Change it, or leave it out knowingly with --skip {key}."
        )

    def leave_out(self, key: str, why: str) -> None:
        """Note that a key is not in the recipe, and why that changes nothing that is learned."""
        self.notes.append(f"left out {key}: {why}.")

    def finish(self) -> None:
        """Note the keys that no section has read.

        Raises:
            UserError: with a line for each key that stops the conversion.
        """
        for key in [key for key in self._given if key not in self._read]:
            is_default = key in self and self._given[key] == default_of(self._fields[key])
            if not is_default:
                self.leave_out(key, LEFT_OUT.get(key, _WITHOUT_EFFECT))
        if self._problems:
            raise UserError("\n".join(self._problems))

    def _take(self, key: str, value: Any) -> None:
        """Keep a value in the type that TRL declares, as its command line reads it."""
        if key in LEFT_OUT:
            self._given[key] = value
        elif key not in self:
            self._problems.append(_unknown(key, self.trainer, self._fields))
        else:
            try:
                self._given[key] = _typed(self._fields[key].type, key, value)
            except ValueError as error:
                self._problems.append(f"{key} {_reason(error)}, got {value!r}. Mend the value.")

    def _look_for_changes(self) -> None:
        for key, change in CHANGES.items():
            is_read = key in self and (change.beside is None or bool(self[change.beside]))
            if is_read and self[key] not in change.neutral:
                self.refuse(key, self[key], change.why)


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a dataclass's field; None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def in_new_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, by the names that they have now.

    Raises:
        UserError: if a key stands there under its old and its new name.
    """
    for old in OLD_NAMES.keys() & given.keys():
        if OLD_NAMES[old] in given:
            raise UserError(
                f"{old} is an earlier name of {OLD_NAMES[old]}, which stands there too. "
                "Remove one of them."
            )
    return {OLD_NAMES.get(key, key): value for key, value in given.items()}


def choose_trainer(given: Mapping[str, Any], losses: Mapping[str, Sequence[str]]) -> str:
    """The trainer whose keys and loss a config has; dpo, if several have them and it is among them.

    Args:
        given: what the config says.
        losses: trainer -> its values of `loss_type`.

    Raises:
        UserError: if no trainer has all of them, or several but not dpo.
    """
    fields = {trainer: trl_fields(trainer) for trainer in TRAINERS}
    signs: dict[str, list[str]] = {}
    for key in given:
        having = [trainer for trainer in TRAINERS if key in fields[trainer]]
        if having and len(having) < len(TRAINERS):
            signs[key] = having
    loss = given.get("loss_type")
    having = [trainer for trainer in TRAINERS if loss in losses[trainer]]
    if having:
        signs.pop("loss_type", None)
        signs[f"loss_type: {loss}"] = having
    fitting = [trainer for trainer in TRAINERS if all(trainer in each for each in signs.values())]
    if "dpo" in fitting or len(fitting) == 1:
        return fitting[0]
    said = ", ".join(f"{key} ({' or '.join(having)})" for key, having in signs.items())
    raise UserError(f"{said}: say which of TRL's trainers it is for, with --trainer.")


def _typed(hint: Any, key: str, value: Any) -> Any:
    if value is False and key.endswith("_strategy"):
        # YAML reads an unquoted `no` as false.
        return "no"
    members = _members(hint)
    if isinstance(value, bool) and bool not in members:
        raise ValueError(f"should not be {str(value).lower()}")
    origins = {typing.get_origin(member) or member for member in members}
    if isinstance(value, str) and value.startswith("{") and dict in origins:
        return json.loads(value)
    if key == "datasets":
        return TypeAdapter(list[dict[str, Any]]).validate_python(value)
    if isinstance(value, str) and list in origins:
        # On TRL's command line one word is a list of one.
        return value
    return TypeAdapter(hint).validate_python(value)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Input ")
    return str(error)


def _unknown(key: str, trainer: str, fields: Fields) -> str:
    way_out = f"leave it out knowingly with --skip {key}"
    if key in OLD_CHANGES:
        return f"{key}: {OLD_CHANGES[key]}. Or {way_out}."
    others = [other for other in TRAINERS if key in trl_fields(other)]
    if others:
        return f"{key}: no key of {trainer}, but of {' and '.join(others)}. Say --trainer."
    near = did_you_mean(key, [*fields, *OLD_NAMES]).partition("Known:")[0]
    return f"{key}: no key of {trainer} in TRL. {near}Remove it, or {way_out}."
