"""On PYTHONPATH, with TRITON_INTERPRET=1: lets vLLM's V2 model runner work on a CPU, in Triton's interpreter.

vLLM looks for a Triton backend named "cpu" and never compiles with it here. The interpreter refuses masks that are
not boolean, which compiled kernels take. A test's affair; a hundred times too slow for anything else.
"""

import os
from types import SimpleNamespace

if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import triton.backends
    from triton.runtime import interpreter

    driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)

    def with_boolean_mask(method, place):
        def changed(self, *arguments, **named):
            given = list(arguments)
            mask = given[place]
            if mask.data.dtype != np.bool_:
                given[place] = interpreter.TensorHandle(mask.data.astype(np.bool_), mask.dtype)
            return method(self, *given, **named)

        return changed

    builder = interpreter.InterpreterBuilder
    builder.create_masked_load = with_boolean_mask(builder.create_masked_load, 1)
    builder.create_masked_store = with_boolean_mask(builder.create_masked_store, 2)
