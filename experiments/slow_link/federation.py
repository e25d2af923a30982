"""A server on one side of the line and four clients on the other, with the adapter of a large model.

The adapter has the true tensors of Llama-3.2-1B: LoRA of rank 16 on q, k, v and o of all 16 layers, 3,407,872 numbers.
The base has the attention of that model with random weights, but an MLP of 16 instead of 8,192 and a small vocabulary.
Neither is part of the adapter, so payloads have the size that the whole model gives. Losses mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.slow_link.bridge import ADDRESSES
from experiments.slow_link.link import SlowLink
from fedpeft.data.made_words import WORDS, create_word_tokenizer, save_tokenizer
from fedpeft.data.rows import load_dataset
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.models import model_folder

PORT = 8470
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""Seconds that clients may take to end after the server."""

TOKENS = 32


@dataclass(frozen=True)
class Shape:
    """Shape of the adapter's tensors.

    Attributes:
        width: hidden size.
        layers: number of layers, all adapted.
        heads: number of attention heads.
        kv_heads: number of heads of keys and values.
        rank: LoRA rank.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    rank: int

    @property
    def parameters(self) -> int:
        """Numbers in the adapter: B and A of q, k, v and o."""
        keys = self.width * self.kv_heads // self.heads
        return self.layers * self.rank * (2 * 2 * self.width + 2 * (self.width + keys))

    @property
    def peft(self) -> str:
        """The PEFT method's text."""
        return f"lora(rank={self.rank}, alpha=32, layers=0, targets=('q_proj', 'k_proj', 'v_proj', 'o_proj'))"


LLAMA_1B = Shape(2048, 16, 32, 8, 16)
"""Llama-3.2-1B, rank 16."""

SMALL = Shape(64, 2, 4, 2, 4)
"""For the test."""


def write_model(shape: Shape, folder: Path) -> None:
    """Write a base with random weights in bf16, and a tokenizer of made-up words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    special = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
    tokenizer = create_word_tokenizer(special)
    save_tokenizer(tokenizer, folder, TOKENS, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")
    config = LlamaConfig(
        vocab_size=len(special) + len(WORDS),
        hidden_size=shape.width,
        intermediate_size=16,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    model_folder.save(config, "LlamaForCausalLM", weights, folder)


@dataclass(frozen=True)
class Case:
    """One federation.

    Attributes:
        name: its name in results.jsonl.
        codec: codec of the updates. The downlink is the preset that matches it, or without loss if there is none.
        rounds: rounds of federated training.
        cut_seconds: seconds for which the line is cut after round 1. After round 2, the server is killed and resumed.
            0: neither.
    """

    name: str
    codec: str
    rounds: int
    cut_seconds: float = 0.0


class Federation:
    """A folder with the model, and the certificates and examples of each client."""

    def __init__(self, folder: Path, shape: Shape, clients: int = 4) -> None:
        """Write all files."""
        self.folder, self.shape, self.clients = folder, shape, clients
        write_model(shape, folder / "model")
        authority = Authority(folder / "certs", 30)
        authority.ensure()
        authority.server([ADDRESSES["server"]])
        texts = load_dataset(f"tiny_lm(owners={clients})").train.inputs
        for k in range(clients):
            authority.client(f"edge-{k}")
            lines = [json.dumps({"text": texts[i]}) + "\n" for i in range(k, len(texts), clients)]
            (folder / f"{k}.jsonl").write_text("".join(lines), encoding="utf-8")

    def _start(self, link: SlowLink, side: str, log: Path, *words: object) -> subprocess.Popen[Any]:
        with log.open("ab") as out:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
            return link.start(side, *words, cwd=self.folder, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def run(self, link: SlowLink, case: Case) -> dict[str, Any]:
        """Run a federation over the line, and return what its record of results.jsonl holds.

        Raises:
            SystemExit: a process failed; its log is printed.
        """
        output = self.folder / case.name
        address = f"{ADDRESSES['server']}:{PORT}"
        serve = ("fedpeft.serve", "--listen", address, "--output", output, "--task", "causal_lm", "--model", "model",
                 "--clients", self.clients, "--cohort", "all", "--rounds", case.rounds, "--codec", case.codec,
                 "--peft", self.shape.peft, "--local-work", "steps(2)", "--batch-size", 2, "--tokens", TOKENS,
                 "--dtype", "bf16", "--quorum", 1)  # fmt: skip
        before = link.count()
        server = self._start(link, "server", output.with_suffix(".log"), *serve)
        joined = [
            self._start(
                link, "clients", self.folder / f"{case.name}-{k}.log", "fedpeft.join", "--server", address, "--data",
                f"{k}.jsonl", "--certs", f"certs/clients/edge-{k}", "--state", f"state/{case.name}", "--threads", 1,
                "--device", "cpu", "--give-up", PATIENCE_SECONDS, "--model", "model",
            )
            for k in range(self.clients)
        ]  # fmt: skip
        events: list[str] = []
        try:
            if case.cut_seconds:
                self._wait(lambda: self._is_sending(link, output, 1), server, joined)
                link.cut(case.cut_seconds)
                events.append(f"the line was cut for {case.cut_seconds:g} s in round {len(read_rounds(output)) + 1}")
                self._wait(lambda: self._is_sending(link, output, 2), server, joined)
                server.kill()
                server.wait()
                events.append(f"the server was killed in round {len(read_rounds(output)) + 1} and resumed")
                server = self._start(link, "server", output.with_suffix(".log"), "fedpeft.serve", "--resume", output)
            self._wait(lambda: server.poll() is not None, server, joined)
            if any(process.wait(PATIENCE_SECONDS) for process in (server, *joined)):
                self._fail(case.name)
        finally:
            for process in (server, *joined):
                process.kill()
        return self._describe(case, output, before, link.count(), events)

    def _is_sending(self, link: SlowLink, output: Path, finished: int) -> bool:
        """Return whether `finished` rounds are over and clients send the updates of the next one."""
        if len(read_rounds(output)) < finished:
            self._sent = 0
            return False
        sent = link.count()["from_clients"]["bytes"]
        self._sent = self._sent or sent
        return sent - self._sent > self.shape.parameters // 4

    def _wait(
        self, is_reached: Callable[[], bool], server: subprocess.Popen[Any], joined: list[subprocess.Popen[Any]]
    ) -> None:
        while not is_reached():
            if server.poll() or any(client.poll() for client in joined):
                self._fail("*")
            if server.poll() == 0:
                raise SystemExit("the server ended before it was interrupted; give it more rounds or a larger adapter")
            time.sleep(POLL_SECONDS)

    def _fail(self, name: str) -> None:
        logs = "\n".join(log.read_text(encoding="utf-8") for log in sorted(self.folder.glob(f"{name}*.log")))
        raise SystemExit(f"a process has failed:\n{logs}")

    def _describe(
        self, case: Case, output: Path, before: dict[str, Any], after: dict[str, Any], events: list[str]
    ) -> dict[str, Any]:
        kept = ("round", "seconds", "uplink_bytes", "downlink_bytes")
        adapter = (output / "adapter" / "adapter_model.safetensors").read_bytes()
        return {
            "case": case.name,
            "codec": case.codec,
            "parameters": json.loads((output / "summary.json").read_text(encoding="utf-8"))["parameters"],
            "clients": self.clients,
            "rounds": [{name: line[name] for name in kept} for line in read_rounds(output)],
            "line": {way: {name: after[way][name] - before[way][name] for name in after[way]} for way in sorted(after)},
            "events": events,
            "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
        }


def read_rounds(output: Path) -> list[dict[str, Any]]:
    """Return the finished rounds of a run, without its preparation; none before its folder exists."""
    file = output / "rounds.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["round"]]
