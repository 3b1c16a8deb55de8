"""curves.png: drawn from whatever a run has logged; a clear word where that is nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from prefopt.errors import UserError
from prefopt.train.plots import plot_curves


def training_line(step: int) -> dict[str, float]:
    return {
        "step": step,
        "epoch": step / 100,
        "loss": 0.69 - step / 1000,
        "grad_norm": 2.0,
        "learning_rate": 5e-5,
        "rewards/chosen": step / 100,
        "rewards/rejected": -step / 100,
        "rewards/margins": step / 50,
        "rewards/accuracies": 0.75,
        "logps/chosen": -40.0,
        "logps/rejected": -50.0,
    }


def evaluation_line(step: int) -> dict[str, float]:
    of_training_alone = ("step", "epoch", "grad_norm", "learning_rate")
    line = {k: v for k, v in training_line(step).items() if k not in of_training_alone}
    return {"step": step, **{f"eval_{key}": value for key, value in line.items()}}


def write(folder: Path, lines: list[dict[str, float]]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def drawn(folder: Path, lines: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure that was saved to curves.png, after a look at the file."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot_curves(write(folder, lines), folder / "curves.png")
    pixels = imread(folder / "curves.png")[..., :3]
    assert np.ptp(pixels) > 0.5
    return figures[0]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def legend(figure: Figure, title: str) -> list[str]:
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_run_with_everything_gets_six_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [training_line(step) for step in range(1, 60)] + [evaluation_line(30)]

    figure = drawn(tmp_path, lines, monkeypatch)

    assert titles(figure) == [
        "Loss",
        "Implicit rewards",
        "Ranking accuracy",
        "Log-probs of the responses",
        "Gradient norm, before clipping",
        "Learning rate",
    ]
    assert legend(figure, "Implicit rewards") == ["chosen", "rejected", "margin", "evaluation"]
    assert legend(figure, "Learning rate") == ["training"]


def test_panels_without_data_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [{"step": 1, "loss": 3.0, "logps/mean": -40.0}, {"step": 2, "loss": math.nan}]

    figure = drawn(tmp_path, lines, monkeypatch)

    assert titles(figure) == ["Loss", "Log-probs of the responses"]
    assert legend(figure, "Log-probs of the responses") == ["K = 1"]


def test_one_line_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure = drawn(tmp_path, [training_line(5)], monkeypatch)

    curve = figure.axes[0].get_lines()[0]
    assert list(curve.get_xdata()) == [5]
    assert curve.get_marker() == "o"


def test_evaluation_alone_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure = drawn(tmp_path, [evaluation_line(10), evaluation_line(20)], monkeypatch)

    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [10, 20]
    assert legend(figure, "Loss") == ["evaluation"]


def test_a_straight_line_is_its_own_running_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [{"step": step, "loss": 2.0 * step} for step in range(1, 101)]

    figure = drawn(tmp_path, lines, monkeypatch)

    raw, mean = figure.axes[0].get_lines()
    np.testing.assert_allclose(mean.get_ydata(), raw.get_ydata(), rtol=1e-12)


@pytest.mark.parametrize("lines", [[], [{"step": 10, "train_runtime": 3.0}], [{"loss": 1.0}]])
def test_nothing_to_draw_is_said_with_the_way_out(tmp_path: Path, lines: list[dict[str, float]]):
    path = write(tmp_path, lines)

    with pytest.raises(UserError, match=r"metrics\.jsonl: no metrics to draw.*logging_steps"):
        plot_curves(path, tmp_path / "curves.png")

    assert not (tmp_path / "curves.png").exists()


def test_a_broken_line_is_named_by_its_number(tmp_path: Path):
    path = write(tmp_path, [training_line(1)])
    path.write_text(path.read_text() + '{"step": 2, "lo', encoding="utf-8")

    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of JSON"):
        plot_curves(path, tmp_path / "curves.png")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot read the metrics, No such file"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
