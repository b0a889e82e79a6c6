"""Throughput of a suite asked of an endpoint, against a bare client of the same server that sends the same requests.

    (echo; sleep 900) | python tests/engine/served_vllm.py FOLDER --served-model-name small --max-model-len 8192 &
    python benchmarks/endpoint.py --base-url http://127.0.0.1:8000/v1 --served small --rounds 5

The bare client has its token ids before its clock starts, and sends all that the server is to have at once; the suite's
clock goes from the server being ready to the last record on disk, prompts built and answers judged. Both in turn; a
server that can (`VLLM_SERVER_DEV_MODE=1`) forgets its prefixes before each. Goal: a median of 0.95 and more.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import tyro

from retrieval_heads.prompts.tokenizer import load_tokenizer
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder

CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Benchmark:
    """Compare a suite with a bare client."""

    base_url: str
    """The server's address."""
    served: str
    """The model, as the server names it."""
    model: str = "SmolLM2-135M-Instruct"
    """The model, as its tokenizer is found."""
    suite: Path = CHECKOUT / "suites/niah/ci.yaml"
    """What is asked."""
    concurrency: int = 64
    """Requests at once."""
    rounds: int = 5
    """How often each is measured, in turn."""

    def run(self) -> None:
        """Measure, and print."""
        requests = self.requests()
        asyncio.run(self.bare(requests[:1]))  # a first request of a server may compile something
        ratios = []
        for turn in range(self.rounds):
            ways = {"suite": self.asked, "bare": lambda: asyncio.run(self.bare(requests))}
            seconds = {}
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                self.forget()
                seconds[way] = ways[way]()
            ratios.append(seconds["bare"] / seconds["suite"])
            told = {way: round(took, 3) for way, took in seconds.items()}
            print(json.dumps({"round": turn, **told, "ratio": round(ratios[-1], 3), "load": os.getloadavg()[0]}))
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{len(requests)} requests: {statistics.median(ratios):.3f} of a bare client's throughput ({spread})")

    def requests(self) -> list[dict[str, Any]]:
        """The suite's, as the server is sent them."""
        suite = load_suite(self.suite)
        builder = CellBuilder(load_tokenizer({"model": self.model}), {}, {}, 1 << 20)
        built = [builder.request(suite.question, cell) for cell in suite.cells]
        return [{"model": self.served, "prompt": one.ids, **one.sampling} for one in built]

    def forget(self) -> None:
        """Have the server forget its prefixes, where it can."""
        address = f"{self.base_url.removesuffix('/v1')}/reset_prefix_cache"
        with suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(address, method="POST"))

    async def bare(self, requests: list[dict[str, Any]]) -> float:
        """Seconds until all are answered."""
        places = asyncio.Semaphore(self.concurrency)
        async with openai.AsyncOpenAI(base_url=self.base_url, api_key="none", timeout=600) as client:

            async def ask(request: dict[str, Any]) -> None:
                async with places:
                    await client.completions.create(**request)

            began = time.perf_counter()
            await asyncio.gather(*map(ask, requests))
            return time.perf_counter() - began

    def asked(self) -> float:
        """Seconds from the endpoint being ready until the last record is on disk."""
        with tempfile.TemporaryDirectory() as folder:
            said = {
                "model.model": self.model,
                "engine.kind": "openai",
                "engine.base_url": self.base_url,
                "engine.model": self.served,
                "engine.concurrency": self.concurrency,
                "output_dir": folder,
            }
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                str(self.suite),
                "--rh-verdict",
                "none",
            ]
            command += [part for key, value in said.items() for part in ("--rh-set", f"{key}={value}")]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
            return float(json.loads((Path(folder) / "run.json").read_text())["answer_seconds"])


if __name__ == "__main__":
    tyro.cli(Benchmark, description=__doc__).run()
