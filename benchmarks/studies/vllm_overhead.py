"""What the mark costs in a vLLM server: the processor's share of a decode step, and throughput with and without it.

    python benchmarks/studies/vllm_overhead.py MODEL_DIR [--keyring FILE] [--pairs 12] [--steps 60] [--part share|pairs]

MODEL_DIR is served by vLLM; without --keyring a key for its tokenizer is made. Two parts:

share   One engine in this process. At 1, 8 and 32 requests, each marked for an account, the time inside the processor
        (`apply` and `update_state`) over the time of the engine's step, for the steps in which all requests decode.
pairs   Two servers, with the processor and without, that answer the same batch of 8 requests in turn, first one then
        the other and then the other way round, so often. The mean of log(seconds with / seconds without) with its 95%
        t interval; and the same of the processor time of all the server's processes, on which other users of the
        machine tell less.

One thread. The load average at the start is printed with the results: a busy machine makes them wide. vLLM's own
watermark (`--watermark-config`) needs its V2 runner, which runs on a CPU in Triton's interpreter alone, a hundred times
too slow to be compared with; it is not measured here.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
}
FLAG = ("--logits-processors", "watermark.engines.vllm:GreenListProcessor")
BATCHES = (1, 8, 32)
WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--keyring", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer of a pair")
    parser.add_argument("--steps", type=int, default=60, help="decode steps a batch size")
    parser.add_argument("--part", choices=("share", "pairs"))
    chosen = parser.parse_args()
    os.environ |= SETTINGS
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        configure(Path(folder), chosen.keyring or make_keyring(Path(folder), chosen.model))
        if chosen.part != "pairs":
            share(chosen.model, chosen.steps)
        if chosen.part != "share":
            pairs(chosen.model, chosen.pairs, chosen.tokens, Path(folder))


def make_keyring(folder: Path, model: Path) -> Path:
    from watermark.keyring import Keyring
    from watermark.keys import Params, Secret
    from watermark.life_cycle import activate, add_scope
    from watermark.tokenizer import load

    tokenizer = load(model)
    params = Params(tokenizer=tokenizer.digest(), special_ids=tokenizer.special_ids, window=2, account_lanes=16)
    keyring = add_scope(Keyring(root=Secret(os.urandom(32)), scopes=()), "benchmark", params=params, delta=2.0)
    activate(keyring, "benchmark").write(folder / "k.json")
    return folder / "k.json"


def configure(folder: Path, keyring: Path) -> None:
    (folder / "taggant.toml").write_text(f'keyring = "{keyring}"\nfields = "plain"\n')
    os.environ["TAGGANT_CONFIG"] = str(folder / "taggant.toml")


def share(model: Path, steps: int) -> None:
    """Print the processor's share of a decode step at each batch size."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(model),
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=max(BATCHES),
        enforce_eager=True,
        # By name: on a CPU vLLM fails to start where Numba is imported before.
        logits_processors=[FLAG[1]],
        distributed_executor_backend="uni",
        disable_log_stats=True,
    )
    engine = llm.llm_engine
    spent = timed(engine)
    vocabulary = engine.model_config.get_vocab_size()
    print(f"\nV = {vocabulary}, h = 2, accounts; medians over {steps} decode steps; 1 thread\n")
    print("| requests | step, ms | processor, us | us a row | share of the step, % | 95th percentile of the share, % |")
    print("|---|---|---|---|---|---|")
    for batch in BATCHES:
        for number in range(batch):
            params = SamplingParams(
                temperature=1.0,
                max_tokens=steps + WARM_UP,
                ignore_eos=True,
                extra_args={"taggant_account": f"account-{number}"},
            )
            engine.add_request(f"{batch}-{number}", f"Story number {number} begins", params)
        taken: list[tuple[float, float]] = []
        while engine.has_unfinished_requests():
            spent[0] = 0.0
            start = time.perf_counter()
            engine.step()
            taken.append((time.perf_counter() - start, spent[0]))
        # The first steps hold the prefill; the last may hold fewer requests.
        taken = taken[WARM_UP : WARM_UP + steps - 1]
        shares = sorted(inside / whole for whole, inside in taken)
        step = statistics.median(whole for whole, _ in taken)
        inside = statistics.median(inside for _, inside in taken)
        print(
            f"| {batch} | {step * 1e3:.1f} | {inside * 1e6:.0f} | {inside * 1e6 / batch:.1f} | "
            f"{100 * statistics.median(shares):.2f} | {100 * shares[int(0.95 * len(shares))]:.2f} |"
        )


def timed(engine: Any) -> list[float]:
    """Return a list whose one element grows by the seconds spent inside the processor of an engine of this process."""
    runner = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    [processor] = runner.input_batch.logitsprocs.non_argmax_invariant[2:]  # After vLLM's own.
    spent = [0.0]

    def counted(method: Any) -> Any:
        def timed_method(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = method(*arguments)
            spent[0] += time.perf_counter() - start
            return result

        return timed_method

    processor.apply, processor.update_state = counted(processor.apply), counted(processor.update_state)
    return spent


def pairs(model: Path, count: int, tokens: int, folder: Path) -> None:
    """Print throughput with the processor against without, in alternating pairs."""
    import httpx

    servers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for name in ("with", "without"):
            port = free_port()
            line = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
            line += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
            line += ["--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager"]
            line += FLAG if name == "with" else ()
            environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
            with (folder / f"{name}.log").open("wb") as out:
                process = subprocess.Popen(line, env=environment, stdout=out, stderr=subprocess.STDOUT)
            servers[name] = (process, port)
            wait_until_up(process, port, folder / f"{name}.log")

        def batch(name: str, number: int) -> tuple[float, float]:
            process, port = servers[name]

            def one(i: int) -> None:
                body = {"model": "m", "prompt": f"Story {i} of day {number} begins", "max_tokens": tokens}
                body |= {"temperature": 1.0, "ignore_eos": True}
                body |= {"vllm_xargs": {"taggant_account": f"account-{i}"}}
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=600).json()
                assert answer["usage"]["completion_tokens"] == tokens, answer

            used, start = processor_seconds(process.pid), time.perf_counter()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(one, range(8)))
            return time.perf_counter() - start, processor_seconds(process.pid) - used

        for name in servers:  # Compiles what is left to compile.
            batch(name, 10**6)
        taken: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
        for number in range(count):
            for name in ("with", "without") if number % 2 else ("without", "with"):
                taken[name].append(batch(name, number))
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait(timeout=60)
    print(f"\n{count} alternating pairs of 8 requests of {tokens} tokens, with the processor over without\n")
    print("| | with | without | change, % | 95% interval, % |")
    print("|---|---|---|---|---|")
    for title, column in (("tokens a second", 0), ("processor time a token, ms", 1)):
        ratios = [math.log(a[column] / b[column]) for a, b in zip(taken["with"], taken["without"], strict=True)]
        mean, half = statistics.fmean(ratios), half_interval(ratios)
        sign = -1 if column == 0 else 1  # More seconds are fewer tokens a second.
        shown = {name: statistics.median(row[column] for row in rows) for name, rows in taken.items()}
        figures = [8 * tokens / value if column == 0 else value * 1e3 / (8 * tokens) for value in shown.values()]
        low, high = sorted(math.expm1(sign * (mean + end)) * 100 for end in (-half, half))
        print(
            f"| {title} | {figures[0]:.2f} | {figures[1]:.2f} | {math.expm1(sign * mean) * 100:+.2f} | "
            f"{low:+.2f} to {high:+.2f} |"
        )


def half_interval(values: list[float]) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process and of all that it started, in seconds."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(processor_seconds(int(child)) for child in children.read_text().split())
    return total


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import httpx

    while process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    sys.exit(log.read_text()[-3000:])


if __name__ == "__main__":
    main()
