import pytest

from prefopt.errors import UserError
from prefopt.evaluation.judge.section import BACKENDS, read_section

KEY = "sk-do-not-tell-anyone-0123456789"


def test_every_key_is_documented():
    undocumented = [
        f"{backend}.{key}"
        for backend, section in BACKENDS.items()
        for key, field in section.model_fields.items()
        if not field.description
    ]

    assert undocumented == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "judge.backend is missing. Known: decisions"),
        ({"backend": "openai"}, "Did you mean 'openai_chat'"),
        ({"backend": "openai_chat"}, "judge.model is missing"),
        (
            {"backend": "rule", "function": "a:b", "sed": 1},
            "judge.sed: unknown key. Did you mean 'seed'",
        ),
        ({"backend": "systemone", "model": "m", "levels": [2, 1]}, "each above the one before"),
        ({"backend": "systemone", "model": "m", "levels": [1]}, "should be 2 to 26 numbers"),
        ({"backend": "rule", "function": "a:b", "slot_bias": 1}, "Set judge.temperature above 0"),
        (
            {"backend": "openai_chat", "model": "m", "labels": ["A", "A"]},
            "give two different labels",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_key(values, message):
    with pytest.raises(UserError, match=message) as caught:
        read_section(values)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [KEY, "d41d8cd98f00b204e9800998ecf8427e"])
def test_a_key_where_the_name_of_its_variable_belongs_is_refused_and_not_repeated(key):
    for name, message in (
        ("api_key_env", "NAME of an environment variable"),
        ("api_key", "Did you mean 'api_key_env'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_section({"backend": "openai_chat", "model": "m", name: key})
        assert key not in str(caught.value)
