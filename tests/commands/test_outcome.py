"""What a run prints at its end: how numbers moved, where things are, what to type next."""

from pathlib import Path

from rich.console import Console

from prefopt.commands.outcome import print_outcome
from tests.support.runs import LORA, run
from tests.support.tiny import save_tiny_model, write_pairs


def printed(history, folder=Path("runs/first"), *, is_adapter=False) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        print_outcome(history, folder, is_adapter=is_adapter, console=console)
    return capture.get()


def test_first_and_last_tenths_are_averaged_and_the_last_evaluation_stands_beside():
    # 20 lines: a tenth are two. (1 + 0.9) / 2 = 0.95 and (0.2 + 0.1) / 2 = 0.15.
    losses = [1.0, 0.9, *[0.5] * 16, 0.2, 0.1]
    lines = [{"loss": loss, "rewards/accuracies": 1 - loss / 2} for loss in losses]
    evaluations = [{"eval_loss": 0.8}, {"eval_loss": 0.4, "eval_rewards/accuracies": 0.75}]

    rows = [line.split() for line in printed([*lines, *evaluations]).splitlines()]

    assert rows[0] == ["at", "first", "at", "last", "held", "out"]
    assert rows[1] == ["loss", "0.95", "0.15", "0.4"]
    assert rows[2] == ["ranking", "accuracy", "52.5%", "92.5%", "75.0%"]


def test_a_fall_of_chosen_responses_is_said_and_a_rise_is_not():
    down = [{"loss": 1.0, "logps/chosen": -10.0}, {"loss": 0.5, "logps/chosen": -12.5}]

    assert "Chosen responses became less likely, by 2.5 nats." in printed(down)
    assert "less likely" not in printed(down[::-1])


def test_files_are_named_and_commands_can_be_typed_as_they_stand():
    said = printed([{"loss": 1.0}], Path("runs/my run"), is_adapter=True)

    assert "model in runs/my run, curves in runs/my run/curves.png, numbers in" in said
    assert "next: prefopt merge 'runs/my run' 'runs/my run-merged'\n" in said
    assert "prefopt merge" not in printed([{"loss": 1.0}])
    assert "next: prefopt generate runs/first --prompts PROMPTS\n" in printed([{"loss": 1.0}])


def test_a_run_ends_with_it(tmp_path, capsys):
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 8)

    run(tmp_path, adapter=LORA)

    said = capsys.readouterr().out
    assert f"next: prefopt merge {tmp_path / 'run'} {tmp_path / 'run'}-merged" in said
    assert "ranking accuracy" in said
