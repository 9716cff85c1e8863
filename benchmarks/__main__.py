"""``python -m benchmarks [NAME [ARGUMENT…]]``: one benchmark with its own arguments, or all, each in its own process; prints JSON."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = {script.stem: script for script in sorted(Path(__file__).parent.glob("[a-z]*.py")) if not script.stem.startswith("vendor_")}

chosen, arguments = sys.argv[1:2], sys.argv[2:]
if not set(chosen) <= set(SCRIPTS):
    sys.exit(f"no benchmark {chosen[0]!r}; there are {', '.join(SCRIPTS)}")
for name in chosen or SCRIPTS:
    print(f"== {name}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, str(SCRIPTS[name]), *arguments], check=True)
