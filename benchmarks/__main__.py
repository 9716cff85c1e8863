"""Run every benchmark in its own process, one after the other; each prints one JSON document."""

import subprocess
import sys
from pathlib import Path

for script in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    print(f"== {script.name}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, str(script)], check=True)
