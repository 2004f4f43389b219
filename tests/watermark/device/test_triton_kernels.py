"""Triton's kernels without a GPU: interpreted for their integers, compiled ahead of time for their code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the device path needs torch")
pytest.importorskip("triton", reason="the kernels need triton")

HERE = Path(__file__).parent

#: Triton 3.9's interpreter rounds float32 to bfloat16 half up, and loses the carry into the exponent; the
#: hardware's instruction rounds half to even, as torch does. So the interpreter gets torch's conversion.
INTERPRET = """
import sys
import numpy as np, pytest, torch, triton.language as tl
from triton.runtime import interpreter

convert = interpreter._convert_float

def rounded_to_even(value, source, target, rounding):
    if (source, target) != (tl.float32, tl.bfloat16):
        return convert(value, source, target, rounding)
    return torch.from_numpy(np.array(value, dtype=np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)

interpreter._convert_float = rounded_to_even
sys.exit(pytest.main(sys.argv[1:]))
"""

#: Compiles the kernels as `DeviceGreenLists` launches them and prints their PTX.
COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from watermark.device.triton_kernels import add_kernel, plan_kernel

types = {"special_ptr": "*u8", "row_slot_ptr": "*i64", "pos_ptr": "*i64", "table_stride": "i64"}
for name in ("scope_windows_ptr", "fleet_lanes_ptr", "lane_k_ptr", "special_tiles_ptr", "ids_ptr",
             "length_ptr", "table_ptr", "local_pos_ptr"):
    types[name] = "*i32"

def compiled(kernel, **constants):
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*i64" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    code = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", int(sys.argv[1]), 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    ).asm
    assert code["cubin"][:4] == b"\\x7fELF"
    return code["ptx"]

for from_table in (False, True):
    print(compiled(plan_kernel, FROM_TABLE=from_table))
for logits in ("fp32", "bf16", "fp16"):
    types["logits_ptr"] = "*" + logits
    print(compiled(add_kernel))
"""


def run(script: str, *arguments: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_interpreted_kernels_are_the_specification(tmp_path: Path) -> None:
    """The tests of the green lists that are for both paths, on Triton's."""
    done = run(
        INTERPRET,
        "-q",
        "-k",
        "triton",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(HERE.parents[2]),
        str(HERE / "test_green_lists.py"),
        tmp_path=tmp_path,
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cuda(tmp_path: Path, capability: int) -> None:
    from triton.backends import backends

    if "nvidia" not in backends:
        pytest.skip("this Triton has no compiler for CUDA")
    done = run(COMPILE, str(capability), tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count(f".target sm_{capability}") == 5
    for half in ("bf16", "f16"):  # To nearest, ties to even, by the instruction for it.
        assert f"cvt.rn.{half}" in done.stdout
