"""Written steps for questions of reasoning-gym: how a careful person would get the answer.

Each writer takes the generator's metadata and returns lines that end in the answer's value.
"""

from collections.abc import Callable, Mapping
from typing import Any

Meta = Mapping[str, Any]
SIGN = " \u00d7 "  # as the generator asks for it


def _chain_sum(meta: Meta) -> str:
    first, *rest = meta["expression"].split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        value = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {value}")
        total = value
    return "\n".join(lines)


def _euclid(a: int, b: int) -> tuple[list[str], int]:
    lines = []
    a, b = max(a, b), min(a, b)
    while b:
        lines.append(f"{a} = {a // b} x {b} + {a % b}")
        a, b = b, a % b
    return [*lines, f"the last divisor is {a}"], a


def _gcd(meta: Meta) -> str:
    numbers = meta["numbers"]
    lines, value = [], numbers[0]
    for other in numbers[1:]:
        more, value = _euclid(value, other)
        lines += more
    return "\n".join(lines)


def _lcm(meta: Meta) -> str:
    numbers = meta["numbers"]
    lines, value = [], numbers[0]
    for other in numbers[1:]:
        more, shared = _euclid(value, other)
        result = value * other // shared
        lines += [*more, f"{value} x {other} / {shared} = {result}"]
        value = result
    return "\n".join(lines)


def _products(meta: Meta) -> str:
    first, *rest = (int(part) for part in meta["expression"].split("*"))
    lines, total = [], first
    for factor in rest:
        parts = [int(d) * 10**i for i, d in enumerate(reversed(str(factor))) if d != "0"] or [0]
        lines += [f"{total} x {part} = {total * part}" for part in parts]
        terms = " + ".join(str(total * part) for part in parts)
        lines += [f"{terms} = {total * factor}"] if len(parts) > 1 else []
        total *= factor
    return "\n".join(lines)


def _count_bits(meta: Meta) -> str:
    number, bits, lines = int(meta["number"]), 0, []
    while number:
        bits += number % 2
        lines.append(f"{number} = 2 x {number // 2} + {number % 2}, ones {bits}")
        number //= 2
    return "\n".join(lines)


def _letters(meta: Meta) -> str:
    letter, total, lines = meta["target_letter"], 0, []
    for word in meta["span"]:
        total += word.lower().count(letter)
        lines.append(f"{word}: {word.lower().count(letter)}, so far {total}")
    return "\n".join(lines)


def _backward(meta: Meta) -> str:
    letters = list(meta["word"])
    return f"{' '.join(letters)}\n{' '.join(reversed(letters))}\n{''.join(reversed(letters))}"


def _primes(meta: Meta) -> str:
    number, lines = int(meta["number"]), []
    for factor in meta["factors"]:
        lines.append(f"{number} / {factor} = {number // factor}")
        number //= factor
    return "\n".join([*lines, SIGN.join(map(str, meta["factors"]))])


def _fraction(meta: Meta) -> str:
    top, bottom = int(meta["numerator"]), int(meta["denominator"])
    lines, shared = _euclid(top, bottom)
    divided = [f"{n} / {shared} = {n // shared}" for n in (top, bottom)]
    return "\n".join([*lines, *divided, f"{top // shared}/{bottom // shared}"])


STEPS: dict[str, Callable[[Meta], str]] = {
    "rg:chain_sum": _chain_sum,
    "rg:count_bits": _count_bits,
    "rg:fraction_simplification": _fraction,
    "rg:gcd": _gcd,
    "rg:lcm": _lcm,
    "rg:letter_counting": _letters,
    "rg:prime_factorization": _primes,
    "rg:products": _products,
    "rg:spell_backward": _backward,
}
