"""docs/recipes.md is what the recipes' files say."""

import pytest

from tests.support.scripts import script

SCRIPT = script("make_recipe_index")


@pytest.fixture(scope="module")
def written() -> str:
    return SCRIPT.PAGE.read_text(encoding="utf-8")


def row(page: str, name: str) -> list[str]:
    (line,) = (line for line in page.splitlines() if line.startswith(f"| [{name}]("))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_current(written: str):
    # `make docs` writes it anew.
    assert written == SCRIPT.page()


def test_the_page_links_every_recipe_once(written: str):
    folders = {path.parent.name for path in SCRIPT.BOOK.glob("*/*.yaml")} - {"accelerate"}

    assert {path.parent.name for path in SCRIPT.paths()} == folders
    for path in SCRIPT.paths():
        assert written.count(f"(../recipes/{path.relative_to(SCRIPT.BOOK)})") == 1


def test_rows_say_how_a_recipe_trains(written: str):
    assert row(written, "dpo/llama-3.1-8b-instruct_qlora") == [
        "[dpo/llama-3.1-8b-instruct_qlora](../recipes/dpo/llama-3.1-8b-instruct_qlora.yaml)",
        "meta-llama/Llama-3.1-8B-Instruct",
        "[`dpo`](objectives.md#dpo)",
        "trl-lib/ultrafeedback_binarized",
        "QLoRA, rank 128",
        "32",
        "5e-6",
        "1 epoch",
        "1 x 14 GiB",
        "34,000",
    ]
    assert row(written, "npo/llama-3.2-1b-tofu_full")[3:8] == [
        "locuslab/TOFU forget10<br>locuslab/TOFU retain90",
        "full",
        "32",
        "1e-5",
        "125 steps",
    ]


def test_rows_say_where_one_gpu_is_not_enough(written: str):
    assert row(written, "dpo/zephyr-7b_full")[8] == "2 x 67 GiB"
