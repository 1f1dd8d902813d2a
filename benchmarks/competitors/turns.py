"""A measured program that stays: one line of stdin, one piece of work, one line of JSON."""

import json
import sys
import time
from collections.abc import Callable

from harness import peak_mib


def serve(works: dict[str, Callable[[], object]], ready: dict) -> None:
    """Tell `ready`, then answer every line, the name of a work, with what it took in milliseconds
    (wall and processor), the peak of memory and what the work has to tell, where that is a dict."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        begun, used = time.perf_counter(), time.process_time()
        result = works[line.strip()]()
        ms, cpu = time.perf_counter() - begun, time.process_time() - used
        told = result if isinstance(result, dict) else {}
        print(json.dumps({"ms": 1e3 * ms, "cpu_ms": 1e3 * cpu} | told | {"peak_mib": peak_mib()}))
        sys.stdout.flush()
