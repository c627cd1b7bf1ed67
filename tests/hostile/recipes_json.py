"""Headers that are not strict JSON (FORMAT.md §1), correctly signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.hostile.bases import OK, Case, texted

_DEEPEST = 15  # below the header's own object


def _first(member: str | bytes) -> Callable[[str], bytes]:
    """A change that puts this member first."""
    first = member.encode() if isinstance(member, str) else member
    return lambda text: b"{" + first + b", " + text[1:].encode()


def _replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def _whole(whole: str, _: str) -> str:
    return whole


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _repeated_keys()
    yield from _numbers()
    yield from _nesting()
    yield from _strings()
    yield from _encodings()
    yield from _grammar()


def _repeated_keys() -> Iterator[Case]:
    members = {
        "at_the_top": '"version": 3',
        "at_the_top_escaped": r'"\u0076ersion": 2',
        "of_no_meaning": '"x-a": 1, "x-a": 1',
        "within_x": '"x-a": {"b": 1, "b": 1}',
        "within_x_list": '"x-a": [[{"b": 1, "b": 2}]]',
        "empty": '"x-a": {"": 1, "": 2}',
        "within_alignment": '"alignment": {"b": null, "b": null}',
    }
    for name, member in members.items():
        yield texted(f"key_twice_{name}", _first(member))
    for name, key in {"fingerprint": "architecture", "rope": "ropeType", "metadata": "topic"}.items():
        yield texted(f"key_twice_in_{name}", _replaced(f'"{key}":', f'"{key}": "", "{key}":'))
    yield texted(
        "key_twice_in_coding", lambda text: text.replace('"scheme":', '"keyBits": 0, "keyBits": 0, "scheme":')
    )
    yield texted(
        "key_twice_in_a_section", lambda text: text.replace('"layer": 0', '"layer": 0, "layer": 0', 1)
    )


def _numbers() -> Iterator[Case]:
    numbers = {"nan": "NaN", "infinity": "Infinity", "minus_infinity": "-Infinity", "overflow": "1e999"}
    numbers |= {"minus_overflow": "-1e999", "int_2_63": str(2**63), "int_minus_2_63": str(-(2**63))}
    numbers |= {
        "int_2_64": str(2**64),
        "int_of_400_digits": "1" + "0" * 400,
        "int_of_5000_digits": "9" * 5000,
    }
    numbers |= {
        "leading_zero": "02",
        "plus": "+2",
        "no_integer_part": ".5",
        "no_fraction": "2.",
        "hex": "0x2",
    }
    numbers |= {
        "bare_minus": "-",
        "two_points": "1.2.3",
        "exponent_without_digits": "1e",
        "minus_zero_zero": "-00",
    }
    for name, number in numbers.items():
        yield texted(f"number_{name}_in_x", _first(f'"x-a": {number}'))
    for number in ("NaN", "Infinity", "1e400"):
        yield texted(
            f"quality_{number}",
            _replaced('"qualityScore": null', f'"qualityScore": {number}'),
        )
        yield texted(
            f"theta_{number}",
            _replaced('"ropeTheta": 10000.0', f'"ropeTheta": {number}'),
        )
    yield texted("number_int_2_63_less_1_in_x", _first(f'"x-a": {2**63 - 1}'), OK)


def _nesting() -> Iterator[Case]:
    def lists(depth: int) -> str:
        return "[" * depth + "]" * depth

    def objects(depth: int) -> str:
        return '{"a": ' * depth + "1" + "}" * depth

    nested = {"lists": lists(_DEEPEST + 1), "objects": objects(_DEEPEST + 1)}
    nested |= {"mixed": "[" + objects(_DEEPEST) + "]", "200_lists": lists(200), "5000_lists": lists(5000)}
    nested |= {"after_a_string": '["\\\\", "\\"]", ' + lists(_DEEPEST) + "]", "1000_objects": objects(1000)}
    for name, value in nested.items():
        yield texted(f"nested_{name}", _first(f'"x-a": {value}'))
    yield texted("nested_never_closed", lambda text: '{"x-a": ' + "[" * 9000)
    yield texted("nested_in_alignment", _first(f'"alignment": {objects(_DEEPEST + 1)}'))
    strings = {
        "brackets": "[" * 2000,
        "after_a_quote": r"\"" + "[{" * 500,
        "after_a_backslash": "\\\\" + "[" * 99,
    }
    for name, value in strings.items():
        yield texted(f"not_nested_{name}_in_a_string", _first(f'"x-a": "{value}"'), OK)
    yield texted("nested_16_lists", _first(f'"x-a": {lists(_DEEPEST)}'), OK)


def _strings() -> Iterator[Case]:
    members = {
        "high_surrogate": r'"x-a": "\ud800"',
        "low_surrogate": r'"x-a": "\udc00"',
        "surrogates_reversed": r'"x-a": "\udc00\ud800"',
        "surrogate_then_letter": r'"x-a": "\ud800a"',
        "surrogate_in_a_key": r'"x-\udfff": 1',
        "surrogate_deep": r'"x-a": [{"b": ["\ud83d"]}]',
        "surrogate_in_alignment": r'"alignment": {"\udead": 1}',
        "5000_characters": f'"x-a": "{"a" * 5000}"',
        "4097_characters": f'"x-a": "{"a" * 4097}"',
        "4097_characters_deep": f'"x-a": [["{"a" * 4097}"]]',
        "4097_characters_in_a_key": f'"x-{"a" * 4095}": 1',
        "4097_characters_in_alignment": f'"alignment": {{"a": "{"a" * 4097}"}}',
        "raw_newline": '"x-a": "\n"',
        "raw_tab": '"x-a": "\t"',
        "raw_nul": '"x-a": "\0"',
        "raw_unit_separator": '"x-a": "\x1f"',
        "escape_x": r'"x-a": "\x41"',
        "escape_short": r'"x-a": "\u12"',
        "escape_unknown": r'"x-a": "\a"',
        "single_quotes": "'x-a': 1",
        "unquoted_key": "x-a: 1",
    }
    for name, member in members.items():
        yield texted(f"string_{name}", _first(member))
    yield texted("string_of_5000_as_name", lambda text: text.replace('"tiny"', f'"{"a" * 5000}"'))
    kept = {"surrogate_pair": r'"x-a": "\ud83d\ude00"', "4096_characters": f'"x-a": "{"a" * 4096}"'}
    kept |= {"4096_emoji": f'"x-a": "{chr(0x1F600) * 4096}"', "escaped_nul": r'"x-a": "\u0000"'}
    for name, member in kept.items():
        yield texted(f"string_{name}", _first(member), OK)


def _encodings() -> Iterator[Case]:
    yield texted("utf8_bom", lambda text: b"\xef\xbb\xbf" + text.encode())
    for name in ("utf-16", "utf-16-le", "utf-32"):
        yield texted(f"encoded_{name}", partial(str.encode, encoding=name))
    wrong = {
        "ff": b"\xff",
        "overlong_nul": b"\xc0\x80",
        "overlong_slash": b"\xe0\x80\xaf",
        "cut_short": b"\xf0\x9f\x98",
    }
    wrong |= {
        "surrogate": b"\xed\xa0\x80",
        "beyond_unicode": b"\xf4\x90\x80\x80",
        "lone_continuation": b"\x80",
    }
    wrong |= {"latin_1": b"\xe9", "five_bytes": b"\xf8\x88\x80\x80\x80"}
    for name, bad in wrong.items():
        yield texted(f"utf8_{name}", _first(b'"x-a": "' + bad + b'"'))


def _grammar() -> Iterator[Case]:
    wholes = {
        "list": "[]",
        "string": '"AWKG"',
        "null": "null",
        "number": "22",
        "true": "true",
        "nothing": "  ",
    }
    for name, whole in wholes.items():
        yield texted(f"header_is_a_{name}", partial(_whole, whole))
    changes = {
        "in_a_list": lambda text: f"[{text}]",
        "twice": lambda text: text + text,
        "then_garbage": lambda text: text + "x",
        "then_nul": lambda text: text + "\0",
        "then_a_brace": lambda text: text + "}",
        "without_last_brace": lambda text: text[:-1],
        "with_trailing_comma": lambda text: text[:-1] + ",}",
        "with_a_comment": lambda text: text[:-1] + "/* */}",
        "with_a_line_comment": lambda text: "// \n" + text,
        "with_a_no_break_space": lambda text: "\u00a0" + text,
        "with_a_form_feed": lambda text: "\f" + text,
        "with_python_true": lambda text: '{"x-a": True, ' + text[1:],
        "with_undefined": lambda text: '{"x-a": undefined, ' + text[1:],
        "without_a_colon": lambda text: text.replace('"version": 3', '"version" 3'),
        "with_a_lone_comma": lambda text: "{," + text[1:],
    }
    for name, change in changes.items():
        yield texted(f"header_{name}", change)
    yield texted("header_with_blanks_around", lambda text: " \t\r\n" + text + "\n  ", OK)
