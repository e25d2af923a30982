"""Every model part loads offline through transformers' Auto classes and computes what its source computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fedpeft.models.base_model import resolve_model


@pytest.mark.slow
def test_minilm_knows_which_sentences_are_close() -> None:
    folder = resolve_model("minilm")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.6  # measured: 0.75
    assert abs(similar[0, 2]) < 0.2


@pytest.mark.slow
def test_smollm2_is_a_language_model_in_bfloat16() -> None:
    folder = resolve_model("smollm2")
    assert {w.dtype for w in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    text = "The sun rises in the east and sets in the west, and at night we can see the moon and the stars."
    shuffled = " ".join(np.random.default_rng(0).permutation(text.split()).tolist())

    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert tokenizer.decode(ids[0]) == text
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    assert loss(text) < 2.5 < 4 < loss(shuffled)


@pytest.mark.slow
def test_dinov2_computes_what_the_onnx_graph_computes() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    from fedpeft.models.pretrained.dinov2_small import ASSET

    last = "/backbone/layernorm/Add_1_output_0"
    graph = onnx.load(str(ASSET.fetch() / "vit_s_focus.onnx"))
    nodes = list(graph.graph.node)
    end = next(i for i, node in enumerate(nodes) if last in node.output) + 1
    del graph.graph.node[end:]
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    (expected,) = ReferenceEvaluator(graph).run([last], {"input_image": image})
    model = AutoModel.from_pretrained(resolve_model("dinov2_small")).eval()
    with torch.no_grad():
        hidden = model(torch.from_numpy(image)).last_hidden_state.numpy()
    assert hidden.shape == (1, 257, 384)
    np.testing.assert_allclose(hidden, expected, atol=5e-5)  # measured: 1.6e-5, of values up to 8.5
