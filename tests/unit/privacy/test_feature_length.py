"""Plans for a head alone do not depend on the unit of its features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedpeft.models.base_model import resolve_model
from fedpeft.models.feature_length import measure_feature_length
from fedpeft.parts.families import MECHANISMS, TASKS
from tests.unit.privacy.test_private_plan import exposure


@pytest.mark.parametrize("text", ["dp_sgd(epsilon=8)", "user_dp(epsilon=8)"])
def test_longer_features_are_led_as_far_in_their_own_unit(text):
    """Of features s times as long, gradients are s times as long, and weights have to be led a part of 1 / s."""
    mechanism, federation = MECHANISMS.build(text), exposure(entries=12, rounds=20)
    one, other = (mechanism.plan_training(replace(federation, length=s)) for s in (1.0, 10.0))
    of_rows = text.startswith("dp_sgd")
    assert other.mechanism.clip == pytest.approx(one.mechanism.clip * (10 if of_rows else 0.1), rel=0.01)
    assert other.learning_rate == pytest.approx(one.learning_rate / 100, rel=0.01)


def test_the_length_is_that_of_what_the_head_reads():
    task = TASKS.build("classification")
    for name in ("tiny", "tiny_vision"):
        model = task.model(task.base(resolve_model(name), torch.float32), 3)
        found = measure_feature_length(model)
        assert found == measure_feature_length(model) > 0
        before = model.features
        model.features = lambda batch, before=before: 7 * before(batch)
        assert measure_feature_length(model) == pytest.approx(7 * found)
