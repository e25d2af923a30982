"""llama.cpp itself, where its Python wheel is installed, says what the finished run's own model says.

SmolLM2's base as F32 GGUF, the adapter beside it; 20 prompts as texts, so that the tokenizer is llama.cpp's, too.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.commands.export import main as export
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.answers.generation import generate_tokens
from fedpeft.reporting.finished_run import FinishedRun

PROMPTS = [
    "The capital of France is", "Water boils at", "Once upon a time there was", "The three primary colours are",
    "def add(a, b):\n    return", "Dear Sir or Madam,\n", "1, 2, 3, 4,", "My favourite book is", "The sun rises in the",
    "A triangle has", "Question: What is 7 times 8?\nAnswer:", "In the year 1969,", "The opposite of hot is",
    "Ingredients for a pancake:", "She opened the door and", "Photosynthesis is", "Monday, Tuesday,",
    "To be or not to be,", "The quick brown fox", "import numpy as np\n",
]  # fmt: skip
NEW = 16


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """Return a finished run whose adapter, in all layers, changes the base's answers."""
    made = finished_run(
        dataset="office(rows=2, test_rows=1)", partition="natural", clients=0, cohort=1, rounds=1,
        local_work="steps(1)", batch_size=1, tokens=96, dtype="fp32", peft="lora(rank=4, layers=0)",
    )  # fmt: skip
    folder = shutil.copytree(made, tmp_path_factory.mktemp("llama") / "run")
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors, random = load_file(file), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensors[name] = 0.01 * torch.randn(tensor.shape, generator=random)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def of_llama_cpp(folder, adapter):
    """Return the new tokens after each prompt, the log probability of the first, and the prompt's length in tokens."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / "base.gguf")
    if adapter:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(folder / "adapter.gguf"), 1.0)]
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 256, 1, False, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server, found = xllamacpp.Server(parameters), []
    for prompt in PROMPTS:
        said = server.handle_completions(
            {"prompt": prompt, "max_tokens": NEW, "temperature": 0.0, "logprobs": 1, "cache_prompt": False}
        )
        tokens = said["choices"][0]["logprobs"]["content"]
        read = said["usage"]["prompt_tokens"]
        found.append(([token["id"] for token in tokens], tokens[0]["id"], tokens[0]["logprob"], read))
    return found


@pytest.mark.slow
def test_llama_cpp_goes_on_as_the_finished_model_does(run, tmp_path):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    assert export([str(run), "--gguf", "--gguf-base", "--output", str(tmp_path / "gguf")]) == 0
    finished = FinishedRun.read(run)
    tokenizer, model = load_tokenizer(finished.model_directory), finished.model(finished.base())
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    ours = generate_tokens(model, tokenizer, ids, NEW)
    theirs = of_llama_cpp(tmp_path / "gguf", adapter=True)
    assert [read for *_, read in theirs] == list(map(len, ids))
    same = sum(mine == tokens[: len(mine)] for mine, (tokens, *_) in zip(ours, theirs, strict=True))
    assert same >= 18, [(mine, tokens) for mine, (tokens, *_) in zip(ours, theirs, strict=True)]
    for prompt, (_, token, chance, _) in zip(ids, theirs, strict=True):
        with torch.inference_mode():
            logits = model.base(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        assert float(logits.log_softmax(-1)[token]) == pytest.approx(chance, abs=1e-2)
    alone = of_llama_cpp(tmp_path / "gguf", adapter=False)
    assert sum(a[0] != b[0] for a, b in zip(alone, theirs, strict=True)) >= 10  # so it is the adapter that was compared
