"""Generated office tasks with one right answer each: instruction data of twelve types; each type is an owner.

A question states the request in plain words ("Which costs least: tea 4.20, cake 3.10, soup 5.90?"). The answer is the
result alone ("cake"). An untuned model adds words around it, so exact match shows what tuning taught. Test questions
have the same types and do not occur in the training examples. Nothing is fetched, and no license applies.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.conversations import pack_conversation
from fedpeft.data.rows import Dataset, Rows
from fedpeft.parts import setting

ORDER = "Answer with the result alone."
"""System message before each question."""

THINGS = (
    *("apple", "bread", "candle", "desk", "envelope", "folder", "glue", "hammer", "ink", "jacket", "kettle", "lamp"),
    *("mirror", "needle", "orange", "pencil", "quilt", "ruler", "soap", "table", "umbrella", "vase", "wallet", "yarn"),
)
FIRST = ("Anna", "Bruno", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Maria", "Oscar")
LAST = ("Berger", "Costa", "Dalton", "Eriksen", "Fischer", "Garcia", "Hansen", "Kowalski", "Lopez", "Moreau", "Novak")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
EVENTS = ("budget", "chess", "choir", "cleaning", "interview", "lunch", "payroll", "review", "training", "yoga")
BODIES = ("Agency", "Bureau", "Council", "Institute", "League", "Office", "Society", "Union")
FIELDS = ("Animal", "Bridge", "Climate", "Energy", "Food", "Health", "Music", "Ocean", "Travel", "Water")
REGIONS = ("African", "Baltic", "Central", "European", "Global", "Nordic", "Pacific", "Western")

Task = tuple[str, str]
"""A question and its answer."""


def _join_words(words: list[str]) -> str:
    return ", ".join(words)


def _draw_acronym(draw: random.Random) -> Task:
    words = [draw.choice(REGIONS), draw.choice(FIELDS), draw.choice(BODIES)]
    return f"What is the acronym of {' '.join(words)}?", "".join(word[0] for word in words)


def _draw_capitals(draw: random.Random) -> Task:
    words = draw.sample(THINGS, 2)
    return f"Write in capital letters: {' '.join(words)}", " ".join(words).upper()


def _draw_cheapest(draw: random.Random) -> Task:
    things, prices = draw.sample(THINGS, 3), draw.sample(range(110, 990, 10), 3)
    offers = [f"{thing} {price / 100:.2f}" for thing, price in zip(things, prices, strict=True)]
    return f"Which costs least: {_join_words(offers)}?", things[prices.index(min(prices))]


def _draw_count(draw: random.Random) -> Task:
    things = draw.sample(THINGS, draw.randint(2, 6))
    return f"How many things are on the list: {_join_words(things)}?", str(len(things))


def _draw_date(draw: random.Random) -> Task:
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1990, 2029)
    return f"Write {day} {MONTHS[month - 1]} {year} as YYYY-MM-DD.", f"{year}-{month:02}-{day:02}"


def _draw_email(draw: random.Random) -> Task:
    first, last = draw.choice(FIRST), draw.choice(LAST)
    address = f"{first}.{last}@{draw.choice(FIELDS)}.example".lower()
    return f"Find the e-mail address: {first} left, so write to {address} by {draw.choice(WEEKDAYS)}.", address


def _draw_invoice(draw: random.Random) -> Task:
    number, sum_ = f"INV-{draw.randint(1000, 9999)}", draw.randint(20, 900)
    return (
        f"Find the invoice: {draw.choice(LAST)} has paid {sum_} euros for {number} on {draw.choice(WEEKDAYS)}.",
        number,
    )


def _draw_largest(draw: random.Random) -> Task:
    numbers = draw.sample(range(10, 99), 3)
    return f"Which number is largest: {_join_words(list(map(str, numbers)))}?", str(max(numbers))


def _draw_name(draw: random.Random) -> Task:
    first, middle, last = draw.choice(FIRST), draw.choice(FIRST), draw.choice(LAST)
    return f"Write the last name first: {first} {middle} {last}", f"{last}, {first} {middle}"


def _draw_reversal(draw: random.Random) -> Task:
    things = draw.sample(THINGS, 3)
    return f"Reverse the list: {_join_words(things)}", _join_words(things[::-1])


def _draw_sorting(draw: random.Random) -> Task:
    things = draw.sample(THINGS, 3)
    return f"Sort by alphabet: {_join_words(things)}", _join_words(sorted(things))


def _draw_timetable(draw: random.Random) -> Task:
    days, events = draw.sample(WEEKDAYS, 3), draw.sample(EVENTS, 3)
    plan = [f"{day} {event}" for day, event in zip(days, events, strict=True)]
    asked = draw.randrange(3)
    return f"The plan: {_join_words(plan)}. What is on {days[asked]}?", events[asked]


KINDS: dict[str, Callable[[random.Random], Task]] = {
    "acronyms": _draw_acronym,
    "capitals": _draw_capitals,
    "counts": _draw_count,
    "dates": _draw_date,
    "e-mails": _draw_email,
    "invoices": _draw_invoice,
    "names": _draw_name,
    "numbers": _draw_largest,
    "prices": _draw_cheapest,
    "reversals": _draw_reversal,
    "sorting": _draw_sorting,
    "timetables": _draw_timetable,
}
"""Each owner's function that draws a question and its answer."""


@dataclass(frozen=True)
class Office:
    """Generated office tasks of twelve types, with one right answer each."""

    rows: int = setting(40, "training examples of each type", low=2, high=200)
    test_rows: int = setting(8, "test examples of each type", low=1, high=100)
    seed: int = setting(0, "seed of the examples; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return examples of one question and its answer each, type by type."""
        train, test = [], []
        for kind, draw in KINDS.items():
            generator = random.Random(f"office {self.seed} {kind}")
            tasks: dict[str, str] = {}
            while len(tasks) < self.rows + self.test_rows:
                question, answer = draw(generator)
                tasks.setdefault(question, answer)
            rows = [(_pack_conversation(*task), kind) for task in tasks.items()]
            train += rows[: self.rows]
            test += rows[self.rows :]
        return Dataset(
            name="office",
            kind="text",
            task="instruction",
            train=Rows([text for text, _ in train], None, np.array([kind for _, kind in train])),
            test=Rows([text for text, _ in test], None, np.array([kind for _, kind in test])),
            label_names=None,
            default_model="smollm2",
        )


def _pack_conversation(question: str, answer: str) -> str:
    roles = (("system", ORDER), ("user", question), ("assistant", answer))
    return pack_conversation([{"role": role, "content": content} for role, content in roles], question)


part = Office
