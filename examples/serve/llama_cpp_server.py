"""llama-cpp-python's OpenAI server, marking what it answers.

    pip install 'llama-cpp-python[server]==0.3.36' 'taggant[llama-cpp]'
    TAGGANT_CONFIG=taggant.toml python llama_cpp_server.py --model model.gguf --port 8000

Which keys, which scope, and whether an answer that can't be marked is refused: see docs/how-to/llama-cpp.md.
The server starts only if the model's tokenizer is the scope's and marks reach its sampler.
"""

import argparse

import llama_cpp.server.app as llama_app
import uvicorn
from llama_cpp.server.settings import ModelSettings, ServerSettings

from watermark.engines.llama_cpp import mark_server
from watermark.errors import TaggantError
from watermark.marker import Marker
from watermark.serving import ServingConfig


def main() -> None:
    """Start the server, and answer until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--chat-format", default=None, help="default: the model file's own template")
    options = parser.parse_args()

    app = llama_app.create_app(
        server_settings=ServerSettings(host=options.host, port=options.port),
        model_settings=[
            ModelSettings(
                model=options.model,
                n_ctx=options.n_ctx,
                n_threads=options.threads,
                n_threads_batch=options.threads,
                n_gpu_layers=options.gpu_layers,
                chat_format=options.chat_format,
                logits_all=False,  # Only logprobs want them, and a copy of every logit costs more than marking.
                verbose=False,
            )
        ],
    )
    try:
        marker = Marker(ServingConfig.from_environment())
        mark_server(llama_app, app, marker)
    except TaggantError as error:
        raise SystemExit(f"taggant: {error}") from None
    try:
        from watermark.middleware import TaggantMiddleware
    except ImportError:
        pass  # Answers are marked for the fleet; accounts come with the middleware.
    else:
        app.add_middleware(TaggantMiddleware, injection="context")
    marker.watch()  # A scope that is activated or retired is taken up without a restart.
    try:
        uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    finally:
        marker.close()


if __name__ == "__main__":
    main()
