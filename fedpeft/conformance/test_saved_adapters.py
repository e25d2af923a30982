"""Requirements of a saved adapter: the same model after loading, and the plain base model after merging."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.conformance.peft_cases import Case, create_model, each_method
from fedpeft.models.quantized_base import quantize
from fedpeft.models.readout import get_plain_base as last_block
from fedpeft.models.task import find_trainable
from fedpeft.peft import saved_adapter
from fedpeft.peft.abilities import SavedAsLora, SavedAsOther


def save_and_load(case, folder):
    """Return the model of `case.start`, loaded from its files."""
    method, state, spec = case.method, case.start, case.spec
    changes = method.changes(case.model, state) if isinstance(method, SavedAsLora) else None
    if isinstance(method, SavedAsOther):
        state, spec = method.as_saved(case.model, state), method.saved_as
    own = spec if not (changes or method.in_peft or method.whole_model) else None
    labels = [str(i) for i in range(case.classes)]
    saved_adapter.save(folder, create_model(method, case.tiny, "fp32"), state, labels, changes, own)
    base = case.task.base(case.folder, torch.float32)
    quantize(base, method.base_precision)
    return saved_adapter.load(folder, case.task, base, case.classes)


@each_method
def test_a_saved_adapter_reloads_to_equal_logits(spec, tiny, tmp_path):
    case = Case(spec, tiny, "fp32")
    case.sequential.load(case.start)
    again = save_and_load(case, tmp_path)
    batch = case.rows.batch(np.arange(12))
    with torch.no_grad():
        expected = case.model.eval()(batch)
        assert torch.allclose(again(batch), expected, atol=2e-5)
    base = case.task.base(case.folder, torch.float32)
    case.method.read(base)
    plain = case.task.model(base, case.classes)
    assert find_trainable(again) == {}
    if all(t.role == "head" for t in case.layout.tensors):
        return
    plain.load_state_dict({n: t for n, t in case.start.items() if n.startswith("head.")}, strict=False)
    with torch.no_grad():
        assert not torch.allclose(plain(batch), expected, atol=1e-3), "the adapter makes no difference"


@each_method
def test_a_merged_model_is_the_plain_base_with_equal_logits(spec, tiny, tmp_path):
    case = Case(spec, tiny, "fp32")
    if not case.method.merges:
        pytest.skip("can't be merged exactly")
    model, batch = save_and_load(case, tmp_path), case.rows.batch(np.arange(12))
    with torch.no_grad():
        expected = model(batch)
        model.base = case.method.merge_adapter(model)
        assert torch.allclose(model(batch), expected, atol=1e-5)
    plain, model.base = case.task.base(case.folder, torch.float32), last_block(model.base)
    assert {n: type(m) for n, m in model.base.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert model.base.state_dict().keys() == plain.state_dict().keys()
