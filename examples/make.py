"""Makes the example files of this folder: python examples/make.py.

Real examples:

- functions.csv: names of Python functions with descriptions. A description matches its function, or belongs to another
  function of the same package. Owners are packages. `NOTICE.md` has the packages, their versions and the license.
- diabetes.csv: ten measured values of a patient as a sentence, and the progression of the disease a year later. The
  data are those of scikit-learn (Efron et al., Annals of Statistics 32, 2004).

Examples that are generated from lists of words:

- shops.csv: sentences about things as a user's own table might hold them, in columns of other names. Some shops please
  their customers more than others.
- rooms.csv: descriptions of rooms with a rent, a number, and two columns of 0 and 1: is it quiet, is it by the sea.
- conversations.jsonl: sums and differences as questions and answers.
- instructions.jsonl: the same in the columns of instruction data.
- office_choices.jsonl: the test questions of the dataset office with four choices each. The three wrong ones are right
  answers to other questions of the same type, those that share most words with the question.
- next_words.jsonl: which of four invented words comes next in a test text of the dataset tiny_lm(test_rows=20)?
- leaf/sent140: the sentences about things as tweets, in the files of LEAF. The shops are the users.
- fedllm_bench/Fed-Aya: the sums and differences of three clients, in the file of FedLLM-Bench.
- glue/CoLA: sentences in the files of GLUE's CoLA; in half of them, two neighboring words are exchanged.
- legalbench/abercrombie: marks for products in the files of LegalBench's task; a mark is the product, another product
  or an invented word.
- medqa/US/4_options: complaints in the files of MedQA; the right option is the part of the body that the question
  names.

Generated files show the formats and let you try the commands. They are too simple to measure a model's quality.
"""

from __future__ import annotations

import ast
import csv
import json
import random
import re
from pathlib import Path

from sklearn.datasets import load_diabetes

from fedpeft.data.datasets.code_search import SECTION
from fedpeft.data.datasets.code_types import PACKAGES, Package, compute_digest
from fedpeft.data.made_words import WORDS
from fedpeft.data.python_functions import SourceFile, read_modules
from fedpeft.data.rows import load_dataset

FOLDER = Path(__file__).parent

OWNERS = tuple(package for package in PACKAGES if package.license_id == "MIT")
"""Packages of functions.csv."""

PAIRS = 25
"""Matches of a package, and as many mismatches."""

LENGTHS = (4, 30)
"""Fewest and most words of a description."""


def find_descriptions(package: Package) -> list[tuple[str, str]]:
    """Return names and descriptions of public functions, each name and description once, in order of their hashes."""
    names: dict[str, str] = {}
    for _, source in read_modules(package.asset.fetch()):
        file = SourceFile.parse(source)
        for definition in file.definitions if file else ():
            description = " ".join(SECTION.split(ast.get_docstring(definition) or "")[0].split())
            is_public = not definition.name.startswith(("_", "test"))
            fits = LENGTHS[0] <= len(description.split()) <= LENGTHS[1]
            is_readable = fits and "?" not in description  # was no ASCII
            if is_public and is_readable and description not in names.values():
                names.setdefault(definition.name, description)
    return sorted(names.items(), key=lambda pair: compute_digest(f"{package.name}/{pair[0]}"))


def pair_descriptions(package: Package) -> list[tuple[str, str, str]]:
    """Return texts, labels and owners, half of them matches.

    A mismatch takes its name from one function and its description from another. No function is in two examples, so no
    example gives the label of another.
    """
    functions = find_descriptions(package)
    matches, named, described = (functions[start : start + PAIRS] for start in (0, PAIRS, 2 * PAIRS))
    pairs = [(name, description, "match") for name, description in matches]
    pairs += [(name, text, "mismatch") for (name, _), (_, text) in zip(named, described, strict=True)]
    return [(f"{name.replace('_', ' ')}: {text}", label, package.name) for name, text, label in pairs]


def write_functions(folder: Path) -> None:
    """Write functions.csv; the first use fetches the packages."""
    by_text = {row[0]: row for package in OWNERS for row in pair_descriptions(package)}  # a text stands once
    rows = [by_text[text] for text in sorted(by_text, key=compute_digest)]
    with (folder / "functions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label", "owner"), *rows])


THINGS = ("lamp", "kettle", "chair", "bicycle", "radio", "tent", "clock", "printer", "backpack", "drill")
OPINIONS = {
    "good": ("works well", "is a pleasure to use", "is solid and quick", "was worth its price", "never fails"),
    "bad": ("broke at once", "is a nuisance to use", "is flimsy and slow", "was not worth its price", "always fails"),
}
TIMES = ("after a week", "after a month", "after a year", "every day", "so far", "in the cold", "in the rain")


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


CHOICES = 4
"""Choices of a question in office_choices.jsonl."""


def split_words(text: str) -> set[str]:
    """Return the words and numbers of a text, in small letters."""
    return set(re.findall(r"[\w.]*\w", text.lower()))


def choose_answers(draw: random.Random) -> list[dict[str, object]]:
    """Return the test questions of the dataset office with their choices; the last message is the right one."""
    office = load_dataset("office")
    answers: dict[str, dict[str, None]] = {}
    for text, kind in zip(office.train.inputs, office.train.owners, strict=True):
        answers.setdefault(str(kind), {})[json.loads(text)[-1]["content"]] = None
    found: list[dict[str, object]] = []
    for text, kind in zip(office.test.inputs, office.test.owners, strict=True):
        messages = json.loads(text)
        right = messages[-1]["content"]
        wrong = [answer for answer in answers[str(kind)] if answer != right]
        draw.shuffle(wrong)
        asked = split_words(messages[-2]["content"])
        wrong.sort(key=lambda answer: -len(split_words(answer) & asked))
        choices = [right, *wrong[: CHOICES - 1]]
        draw.shuffle(choices)
        found.append({"messages": messages, "choices": choices})
    draw.shuffle(found)
    return found


def continue_texts(draw: random.Random) -> list[dict[str, object]]:
    """Return test texts of tiny_lm without their last word, which is the right choice; the others are drawn."""
    found: list[dict[str, object]] = []
    for text in load_dataset("tiny_lm(test_rows=20)").test.inputs:
        *words, right = str(text).split()
        choices = [right, *draw.sample([word for word in WORDS if word != right], CHOICES - 1)]
        draw.shuffle(choices)
        found.append({"question": " ".join(words), "choices": choices, "answer": choices.index(right)})
    draw.shuffle(found)
    return found


def write_tweets(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    """Write sentences as the files of LEAF's Sent140; a fifth of each user's are for test."""
    users = sorted({shop for _, _, shop in rows})
    tweets: dict[str, list[tuple[list[str], int]]] = {user: [] for user in users}
    for number, (text, verdict, shop) in enumerate(rows):
        fields = [str(number), "Mon Jan 01 00:00:00 UTC 2024", "NO_QUERY", shop, text]
        tweets[shop].append((fields, int(verdict == "praise")))
    for split in ("train", "test"):
        parts = {user: made[:-12] if split == "train" else made[-12:] for user, made in tweets.items()}
        user_data = {user: {"x": [x for x, _ in made], "y": [y for _, y in made]} for user, made in parts.items()}
        content = {"users": users, "num_samples": [len(made) for made in parts.values()], "user_data": user_data}
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / f"all_data_niid_0_keep_0_{split}_8.json").write_text(json.dumps(content), encoding="utf-8")


def write_clients(file: Path, messages: list[list[dict[str, str]]]) -> None:
    """Write conversations with one question each as a file of FedLLM-Bench with three clients."""
    records = [{"instruction": asked["content"], "response": said["content"]} for asked, said in messages]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {f"client_{k}": records[k::3] for k in range(3)}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


PEOPLE = ("the old captain", "my neighbor", "a young painter", "the tall nurse", "our teacher", "the shy baker")
ACTS = ("reads", "sells", "repairs", "paints", "forgets", "carries")
OBJECTS = ("a long letter", "the red bicycle", "a broken clock", "the wooden boat", "an empty bottle", "the heavy drum")
WHEN = ("every morning", "after the storm", "in the garden", "with great care")


def write_cola(folder: Path, draw: random.Random) -> None:
    """Write sentences as GLUE's files of CoLA, without names of columns; wrong ones have two words exchanged."""
    every = [f"{who} {act} {what} {when}" for who in PEOPLE for act in ACTS for what in OBJECTS for when in WHEN]
    lines = []
    for number, sentence in enumerate(draw.sample(every, 320)):
        words = sentence.split()
        if number % 2:
            at = draw.randrange(len(words) - 1)
            words[at : at + 2] = words[at + 1], words[at]
        lines.append(f"made\t{1 - number % 2}\t{'*' * (number % 2)}\t{' '.join(words).capitalize()}.\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text("".join(lines[:240]), encoding="utf-8")
    (folder / "dev.tsv").write_text("".join(lines[240:]), encoding="utf-8")


MARK_PROMPT = """A mark is generic if it names the product. A mark is arbitrary if it is a word for another thing. \
A mark is fanciful if it is an invented word.

Q: The mark "Vase" for a vase. What is the type of mark?
A: generic

Q: The mark "Soap" for a ruler. What is the type of mark?
A: arbitrary

Q: The mark "Quilbo" for a quilt. What is the type of mark?
A: fanciful

Q: {{text}} What is the type of mark?
A:"""


def write_marks(folder: Path, draw: random.Random) -> None:
    """Write marks for products as the files of LegalBench's task abercrombie."""

    def invent() -> str:
        return "".join(draw.choice(letters) for letters in ("BDKMVZ", "aeiou", "lnrv", "o", "bdkx", "aiu", "lrx"))

    rows = []
    for thing in THINGS:
        for other in draw.sample([one for one in THINGS if one != thing], 4):
            made = (("generic", thing), ("arbitrary", other), ("fanciful", invent()))
            rows += [(kind, f'The mark "{mark.capitalize()}" for a {thing}.') for kind, mark in made]
    distinct = list(dict.fromkeys(rows))
    draw.shuffle(distinct)
    shown = [
        ("generic", 'The mark "Vase" for a vase.'),
        ("arbitrary", 'The mark "Soap" for a ruler.'),
        ("fanciful", 'The mark "Quilbo" for a quilt.'),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base_prompt.txt").write_text(MARK_PROMPT, encoding="utf-8")
    for name, part in (("train", shown), ("test", distinct)):
        with (folder / f"{name}.tsv").open("w", encoding="utf-8", newline="") as file:
            lines = [("index", "answer", "text"), *((i, *row) for i, row in enumerate(part))]
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(lines)


PARTS = ("knee", "ear", "elbow", "thumb", "heel", "jaw", "hip", "wrist", "ankle", "shoulder")
COMPLAINTS = ("pain", "swelling", "stiffness", "numbness", "a rash", "itching")


def write_complaints(folder: Path, draw: random.Random, count: int = 160) -> None:
    """Write complaints as MedQA's files with four options."""
    records: dict[str, dict[str, object]] = {}
    while len(records) < count:
        right, complaint, age = draw.choice(PARTS), draw.choice(COMPLAINTS), draw.randint(18, 90)
        question = f"A {age}-year-old patient reports {complaint} of the {right}. Which part of the body is affected?"
        options = draw.sample([part for part in PARTS if part != right], 3)
        options.insert(draw.randrange(4), right)
        letters = dict(zip("ABCD", options, strict=True))
        exam = ("step1", "step2&3")[len(records) % 2]
        records[question] = {
            "question": question, "answer": right, "options": letters, "meta_info": exam,
            "answer_idx": "ABCD"[options.index(right)], "metamap_phrases": [complaint, right],
        }  # fmt: skip
    lines = [json.dumps(record) + "\n" for record in records.values()]
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", lines[:-56]), ("dev", lines[-56:-40]), ("test", lines[-40:])):
        (folder / f"phrases_no_exclude_{split}.jsonl").write_text("".join(part), encoding="utf-8")


MEASURES = ("age", "sex", "body mass index", "blood pressure", "cholesterol", "LDL", "HDL", "total to HDL",
            "log triglycerides", "glucose")  # fmt: skip
"""Names of scikit-learn's ten columns, in their order."""


def write_diabetes(folder: Path) -> None:
    """Write diabetes.csv."""
    values, progression = load_diabetes(return_X_y=True, scaled=False)
    texts = [", ".join(f"{name} {value:.4g}" for name, value in zip(MEASURES, row, strict=True)) for row in values]
    with (folder / "diabetes.csv").open("w", encoding="utf-8", newline="") as file:
        rows = zip(texts, progression.astype(int).tolist(), strict=True)
        csv.writer(file, lineterminator="\n").writerows([("text", "progression"), *rows])


def write_generated(folder: Path) -> None:
    """Write the files that are generated from lists of words."""
    with (folder / "shops.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [("comment", "verdict", "shop"), *shops(random.Random(1))]
        csv.writer(file, lineterminator="\n").writerows(rows)
    with (folder / "rooms.csv").open("w", encoding="utf-8", newline="") as file:
        rows_of_rooms = [("description", "rent", "quiet", "sea"), *rooms(random.Random(2))]
        csv.writer(file, lineterminator="\n").writerows(rows_of_rooms)
    made = conversations(random.Random(0))
    lines = [json.dumps({"messages": messages}) + "\n" for messages in made]
    (folder / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in instructions(made)]
    (folder / "instructions.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in choose_answers(random.Random(3))]
    (folder / "office_choices.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in continue_texts(random.Random(4))]
    (folder / "next_words.jsonl").write_text("".join(lines), encoding="utf-8")
    write_tweets(folder / "leaf" / "sent140" / "data", shops(random.Random(1)))
    write_clients(folder / "fedllm_bench" / "Fed-Aya" / "aya_3c.json", made[:60])
    write_cola(folder / "glue" / "CoLA", random.Random(3))
    write_marks(folder / "legalbench" / "abercrombie", random.Random(4))
    write_complaints(folder / "medqa" / "US" / "4_options", random.Random(5))


def main(folder: Path = FOLDER) -> None:
    """Write all files."""
    write_generated(folder)
    write_diabetes(folder)
    write_functions(folder)


if __name__ == "__main__":
    main()
