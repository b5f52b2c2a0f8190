"""Run the fuzz tests in rounds, each on other inputs, until the time is over.

    python tests/fuzz/run.py --minutes 60

Every round draws its inputs from a seed of its own, its number, and a failure prints its smallest example.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no round after so many minutes")
    parser.add_argument("--seed", type=int, default=0, help="number of the first round")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("tests", nargs="*", default=[str(HERE)], help="by default all of this folder")
    options = parser.parse_args()
    words = ["-m", "fuzz", "-q", "-n", str(options.processes), "--hypothesis-profile=fuzz", "--timeout=3600"]
    end, failed, rounds = time.monotonic() + 60 * options.minutes, [], 0
    while rounds == 0 or time.monotonic() < end:
        seed = options.seed + rounds
        command = [sys.executable, "-m", "pytest", *words, f"--hypothesis-seed={seed}", *options.tests]
        failed += [seed] if subprocess.run(command, check=False).returncode else []
        rounds += 1
    verdict = f"failures with the seeds {', '.join(map(str, failed))}" if failed else "no failure"
    print(f"{rounds} rounds, {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
