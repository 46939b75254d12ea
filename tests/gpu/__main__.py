"""The command: every part in a process of its own, with a time-out; one JSON file.

python -m tests.gpu OUT [--emulate] [--only PART ...]
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module, metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu import ROOT
from loko_ref.errors import BackendError

PARTS = {
    "states": ("parts", 30),
    "failure": ("parts", 15),
    "covariances": ("parts", 45),
    "baselines": ("parts", 15),
    "heads": ("parts", 40),
    "speed": ("cost", 65),
    "memory": ("cost", 25),
    "tests": ("parts", 95),
}
"""Part -> its module, and the seconds after which it is stopped; together under six minutes."""
MACHINE = 20
"""Seconds for the question what there is."""

EMULATED = "--emulate was given: every line ran on the stand-in for CuPy, at small sizes"


def work(name, emulated):
    """Be one part: a line of JSON for each figure."""
    from gpu.figures import Part

    part = Part(emulated, sys.stdout)
    if name == "machine":
        try:
            cupy = part.lib.xp
        except BackendError as error:
            print(json.dumps({"unusable": str(error)}))
        else:
            print(json.dumps(machine(cupy)))
    else:
        getattr(import_module(f"gpu.{PARTS[name][0]}"), name)(part)


def machine(cupy):
    """What the figures were measured on."""
    found = {"python": platform.python_version(), "processor": platform.machine()}
    for package in ("numpy", "scipy", "torch", "pytest", "hypothesis"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"]
    return found | {
        "cupy": cupy.__version__,
        "cuda": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
    }


def environment(emulated):
    """Of a part: the draws of the default run, and one thread where the host does the work."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("LOKO_REF_", "PYTEST_"))}
    return found | ({"OMP_NUM_THREADS": "1"} if emulated else {})


def run(name, limit, emulated):
    """Run a part: its lines, and what became of it."""
    begun, limit = time.monotonic(), limit * (4 if emulated else 1)  # on a machine that is shared
    words = [sys.executable, "-m", "tests.gpu", "--work", name]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        one = subprocess.Popen(
            words + (["--emulate"] if emulated else []),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=ROOT,
            env=environment(emulated),
            start_new_session=True,
        )
        try:
            one.wait(timeout=limit)
            status = "finished" if one.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "stopped"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait(timeout=10)
        for file in (out, err):
            file.seek(0)
        found = []
        for line in out:
            with contextlib.suppress(ValueError):  # a line that the end has cut, or no figure
                found.append(json.loads(line))
        told = err.read()
    row = {"status": status, "seconds": round(time.monotonic() - begun, 1), "limit_s": limit}
    if status == "failed":
        row["error"] = told[-2000:]
    elif status == "stopped":
        row["error"] = f"it took longer than {limit} s"
    return row, [line for line in found if isinstance(line, dict)]


def write(out, report):
    """Write the report whole: after each part, so that what was found outlives the rest."""
    whole = out / "gpu.json.part"
    whole.write_text(json.dumps(report, indent=1) + "\n")
    whole.replace(out / "gpu.json")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder of gpu.json")
    parser.add_argument("--emulate", action="store_true", help="on the stand-in for CuPy")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked.emulate)
        return 0
    if asked.out is None:
        parser.error("OUT: the folder that gpu.json is written into")
    asked.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    row, found = run("machine", MACHINE, asked.emulate)
    report = {"emulated": asked.emulate, "reason": EMULATED if asked.emulate else None}
    report |= {"machine": found[0] if found else row, "met": True}
    if "unusable" in report["machine"]:
        write(asked.out, report | {"met": False})
        print(f"{report['machine']['unusable']} (--emulate needs no GPU)", file=sys.stderr)
        return 2
    report["parts"] = {}
    for name in asked.only or PARTS:
        row, figures = run(name, PARTS[name][1], asked.emulate)
        report["parts"][name] = row | {"figures": figures}
        verdicts = [figure["verdict"] for figure in figures]
        counts = {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}
        print(f"{name}: {row['status']} in {row['seconds']} s; {counts}", flush=True)
        good = row["status"] == "finished" and "missed" not in verdicts
        report |= {"met": report["met"] and good, "seconds": round(time.monotonic() - begun, 1)}
        write(asked.out, report)
    print(f"{'all met' if report['met'] else 'NOT all met'}: {asked.out / 'gpu.json'}")
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
