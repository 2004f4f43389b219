"""Run by tests in a process of its own: a small random model in vLLM, and its answers as JSON on the last line.

    python vllm_answers.py MODEL_DIR '{"num_gpu_blocks_override": 8}' '[{"taggant_account": "acme"}, ...]'

The options are those of `vllm.LLM`; each of the fields is one request of 100 tokens, the last a greedy one.
"""

import json
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    folder, options, fields = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    llm = LLM(
        model=folder,
        dtype="bfloat16",
        max_model_len=160,
        max_num_seqs=4,
        enforce_eager=True,
        distributed_executor_backend="uni",
        disable_log_stats=False,
        **options,
    )
    params = [SamplingParams(temperature=1.0, max_tokens=100, ignore_eos=True, extra_args=one) for one in fields]
    params[-1].temperature = 0.0  # It goes in circles, so that drafts are accepted.
    prompts = [f"A story of the number {i}, and" for i in range(len(fields))]
    answers = [list(done.outputs[0].token_ids) for done in llm.generate(prompts, params, use_tqdm=False)]
    counted = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    told = {
        "answers": answers,
        "runner": type(runner).__mro__[1].__module__,
        "preempted": counted.get("vllm:num_preemptions", 0),
        "accepted": counted.get("vllm:spec_decode_num_accepted_tokens", 0),
    }
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
