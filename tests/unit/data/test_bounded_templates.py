"""A template from elsewhere takes neither all memory nor all time; it fails with a sentence."""

from __future__ import annotations

import resource

import pytest

from fedpeft.data.conversations import pack_conversation, tokenize_row
from fedpeft.data.prompt_templates import ENVIRONMENT, PromptTemplate
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import DataError
from tests.refusals import refuses

TOO_LARGE = [
    "{{ x * 10**9 }}",
    "{{ 10**9 * x }}",
    "{{ [x] * 10**9 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ (x * 10**6) ~ (x * 10**10) }}",
]
"""What the sandbox computes in no case."""

OTHERWISE = [
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{% set n = namespace(s=x) %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{{ x.ljust(10**10) }}",
    "{{ x | center(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ (x * 10**6) | replace('a', x * 10**6) }}",
    "{{ x.replace('a', x.ljust(10**6)).replace('a', x.ljust(10**6)) * 10**6 }}",
    "{{ lipsum(n=10**9) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
]
"""Attacks of other shapes: the text that is written, growth step by step, widths, formats, filters, recursion."""


@pytest.fixture
def template(tmp_path):
    def made(text: str) -> PromptTemplate:
        (tmp_path / "own.jinja").write_text(text)
        return PromptTemplate(str(tmp_path / "own.jinja"))

    return made


@pytest.mark.parametrize("text", TOO_LARGE + OTHERWISE)
def test_a_template_without_bounds_is_one_sentence(text, template):
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(DataError, match=r"^FP3102 row 1: the prompt template .*own\.jinja (fails|is not valid)"):
        template(text).format_prompt({"x": "abc"}, "row 1")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    ("text", "prompt"),
    [("{{ x * 3 }}", "abcabcabc"), ("{{ '-' * 20 }}{{ 2 ** 10 }}", "-" * 20 + "1024"), ("{{ 2 * 3.5 }}", "7.0"),
     ("{{ ([1, 2] * 2) | length }}{{ x }}", "4abc"), ("{{ 2 ** -1 }}", "0.5")],
)  # fmt: skip
def test_what_people_write_in_templates_stays(text, prompt, template):
    assert template(text).format_prompt({"x": "abc"}, "row 1") == prompt


def test_a_long_row_is_no_attack(template):
    assert len(template("{{ x }}").format_prompt({"x": "word " * 10**6}, "row 1")) > 10**6


def test_nothing_is_drawn_at_random():
    assert "lipsum" not in ENVIRONMENT.globals


@pytest.mark.parametrize(
    ("bomb", "limit"),
    [("{{ 'x' * 10**10 }}", "1024 MiB"), ("{{ messages[0]['content'].ljust(10**8) }}", "10,000,000")],
)
def test_a_model_s_own_chat_template_is_bounded_too(bomb, limit, chat_model):
    tokenizer = load_tokenizer(chat_model)
    tokenizer.chat_template = bomb
    row = pack_conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "row 1")
    with refuses("FP3023", '[{"role"', limit):
        tokenize_row(tokenizer, row)
