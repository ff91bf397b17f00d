"""Memory and CPU of a metrics page that is an attack: what is held from one reading to the next.

    .venv/bin/python benchmarks/hostile_page.py unwanted   2,000,000 lines of families that do not go on
    .venv/bin/python benchmarks/hostile_page.py series     1,000,000 series, with the default cap of 20,000
    .venv/bin/python benchmarks/hostile_page.py people     1,000,000 series that become one without their `user`
    .venv/bin/python benchmarks/hostile_page.py label      one label of 60 MiB

Prints one JSON object. Runs for up to a minute.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from exposition_pages import Reader

MIB = 1 << 20
TYPE = "# TYPE litellm_a counter\n"


def unwanted() -> str:
    return "".join(f'python_gc_{n % 50}{{g="{n}"}} {n}\n' for n in range(2_000_000)) + TYPE + "litellm_a 1\n"


def series() -> str:
    return TYPE + "".join(f'litellm_a{{model="m{n}"}} {n}\n' for n in range(1_000_000))


def people() -> str:
    return TYPE + "".join(f'litellm_a{{user="m{n}"}} {n}\n' for n in range(1_000_000))


def label() -> str:
    return TYPE + 'litellm_a{m="' + "x" * (60 * MIB) + '"} 1\nlitellm_b 1\n'


PAGES: dict[str, Callable[[], str]] = {each.__name__: each for each in (unwanted, series, people, label)}


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in PAGES:
        sys.exit(__doc__)
    body = PAGES[sys.argv[1]]().encode()
    gc.collect()
    reader, before = Reader(), resident_mib()
    seconds = []
    points = 0
    for _ in range(3):
        began = time.process_time()
        points = len(reader.read(body))
        seconds.append(round(time.process_time() - began, 2))
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "page_mib": round(len(body) / MIB),
                "points": points,
                "capped": reader.page.capped,
                "bad_lines": reader.page.bad_lines,
                "readings_s": seconds,
                "held_mib": round(resident_mib() - before),
                "process_peak_mib": round(peak),
            }
        )
    )


if __name__ == "__main__":
    main()
