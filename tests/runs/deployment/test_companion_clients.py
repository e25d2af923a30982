"""Real clients train on folders of images with texts or masks, also in a secure sum."""

from __future__ import annotations

import pytest

from fedpeft.deployment.client.edge import check_machine
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from tests.described_images import LABELS, SIDE, draw_described
from tests.here import Federation
from tests.scene_words import tiny_captioner

MASKED = "patch_labels"


class Described(Federation):
    """A federation whose clients have folders of described images."""

    def file(self, k):
        return self.folder / f"photos-{k}"

    def keep(self, k):
        draw_described(self.file(k), 12, seed=k)


def make(tmp_path, observer, task, **given):
    captioner = tiny_captioner(tmp_path / "words") if task == "captions" else "towers(image=tiny_vision, text=tiny)"
    serve = {"task": task, "side": SIDE, "held_out": 0.25} | ({"labels": ",".join(LABELS)} if task == MASKED else {})
    settings = {
        "dataset": f"clients(task={task}, side={SIDE})"
        if task != MASKED
        else f"clients(task={MASKED}, side={SIDE}, labels='{','.join(LABELS)}')",
        "model": "tiny_vision" if task == MASKED else captioner,
        "measure": "validation(every=1)",
        "batch_size": 4,
        "head": "auto",
        "privacy": "",
    }
    return Described(tmp_path, observer, serve=ServeOptions(**serve), **settings | given)


@pytest.mark.parametrize("task", ["captions", "towers", MASKED])
def test_clients_train_on_their_own_folders(tmp_path, observer, task):
    made = make(tmp_path, observer, task)
    check_machine(made.file(0), EdgeOptions())
    rows = made.server.edges[0].rows
    assert rows.inputs.shape == (12, SIDE, SIDE, 3)
    assert (rows.masks is None) == (task != MASKED)
    assert (rows.texts is None) == (task == MASKED)
    start = {name: tensor.clone() for name, tensor in made.server.setup.start.items()}
    ended = made.run()
    assert not [report.error for report in made.server.direct.reports if report.error]
    assert any((ended.adapter[name] != start[name]).any() for name in start)
