"""What a report says of runs whose accuracy is that of clients' own models on their own rows."""

import pytest

from fedpeft.reporting.summary import OWN_ROWS
from fedpeft.study.page import PageSection
from fedpeft.study.sections import Section
from tests.studies.made import made_study, section


@pytest.mark.medium
def test_accuracies_on_own_rows_are_marked_and_on_no_front_with_those_on_test_rows() -> None:
    results = made_study(5, ("iid",))
    own = [r for r in results if r.point["codec"] == "bf16" and r.summary]
    for run in own:
        assert run.summary
        run.summary.update(accuracy=0.99, accuracy_of=OWN_ROWS, shared_accuracy=0.0)  # a global model may know nothing
    made = PageSection.from_section(section(results))
    [methods] = [t for t in made.tables if t.name == "accuracy"]
    [marked] = [row for row in methods.shown if row[0].startswith("bf16")]
    assert marked[0] == "bf16 (own rows)"
    assert marked[methods.headings.index("global model, test rows (%)")] == "0.00 ± 0.00"
    assert {row[0] for row in methods.shown if row[-1]} == {"bf16 (own rows)", "fp32", "quantize(bits=4)"}
    [comparisons] = [t for t in made.tables if t.name == "comparisons"]
    assert not any("own rows" in row[0] for row in comparisons.shown)
    for note in (methods.note, comparisons.note, made.figures[0].note):
        assert "(own rows): the mean over clients" in note
    [result] = [t for t in PageSection.from_section(Section("a run", "", own[:1], {})).tables if t.name == "result"]
    assert result.note.endswith("on held-out rows of its own.")
