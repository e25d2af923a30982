"""Return types of Python functions from open-source packages: `def is_empty(self): ...` -> bool.

The packages are pinned wheels under permissive licenses, the newest when the list was made. They are fetched once and
are not part of fedpeft. `fedpeft.data.python_functions` defines a function's text.

Owners are packages. The split is by package: every fifth of the alphabetical list is held out for test, so no test
example comes from a code base that was trained on. Validation examples come from the clients' packages.

Only the first of several functions with the same fingerprint counts, and test packages come first. At most
`package_rows` functions of a package are taken, chosen by hash. Files that need syntax newer than Python 3.11 are left
out, so that all versions of Python find the same functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from fedpeft.data.python_functions import Function, find_functions_below
from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError
from fedpeft.machine.cache import get_cached_folder
from fedpeft.machine.downloads import Asset
from fedpeft.parts import setting

T = TypeVar("T")
F = TypeVar("F", bound="Found")


@dataclass(frozen=True)
class Package:
    """A wheel of the registry.

    Attributes:
        name: the registry's name.
        version: exact version.
        folder: the import package whose files are read.
        license_id: SPDX expression.
        size: bytes of the wheel.
        sha256: its hex digest.
    """

    name: str
    version: str
    folder: str
    license_id: str
    size: int
    sha256: str

    @property
    def asset(self) -> Asset:
        """Python files of the wheel."""
        stem = self.name.replace("-", "_").replace(".", "_")
        file = f"{stem}-{self.version}-py3-none-any.whl"
        return Asset(self.name, self.version, file, self.sha256, self.size, self.folder, ("*.py",))


LIST = """
aiogram 3.31.0 aiogram MIT 859100 d889493c5917a867fc9da81fd6e6b3ae438e98bfe1b004fcdafe7400461a6c1b
alembic 1.20.1 alembic MIT 270355 9970712cfb81ea26c8658d378aaa5b8f6ff9146e5bb111d70497c164016cf598
anyio 4.16.0 anyio MIT 134521 c66ae634e0b8228396b801741beb3294326d4b6102f7bba4041c0dfb58c29026
bleak 3.1.0 bleak MIT 176301 3cb08e03039f6e477c276252540416b287d4e3de63a86732780ff93a2f6e73ef
cirq-core 1.7.0 cirq Apache-2.0 2116400 9d2e9610b06e2b2b2195184f44c0df4e94f31485831f8e1c6a96c858b7897bce
click 8.5.1 click BSD-3-Clause 126163 8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37
dask 2026.8.0 dask BSD-3-Clause 1492182 ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c
discord.py 2.7.1 discord MIT 1227550 849dca2c63b171146f3a7f3f8acc04248098e9e6203412ce3cf2745f284f7439
distributed 2026.8.0 distributed BSD-3-Clause 1008640 3bd8882861a2cf497453f28c6b61135fa8ef2bb1d6885ad3b9f27e887e9c0e01
flask 3.1.3 flask BSD-3-Clause 103424 f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c
hatch 1.18.2 hatch MIT 172627 3991c741a2746d1e62345c403cb1f873a58d9c38fd25e3c3ad740437014f56b4
haystack-ai 3.4.1 haystack Apache-2.0 751565 f9093156d534adcf92ef68d03601c11b67f0945e81b00e999504b68bce4fdd80
hikari 2.7.0 hikari MIT 602424 984fca47d1bb1ebf99f01407807078e8a851566b14e871b151e22ea10424b9a6
httpx 0.28.1 httpx BSD-3-Clause 73517 d909fcccc110f8c7faf814ca82a9a4d816bc5a6dbfea25d6591d6985b8ba59ad
jinja2 3.1.6 jinja2 BSD-3-Clause 134899 85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67
langchain-core 1.8.4 langchain_core MIT 591065 5755dee8f8b0c709cd22436dea3689c74a3f6e9dc4251590797dcd66bcd1ef67
litestar 2.25.0 litestar MIT 584699 ff16470b6aa3031ea3210bbb474b00b24c636ddfe8e0ee3d09c85aff3058a93f
pdm 2.29.4 pdm MIT 308510 599a299d7fb35195d41610ee8341f65c75c5c97dde9f8cfcf573790b3d1b0cd9
poetry 2.5.1 poetry MIT 307610 3f7910abc667ce0c33a67e306baf017acdec1c8eeec4aa64d176e530d8338a61
prompt-toolkit 3.0.53 prompt_toolkit BSD-3-Clause 392288 01c0891d7f9237d5e339f7d3e42cdae80b7534abb1c7c0e3352efba6231492f2
pydantic 2.14.4 pydantic MIT 494865 653a2ad9f6d8858529c77c72717d0ea991d6c6837fe683246b2f4b2bbfc3fadc
pypdf 7.1.1 pypdf BSD-3-Clause 421026 04c5680d4b4cfa04ab505b09393fc949860c34a4dad6565284d11a2f5c3ce8b1
pytest 9.2.0 _pytest MIT 411776 07acdcf88ec174f907dc01af70bf52d49b014bbab03faeeade31c96b18c2e588
redis 8.1.0 redis MIT 560618 a4fe1aac3d3b3cc791d4b3d5931c5a956045dc951ee74d1c913ee3ac4d2ee9fb
rich 15.0.0 rich MIT 310654 33bd4ef74232fb73fe9279a257718407f169c09b78a87ad3d296f548e27de0bb
sanic 25.12.1 sanic MIT 258466 3874f1fe0442e3b12ce4a3f6524f676d5d3c43839c6a4967d1b82fd8db53c0f3
scrapy 2.19.0 scrapy BSD-3-Clause 379771 44c1ad4b008f1976e946c75b2adce0e448cbfe470c584b1b59469abf270e8013
sphinx 9.0.4 sphinx BSD-2-Clause 3917713 5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb
sqlfluff 4.5.0 sqlfluff MIT 1152828 471a9abcad8061e36b69f711a6d89393241e30f9d1e0869f79965c0ae2c889c7
sqlglot 30.30.0 sqlglot MIT 807597 06c4c212a7868c7dcff0fd0fda348dd3c5cbad40137b3083a70ecdfe22921cf9
starlette 1.10.0 starlette BSD-3-Clause 80571 478c0ab3b4ced6e82719849c118fa406f0278a3499c1a898cd15cd31bdc38ce4
strawberry-graphql 0.341.2 strawberry MIT 396061 73e9c4cf5e2fddd522d2741491a6fbba70f940d945ab0a40152b2fadf26d9a89
textual 8.2.8 textual MIT 731418 267375fd402dc8d981457212efa71f0e3365fd17bba144ba9bb3ed7563cb374a
tox 4.67.15 tox MIT 372450 963219a3c5e4544408b19087b0c1a41932fc792d9ae0c40438aec4e88c48c676
trio 0.35.0 trio MIT 513178 9a062a029487c1bdbcc1b2543b729a0bde857ce478b1512c84f391f628e0c5c9
twisted 26.10.0 twisted MIT 3251703 3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8
web3 8.0.0 web3 MIT 1414769 2276762aa5d86807eabad5af5c585a84bd6d9a706a613f8456c645a9669ffeb5
werkzeug 3.1.9 werkzeug BSD-3-Clause 228700 6392e50c78460ba618e5b21f08a71f59c99ce99cdc6cf6e3dd7e6ccca8754fab
xarray 2026.9.0 xarray Apache-2.0 1445445 fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c
zarr 3.1.6 zarr MIT 295655 b5a82c5079d1c3d4ee8f06746fa3b9a98a7d804300fa3f4be154362a33e1207e
"""  # noqa: E501
"""Each line contains name, version, folder, license, bytes and SHA-256."""

PACKAGES = tuple(
    Package(name, version, folder, license_id, int(size), sha256)
    for name, version, folder, license_id, size, sha256 in (line.split() for line in LIST.split("\n") if line)
)

HELD_OUT = PACKAGES[4::5]
"""Packages of the test set."""

TYPES = ("bool", "callable", "dict", "int", "iterator", "list", "none", "optional", "str", "tuple")
"""Classes: the ten most frequent return types; functions of other types are left out."""

READING = 2
"""Version of the reader; increase it if a change yields other functions from the same files."""


@dataclass(frozen=True)
class CodeTypes:
    """Functions with the type that they return."""

    package_rows: int = setting(300, "most functions of a package", low=10, high=10_000)
    characters: int = setting(1500, "functions with a longer text are left out", low=80, high=100_000)

    def load(self) -> Dataset:
        """Return texts with one label each; owners are packages. The first use fetches 30 MB.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no function is left.
        """
        train, test = split_by_package(read_all(), self.characters, self._build_examples)
        return Dataset(
            "code_types", "text", "classification", build_labeled_rows(train), build_labeled_rows(test), TYPES, "minilm"
        )

    def _build_examples(self, _: str, functions: Sequence[Function]) -> list[tuple[str, int]]:
        chosen = [function for function in functions if function.type in TYPES][: self.package_rows]
        return [(f.text, TYPES.index(f.type)) for f in sorted(chosen, key=lambda f: f.name)]


class Found(Protocol):
    """A function in a package."""

    @property
    def name(self) -> str:
        """The dotted name."""
        ...

    @property
    def text(self) -> str:
        """The source."""
        ...


def split_by_package(
    found: Mapping[str, Sequence[F]], characters: int, build: Callable[[str, Sequence[F]], Iterable[T]]
) -> tuple[list[tuple[T, str]], list[tuple[T, str]]]:
    """Return the training and the test examples, each with its package.

    Args:
        found: functions of each package.
        characters: functions with a longer text are left out.
        build: makes the examples of a package from its name and its functions, which are in the order of their hashes.

    Raises:
        DataError: no function is left.
    """
    train: list[tuple[T, str]] = []
    test: list[tuple[T, str]] = []
    for name, functions in found.items():
        short = [f for f in functions if len(f.text) <= characters]
        examples = build(name, sorted(short, key=lambda f: compute_digest(f"{name}/{f.name}")))
        (test if is_held_out(name) else train).extend((example, name) for example in examples)
    if not train or not test:
        raise DataError(f"FP3029 no function has at most {characters} characters; give a larger value of characters")
    return train, test


def is_held_out(package: str) -> bool:
    """Return whether a package's examples are for test."""
    return any(package == held.name for held in HELD_OUT)


def create_generator(seed: int, package: str, function: Found) -> np.random.Generator:
    """Return a function's own random numbers, which do not depend on the other functions."""
    return np.random.default_rng(int(compute_digest(f"{seed}/{package}/{function.name}")[:16], 16))


def build_text_rows(rows: Sequence[tuple[str, str]]) -> Rows:
    """Return texts without labels, each with its owner, as `Rows`."""
    return Rows([row for row, _ in rows], None, np.array([owner for _, owner in rows]))


def build_labeled_rows(rows: Sequence[tuple[tuple[str, int], str]]) -> Rows:
    """Return texts with a class each, and their owners, as `Rows`."""
    labels = np.array([label for (_, label), _ in rows], np.int64)
    return Rows([text for (text, _), _ in rows], labels, np.array([owner for _, owner in rows]))


def read_all() -> dict[str, list[Function]]:
    """Return each package's functions without duplicates, test packages first; they are read once and cached."""
    return read_packages("code_types", READING, Function, find_functions_below, drop_duplicates)


def read_packages(
    name: str,
    reading: int,
    kind: type[T],
    below: Callable[[Path], Iterator[T]],
    distinct: Callable[[Iterator[T], set[str]], Iterator[T]],
) -> dict[str, list[T]]:
    """Return what `below` finds in each package, test packages first; it is read once and cached.

    Args:
        name: the dataset's name, part of the cache key.
        reading: version of the reader; it changes if the same files yield something else.
        kind: a dataclass of plain values.
        below: finds the instances of `kind` in a package's folder.
        distinct: drops duplicates of what was seen before, and remembers the rest.
    """
    order = [*HELD_OUT, *(package for package in PACKAGES if package not in HELD_OUT)]

    def write(target: Path) -> None:
        seen: set[str] = set()
        with (target / "functions.jsonl").open("w", encoding="utf-8") as sink:
            for package in order:
                for one in distinct(below(package.asset.fetch()), seen):
                    sink.write(json.dumps({"package": package.name, **vars(one)}) + "\n")

    folder = get_cached_folder(f"{name}-{compute_digest(f'{reading} {order}')[:24]}", write, room=30_000_000)
    found: dict[str, list[T]] = {package.name: [] for package in order}
    for line in (folder / "functions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record.pop("package")].append(kind(**record))
    return found


def drop_duplicates(functions: Iterator[Function], seen: set[str]) -> Iterator[Function]:
    """Yield functions whose fingerprint is not in `seen`, and add it."""
    for function in functions:
        if function.fingerprint not in seen:
            seen.add(function.fingerprint)
            yield function


def compute_digest(text: str) -> str:
    """Return the SHA-256 of `text` in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


part = CodeTypes
