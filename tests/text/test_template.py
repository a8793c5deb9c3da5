"""Foreign chat templates run in a sandbox: they write text, and that is all they can do."""

import pytest

from etude.errors import EtudeError
from etude.text import chat, template

USER = [{"role": "user", "content": "hi"}]


def test_a_foreign_template_sees_the_conversation_as_transformers_shows_it():
    source = (
        "{% for m in messages if m.role == 'user' %}\n"
        "    {% if loop.first %}\n{{ m['content'].strip() | upper }}\n{% endif %}\n"
        "{% endfor %}\n{{ tools | tojson }}{% if add_generation_prompt %}>{% endif %}"
    )
    tools = [{"name": "é", "n": 1}]
    text = chat.render_template(source, USER, tools=tools, generation_prompt=True)
    assert text == 'HI\n[{"name": "é", "n": 1}]>'


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{% for m in messages %}{{ m.update({'role': 'system'}) }}{% endfor %}",
        "{% for m in messages %}{{ m.pop('role') }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_that_reaches_further_is_stopped(source):
    messages = [dict(USER[0])]
    with pytest.raises(EtudeError, match="chat template"):
        template.render_template(source, messages)
    assert messages == USER


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10000) %}{{ 'x' }}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ 'x' | center(10000000000) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ 'x' }}" + " " * template.SOURCE_MAX,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_writes_or_counts_without_end_is_stopped(source, monkeypatch):
    monkeypatch.setattr(template, "LETTERS_MAX", 9999)
    with pytest.raises(EtudeError, match="chat template"):
        template.render_template(source, [])


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 1 / 0 }}", "{{ raise_exception('roles must alternate') }}"]
)
def test_a_broken_template_or_its_own_complaint_is_one_line(source):
    with pytest.raises(EtudeError) as error:
        template.render_template(source, [])
    assert "\n" not in str(error.value)


def test_a_template_asked_for_string_arguments_says_so_instead_of_writing_them_wrong():
    """Inside etude they are parsed first; transformers hands them to the template as they are."""
    source = chat.FORMATS["glm45"].template()
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    with pytest.raises(EtudeError, match="not a string of JSON"):
        template.render_template(
            source, [{"role": "assistant", "content": "", "tool_calls": [call]}]
        )
