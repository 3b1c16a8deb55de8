"""What an objective sees of a micro-batch, against plain transformers on whole logits."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from peft import PeftModel
from pydantic import PrivateAttr
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedConfig,
)

from prefopt.objectives.base import Needs, Objective
from prefopt.types import ObjectiveInputs, ObjectiveOutput
from tests.support.runs import LORA, run
from tests.support.tiny import character_tokenizer, save_tiny_model, write_jsonl

NUM_TOP = 3
ROWS = [
    {"prompt": "ab:", "responses": ["cd", "e"], "scores": [1.0, 0.0]},
    {"prompt": "f:", "responses": ["ghij", "kl", "k"], "scores": [0.0, 1.0, 1.0]},
    {"prompt": "mnop:", "responses": ["q"], "scores": [0.0]},
]


class Probe(Objective):
    """Keeps what it sees; asks for statistics of the responses that score 0."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "responses"
    needs_tokens: ClassVar[bool] = True
    num_top_logits: ClassVar[int] = NUM_TOP
    needs_reference_distribution: ClassVar[bool] = True
    needs_diff: ClassVar[bool] = True
    name: ClassVar[str] = "probe"

    _seen: list[ObjectiveInputs] = PrivateAttr(default_factory=list)

    def responses_with_statistics(self, scores: Tensor, where: Tensor) -> Tensor:
        return where & (scores == 0)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        if inputs.policy_logps.requires_grad:
            self._seen.append(inputs)
        tokens = inputs.token_inputs()
        per_token = tokens.policy_logps + tokens.top_logps.sum(dim=1) + tokens.reference_kl
        losses = inputs.sum_over_tokens(per_token).sum(dim=1)
        return ObjectiveOutput(
            losses=losses,
            counted=inputs.where.any(dim=1),
            rewards=torch.zeros_like(inputs.policy_logps),
            metrics={},
        )


class Coupled(Probe):
    """Keeps the statistics that it is handed: of a group, the number of its first tokens' ids."""

    needs_tokens: ClassVar[bool] = True
    couples_groups: ClassVar[bool] = True

    def statistic(self, inputs: ObjectiveInputs) -> Tensor:
        tokens = inputs.token_inputs()
        ids = inputs.sum_over_tokens(tokens.labels.to(tokens.policy_logps.dtype))
        return torch.stack([ids.sum(dim=1), inputs.where.sum(dim=1)], dim=1)


class Mismatched(Coupled):
    """The same of prompts with the responses of another group."""

    mismatches_responses: ClassVar[bool] = True


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    save_tiny_model(tmp_path / "other", seed=1)
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    return tmp_path


def probed(folder, objective: Probe, **sections: object) -> list[ObjectiveInputs]:
    """What the objective sees in the one step of a run, by micro-batch."""
    training = {"max_steps": 1, "groups_per_step": 3, "shuffle": False, "optim": "sgd"}
    sections["training"] = {**training, **sections.get("training", {})}
    model = {"path": str(folder / "model"), "dtype": "float64"}
    sections["model"] = {**model, **sections.get("model", {})}
    budget = sections["training"].get("tokens_per_micro_batch")
    run(folder, f"run-{budget}", objective=objective, **sections)
    return objective._seen


def ids_of(text: str) -> list[int]:
    tokenizer = character_tokenizer()
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def expected(model, reference) -> list[dict[str, Tensor]]:
    """The same from logits of every position, one response after the other, in the data's order."""
    found = []
    for row in ROWS:
        for response, score in zip(row["responses"], row["scores"], strict=True):
            prompt, answer = ids_of(row["prompt"]), [*ids_of(response), 1]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                logps, base = (
                    each(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=1)
                    for each in (model, reference)
                )
            target = torch.tensor(answer)
            top = logps.topk(NUM_TOP, dim=1)
            found.append(
                {
                    "score": score,
                    "labels": target,
                    "policy": logps[range(len(answer)), target],
                    "reference": base[range(len(answer)), target],
                    "top_logps": top.values,
                    "top_ids": top.indices,
                    "kl": (base.exp() * (base - logps)).sum(dim=1),
                }
            )
    return found


def in_order(seen: list[ObjectiveInputs]) -> list[dict[str, Tensor]]:
    """What was seen of each response, in the data's order."""
    found = {}
    for inputs in seen:
        tokens, num_slots = inputs.tokens, inputs.where.shape[1]
        for g, k in inputs.where.nonzero().tolist():
            mine = tokens.response == g * num_slots + k
            found["".join(map(chr, tokens.labels[mine]))] = {
                "labels": tokens.labels[mine],
                "policy": tokens.policy_logps[mine].detach(),
                "reference": tokens.reference_logps[mine],
                "top_logps": tokens.top_logps[mine].detach(),
                "top_ids": tokens.top_ids[mine],
                "kl": tokens.reference_kl[mine].detach(),
                "sums": (inputs.policy_logps[g, k].item(), inputs.reference_logps[g, k].item()),
                "noise": tokens.noise[mine],
                "differs": tokens.differs[mine].tolist(),
            }
    order = [[*ids_of(response), 1] for row in ROWS for response in row["responses"]]
    return [found["".join(map(chr, ids))] for ids in order]


@pytest.mark.parametrize("budget", [1, 1000], ids=["one group", "all"])
@pytest.mark.parametrize("kind", ["full", "lora", "lora against another model"])
def test_tokens_are_those_of_plain_transformers(folder, kind, budget):
    sections = {} if kind == "full" else {"adapter": LORA}
    if kind != "lora":
        sections["reference"] = {"path": str(folder / "other")}

    seen = probed(folder, Probe(), training={"tokens_per_micro_batch": budget}, **sections)

    model, other = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64)
        for name in ("model", "model" if kind == "lora" else "other")
    )
    assert len(seen) == (3 if budget == 1 else 1)
    for ours, plain in zip(in_order(seen), expected(model, other), strict=True):
        torch.testing.assert_close(ours["policy"], plain["policy"], rtol=0, atol=1e-10)
        torch.testing.assert_close(ours["reference"], plain["reference"], rtol=0, atol=1e-10)
        assert ours["sums"][0] == pytest.approx(plain["policy"].sum().item(), abs=1e-9)
        assert ours["sums"][1] == pytest.approx(plain["reference"].sum().item(), abs=1e-9)
        if plain["score"] == 0:
            torch.testing.assert_close(ours["top_logps"], plain["top_logps"], rtol=0, atol=1e-10)
            assert torch.equal(ours["top_ids"], plain["top_ids"])
            torch.testing.assert_close(ours["kl"], plain["kl"], rtol=1e-9, atol=1e-11)
        else:
            assert not ours["top_logps"].any()
            assert not ours["kl"].any()


SIZES = {
    "vocab_size": len(character_tokenizer()),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
REFERENCES = {
    "scaled": CohereConfig(**SIZES, logit_scale=0.3),
    "divided": GraniteConfig(**SIZES, logits_scaling=4.0),
    "soft-capped": Gemma2Config(**SIZES, final_logit_softcapping=3.0),
    "with a bias": PhiConfig(**SIZES),
}


def save_reference(path: Path, config: PreTrainedConfig) -> None:
    """Random weights, and a random bias of the projection if it has one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    bias = model.get_output_embeddings().bias
    if bias is not None:
        nn.init.normal_(bias)
    model.save_pretrained(path)
    character_tokenizer().save_pretrained(path)


@pytest.mark.parametrize("config", REFERENCES.values(), ids=REFERENCES)
def test_a_reference_of_another_architecture_keeps_what_that_does_to_logits(folder, config):
    save_reference(folder / "another", config)

    reference = {"path": str(folder / "another")}
    # Padded, since the plain model's own softmax is in float32 where scores are capped.
    (seen,) = probed(folder, Probe(), reference=reference, model={"layout": "padded"})

    model, other = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64)
        for name in ("model", "another")
    )
    assert_sees_the_kl([seen], expected(model, other))


def assert_sees_the_kl(seen: list[ObjectiveInputs], plain: list[dict[str, Tensor]]) -> None:
    """The log-probs of the reference, and its KL where it is asked for and is not nothing."""
    for ours, theirs in zip(in_order(seen), plain, strict=True):
        torch.testing.assert_close(ours["policy"], theirs["policy"], rtol=0, atol=1e-9)
        torch.testing.assert_close(ours["reference"], theirs["reference"], rtol=0, atol=1e-9)
        if theirs["score"] == 0:
            torch.testing.assert_close(ours["kl"], theirs["kl"], rtol=1e-8, atol=1e-10)
            assert theirs["kl"].min() > 1e-4


@pytest.mark.parametrize("goes_on", [False, True], ids=["new", "from a saved one"])
def test_the_reference_of_an_adapter_that_has_learnt_is_its_start(folder, goes_on):
    """Of two steps, the second sees what a run of one step has saved."""
    sections = {"model": {"path": str(folder / "model"), "dtype": "float64"}, "adapter": LORA}
    training = {"groups_per_step": 3, "shuffle": False, "optim": "sgd", "learning_rate": 0.5}
    training["lr_scheduler_type"] = "constant"
    if goes_on:
        run(folder, "start", objective=Probe(), **sections, training={**training, "max_steps": 1})
        sections["adapter"] = {"path": str(folder / "start")}
    objective = Probe()
    run(folder, "one", objective=Probe(), **sections, training={**training, "max_steps": 1})
    run(folder, "two", objective=objective, **sections, training={**training, "max_steps": 2})

    def saved(name: str) -> nn.Module:
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
        return base if name == "model" else PeftModel.from_pretrained(base, folder / name)

    _, second = objective._seen
    assert_sees_the_kl([second], expected(saved("one"), saved("start" if goes_on else "model")))


# In another layout the norms, which are in float32 whatever the rest, round differently.
@pytest.mark.parametrize(("layout", "tolerance"), [("padded", 1e-10), ("shared", 2e-6)])
def test_statistics_carry_the_gradient_of_whole_logits(folder, layout, tolerance):
    objective = Probe()
    reference = {"path": str(folder / "other")}
    trained = run(
        folder,
        objective=objective,
        reference=reference,
        model={"path": str(folder / "model"), "dtype": "float64", "layout": layout},
        training={
            **{"max_steps": 1, "groups_per_step": 3, "optim": "sgd", "learning_rate": 1.0},
            **{"lr_scheduler_type": "constant", "max_grad_norm": 0.0},
        },
    )

    model, other = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64)
        for name in ("model", "other")
    )
    loss = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        for response, score in zip(row["responses"], row["scores"], strict=True):
            prompt, answer = ids_of(row["prompt"]), [*ids_of(response), 1]
            ids = torch.tensor([prompt + answer])
            logps, base = (
                each(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=1)
                for each in (model, other)
            )
            loss = loss + logps[range(len(answer)), torch.tensor(answer)].sum()
            if score == 0:
                loss = loss + logps.topk(NUM_TOP, dim=1).values.sum()
                loss = loss + (base.exp() * (base - logps)).sum()
    (loss / 3).backward()
    for (name, parameter), start in zip(
        trained.model.named_parameters(), model.parameters(), strict=True
    ):
        assert name.endswith("embed_tokens.weight") or start.grad.abs().max() > 0
        torch.testing.assert_close(parameter.data, start.data - start.grad, rtol=0, atol=tolerance)


def test_differing_tokens_reach_the_objective(folder):
    seen = in_order(probed(folder, Probe()))

    # "cd" against "e"; "ghij" is worst, "kl" and "k" share the top; "q" is alone. All end alike.
    assert [each["differs"] for each in seen] == [
        [True, True, False],
        [True, False],
        [True, True, True, True, False],
        [True, True, False],
        [True, False],
        [False, False],
    ]


def test_noise_does_not_depend_on_the_split_but_on_the_step(folder):
    draws = {}
    for budget in (1, 1000):
        training = {"tokens_per_micro_batch": budget, "max_steps": 2}
        seen = probed(folder, Probe(), training=training)
        half = len(seen) // 2
        draws[budget] = [
            torch.cat([each["noise"] for each in in_order(step)])
            for step in (seen[:half], seen[half:])
        ]

    for one, other in zip(draws[1], draws[1000], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*draws[1])


def test_weights_of_tokens_come_from_the_data_and_are_1_where_it_gives_none(folder):
    weighted = {**ROWS[0], "token_weights": [[0.5, 2.0, 3.0], [0.25, 0.0]]}
    write_jsonl(folder / "pairs.jsonl", [weighted, *ROWS[1:]])

    (seen,) = probed(folder, Probe(), training={"tokens_per_micro_batch": 1000})

    by_label = dict(zip(seen.tokens.labels.tolist(), seen.tokens.weights.tolist(), strict=True))
    of = {letter: by_label[ids_of(letter)[0]] for letter in "cdeghijkq"}
    assert of == {"c": 0.5, "d": 2.0, "e": 0.25, **dict.fromkeys("ghijkq", 1.0)}


def test_an_objective_that_couples_groups_sees_the_statistics_of_the_whole_step(folder):
    seen = probed(folder, Coupled(), training={"tokens_per_micro_batch": 1})
    (whole,) = probed(folder, Coupled(), training={"tokens_per_micro_batch": 1000})

    # One row per group in the order of the step: sum of the ids, end of sequence (1) included.
    rows = [
        [float(sum(sum(ids_of(text)) + 1 for text in row["responses"])), len(row["responses"])]
        for row in ROWS
    ]
    assert [inputs.step_statistics.tolist() for inputs in seen] == [rows] * 3
    assert whole.step_statistics is None


def test_mismatched_statistics_are_of_the_next_groups_responses(folder):
    (seen,) = probed(folder, Mismatched(), training={"tokens_per_micro_batch": 1000})

    own = [float(sum(sum(ids_of(text)) + 1 for text in row["responses"])) for row in ROWS]
    # The longest row of the data is "f:ghij" or "mnop:q" with the end, 7 tokens. That leaves 4 to
    # "ab:", so that "ghij" loses its end (1), and 2 to "mnop:", so that "cd" does.
    rows = [(own[1] - 1, 3), (own[2], 1), (own[0] - 1, 2)]
    assert [tuple(row) for row in seen.step_statistics.tolist()] == rows
