"""Makes the example files of this folder: python examples/make.py.

All examples are generated from lists of words:

- reviews.csv: sentences about things, with the class good or bad.
- shops.csv: such sentences as a user's own table might hold them, in columns of other names. Some shops please their
  customers more than others.
- rooms.csv: descriptions of rooms with a rent, a number, and two columns of 0 and 1: is it quiet, is it by the sea.
- conversations.jsonl: sums and differences as questions and answers.
- instructions.jsonl: the same in the columns of instruction data.

The files show the formats and let you try the commands. They are too simple to measure a model's quality.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent

THINGS = ("lamp", "kettle", "chair", "bicycle", "radio", "tent", "clock", "printer", "backpack", "drill")
OPINIONS = {
    "good": ("works well", "is a pleasure to use", "is solid and quick", "was worth its price", "never fails"),
    "bad": ("broke at once", "is a nuisance to use", "is flimsy and slow", "was not worth its price", "always fails"),
}
TIMES = ("after a week", "after a month", "after a year", "every day", "so far", "in the cold", "in the rain")


def reviews(draw: random.Random) -> list[tuple[str, str]]:
    """Return half of all possible texts of each class, with their classes, in random order."""
    found = []
    for label, opinions in OPINIONS.items():
        texts = [f"the {thing} {opinion} {time}" for thing in THINGS for opinion in opinions for time in TIMES]
        found += [(text, label) for text in draw.sample(texts, len(texts) // 2)]
    draw.shuffle(found)
    return found


def shops(draw: random.Random, count: int = 60) -> list[tuple[str, str, str]]:
    """Return sentences, whether they praise the shop, and the shop; 3 to 7 of 10 sentences per shop do."""
    texts = {}
    for verdict, opinions in (("praise", OPINIONS["good"]), ("blame", OPINIONS["bad"])):
        texts[verdict] = [f"the {thing} {opinion} {time}" for thing in THINGS for opinion in opinions for time in TIMES]
        draw.shuffle(texts[verdict])
    found = []
    for shop, tenths in (("Arbor", 3), ("Birch", 4), ("Cedar", 5), ("Dale", 5), ("Elm", 6), ("Fern", 7)):
        verdicts = ["praise"] * (count * tenths // 10) + ["blame"] * (count * (10 - tenths) // 10)
        found += [(texts[verdict].pop(), verdict, shop) for verdict in verdicts]
    draw.shuffle(found)
    return found


ROOMS = {"a room": 300, "two rooms": 520, "three rooms": 760, "a small flat": 640, "a loft": 900}
FLOORS = {"on the ground floor": -40, "on the second floor": 0, "on the third floor": 20, "under the roof": 60}
HAS = {"with a balcony": 70, "with a new kitchen": 90, "with an old stove": -60, "with a shared bath": -110,
       "with a lift": 40, "with high ceilings": 80}  # fmt: skip
PLACES = {"by the sea": (160, 0, 1), "by the harbour, with its cranes": (60, 0, 1), "in a quiet lane": (50, 1, 0),
          "above a busy crossing": (-70, 0, 0), "beside the railway": (-90, 0, 0), "next to the market": (0, 0, 0),
          "in a calm yard behind the church": (30, 1, 0), "on the beach, far from the road": (190, 1, 1)}  # fmt: skip


def rooms(draw: random.Random, count: int = 160) -> list[tuple[str, str, int, int]]:
    """Return distinct descriptions with a noisy rent that depends on their words, and whether quiet and by the sea."""
    every = [(room, floor, has, place) for room in ROOMS for floor in FLOORS for has in HAS for place in PLACES]
    found = []
    for room, floor, has, place in draw.sample(every, count):
        more, quiet, sea = PLACES[place]
        rent = ROOMS[room] + FLOORS[floor] + HAS[has] + more + draw.gauss(0, 25)
        found.append((f"{room} {floor} {has}, {place}", f"{rent:.2f}", quiet, sea))
    return found


def conversations(draw: random.Random, count: int = 200) -> list[list[dict[str, str]]]:
    """Return conversations about sums and differences of numbers below 50."""
    found = []
    for _ in range(count):
        a, b = sorted((draw.randrange(50), draw.randrange(50)), reverse=True)
        word, result = draw.choice((("plus", a + b), ("minus", a - b)))
        asked, answered = f"What is {a} {word} {b}?", f"{a} {word} {b} is {result}."
        found.append([{"role": "user", "content": asked}, {"role": "assistant", "content": answered}])
    return found


def instructions(messages: list[list[dict[str, str]]]) -> list[dict[str, str]]:
    """Return conversations with one question each as instruction, input and output."""
    return [{"instruction": asked["content"], "input": "", "output": said["content"]} for asked, said in messages]


def main(folder: Path = FOLDER) -> None:
    """Write all files."""
    draw = random.Random(0)
    with (folder / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *reviews(draw)])
    with (folder / "shops.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [("comment", "verdict", "shop"), *shops(random.Random(1))]
        csv.writer(file, lineterminator="\n").writerows(rows)
    with (folder / "rooms.csv").open("w", encoding="utf-8", newline="") as file:
        rows_of_rooms = [("description", "rent", "quiet", "sea"), *rooms(random.Random(2))]
        csv.writer(file, lineterminator="\n").writerows(rows_of_rooms)
    made = conversations(draw)
    lines = [json.dumps({"messages": messages}) + "\n" for messages in made]
    (folder / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in instructions(made)]
    (folder / "instructions.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
