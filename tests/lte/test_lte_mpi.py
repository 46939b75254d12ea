"""MPI against the serial run: same bits, and an end to every fault. Ranks run as subprocesses."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import time

import pytest
from launch import Ended, Job, assert_no_orphan, environment, finish, mpi_command, start, world
from processes import command_line, descendants
from sampling import LONG, SEED, count

pytestmark = pytest.mark.timeout(300)

SMALL = [
    "lte",
    "--hidden",
    "16,12",
    "--heads",
    "5",
    "--rank",
    "2",
    "--batch",
    "20",
    "--merge-every",
    "4",
    "--steps",
    "22",
]
VARIANTS = {
    "adamw": ["--baseline", "lora"],
    "loko": ["--optimizer", "loko", "--reset", "AB", "--realisation", "copies"],
    "sgd": [
        *("--optimizer", "sgd,momentum=0.9", "--reset", "B", "--dense-last"),
        *("--dtype", "float32", "--lora-bias"),
    ],
    "mhlora": ["--mode", "mhlora", "--optimizer", "adagrad"],
    "vit": [
        *("--network", "vit", "--reset", "AB", "--realisation", "copies"),
        *(f"--size={k}" for k in ("layers=1", "width=8", "heads=2", "ff=12")),
    ],
}


def arguments(name: str) -> list[str]:
    small = [k for k in SMALL if k not in ("--hidden", "16,12")] if name == "vit" else SMALL
    return [*small, *VARIANTS[name]]


_serial: dict[str, str] = {}


def serial(name: str, tmp_path) -> str:
    """The JSON of the run in one process, without MPI."""
    if name not in _serial:
        file = tmp_path / "serial.json"
        command = [sys.executable, "-m", "loko_ref", *arguments(name), "--json", str(file)]
        ended = finish(start(command))
        assert ended.code == 0, ended.err
        _serial[name] = file.read_text()
    return _serial[name]


def lte_over(w, ranks: int, *arguments: str, timeout: float = 120) -> Ended:
    return finish(start(mpi_command(w, ranks, "-m", "loko_ref", *arguments)), timeout)


def family(which, **_):
    return which


@pytest.mark.sampled(1, by=family)
@pytest.mark.parametrize("which", ["own", "other"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_every_number_of_ranks_gives_the_serial_runs_json(which, ranks, tmp_path) -> None:
    w = world(which)
    file = tmp_path / "mpi.json"
    ended = lte_over(w, ranks, *SMALL, *VARIANTS["adamw"], "--json", str(file))
    assert ended.code == 0, ended.err
    assert file.read_text() == serial("adamw", tmp_path)
    assert ended.out.count("state_sha256") == 1


@pytest.mark.sampled(1, by=family)
@pytest.mark.parametrize("which", ["own", "other"])
@pytest.mark.parametrize("name", ["loko", "vit", "sgd", "mhlora"])
def test_every_variant_gives_the_serial_runs_json(which, name, tmp_path) -> None:
    w = world(which)
    file = tmp_path / "mpi.json"
    ended = lte_over(w, 3, *arguments(name), "--json", str(file))
    assert ended.code == 0, ended.err
    assert file.read_text() == serial(name, tmp_path)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "1", "--steps", "8"], "loko-ref: heads: got 1 heads on 2 ranks"),
        (["--reset", "C"], "loko-ref: reset: got 'C'"),
        (["--backend", "cupy", "--steps", "8"], "loko-ref: "),
    ],
    ids=["more ranks than heads", "a bad argument", "a backend that cannot be had"],
)
def test_what_all_ranks_refuse_is_reported_once_and_clearly(words, said) -> None:
    if "cupy" in words and importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is installed")
    ended = lte_over(world("own"), 2, "lte", *words)
    assert ended.code == 2
    assert ended.err.count(said) == 1
    assert "Traceback" not in ended.err


@pytest.mark.larger
def test_large_products_give_the_same_bits_whatever_the_threads_at_hand(tmp_path) -> None:
    """A launcher that binds ranks to cores leaves them one thread; a serial run finds them all."""
    wide = ["lte", "--hidden", "512,300", "--batch", "96", "--steps", "8"]
    hashes = set()
    for threads in ("1", "2"):
        file = tmp_path / f"{threads}.json"
        command = [sys.executable, "-m", "loko_ref", *wide, "--json", str(file)]
        ended = finish(start(command, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads))
        assert ended.code == 0, ended.err
        hashes.add(json.loads(file.read_text())["state_sha256"])
    assert len(hashes) == 1


def test_processes_that_do_not_see_each_other_are_refused() -> None:
    w = world("own")
    name = "PMI_SIZE" if w.family == "mpich" else "OMPI_COMM_WORLD_SIZE"
    ended = finish(start([w.python, "-m", "loko_ref", "lte", "--steps", "8"], **{name: "2"}))
    assert ended.code == 2
    assert "2 processes, of which each sees 1 rank" in ended.err
    assert "use the mpiexec in the Python environment's own directory" in ended.err


@pytest.mark.parametrize("launcher", ["own", "other"])
def test_the_other_familys_mpiexec_is_refused(launcher) -> None:
    outer, inner = world(launcher), world("other" if launcher == "own" else "own")
    command = mpi_command(outer, 2, "-m", "loko_ref", "lte", "--steps", "8")
    command[command.index(outer.python)] = inner.python
    ended = finish(start(command))
    assert ended.code != 0
    assert "of which each sees 1 rank" in ended.err


def test_without_mpi4py_a_launched_run_names_the_extra() -> None:
    hide = "import sys; sys.modules['mpi4py'] = None; from loko_ref.cli import main; "
    hide += "sys.argv = ['loko-ref', 'lte', '--steps', '8']; main()"
    ended = finish(start([sys.executable, "-c", hide], PMI_SIZE="2"))
    assert ended.code == 2
    assert "pip install 'loko-ref[mpi]'" in ended.err
    ended = finish(start([sys.executable, "-c", hide]))  # and in one process it is not needed
    assert ended.code == 0, ended.err


FAULTS = [("raise", 1), ("exit", 2), ("vanish", 1), ("kill", 0), ("raise", 0), ("kill", 1)]


@pytest.mark.sampled(1, by=family)
@pytest.mark.parametrize("which", ["own", "other"])
@pytest.mark.parametrize(("kind", "rank"), FAULTS)
def test_a_rank_that_fails_ends_the_job(which, kind, rank, tmp_path) -> None:
    w = world(which)
    token = str(tmp_path / "never.json")
    faulty = os.path.join(os.path.dirname(__file__), "faulty.py")
    command = mpi_command(w, 3, faulty, kind, str(rank), "9", *SMALL, "--json", token)
    # start-up of three interpreters on a loaded machine, and 10 s for the end itself
    ended = finish(start(command), timeout=60)
    if kind in ("raise", "exit"):
        assert ended.code != 0
        said = "RuntimeError: made to fail" if kind == "raise" else "left early with exit code 0"
        assert f"rank {rank}: step 9 (step): {said}\n" in ended.err  # whatever the launcher loses
    if kind == "kill":
        assert ended.code != 0
    assert "the last step that each rank logged" in ended.err
    assert f"rank {rank}: step 9 (step)" in ended.err
    for other in {0, 1, 2} - {rank}:  # the others can be ahead or behind by one interval at most
        assert f"rank {other}: step " in ended.err
    assert not os.path.exists(token)
    assert_no_orphan(token)


@pytest.mark.sampled(1, by=family)
@pytest.mark.parametrize("which", ["own", "other"])
@pytest.mark.parametrize(("kind", "rank"), [("vanish", 1), ("raise", 0)])
def test_a_rank_that_ends_before_it_joined_the_others_ends_the_job(
    which, kind, rank, tmp_path
) -> None:
    """The others wait for it inside MPI_Init, which has no end of its own."""
    w = world(which)
    token = str(tmp_path / "never.json")
    faulty = os.path.join(os.path.dirname(__file__), "faulty.py")
    command = mpi_command(w, 3, faulty, kind, str(rank), "-1", *SMALL, "--json", token)
    ended = finish(start(command), timeout=40)  # of which most is the start of the interpreters
    assert ended.code != 0
    if (kind, w.family) != ("raise", "openmpi"):  # whose launcher sees exit codes but 0 by itself
        said = f"loko-ref: rank {rank} of 3, step 0 (start): ended before it joined the others"
        assert said in ended.err
    assert not os.path.exists(token)
    assert_no_orphan(token)


def test_a_diverged_rank_names_itself_and_its_step(tmp_path) -> None:
    faulty = os.path.join(os.path.dirname(__file__), "faulty.py")
    ended = finish(start(mpi_command(world("own"), 2, faulty, "diverge", "1", "6", *SMALL)))
    assert ended.code != 0
    assert "rank 1: step 6 (step): NumericalError: step 6: gradient: not finite" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("which", ["own", "other"])
def test_a_killed_job_ends_within_ten_seconds(which, tmp_path) -> None:
    """From outside, while it trains: the time from the signal to the end of everything."""
    w = world(which)
    token = str(tmp_path / "long.json")
    process = start(mpi_command(w, 3, "-m", "loko_ref", *SMALL[:-1], "1000000", "--json", token))
    try:
        victims = wait_for_ranks(process, token, 3)
        time.sleep(1.5)  # into the training
        begun = time.monotonic()
        os.kill(victims[-1], signal.SIGKILL)
        ended = finish(process, timeout=30)
        assert_no_orphan(token)
        assert time.monotonic() - begun < 10
        assert ended.code != 0
    finally:
        if process.poll() is None:
            process.end()


def wait_for_ranks(process: Job, token: str, ranks: int) -> list[int]:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        found = [
            pid
            for pid in descendants(process.pid)
            if token in command_line(pid)
            and "mpiexec" not in command_line(pid)
            and "hydra" not in command_line(pid)
        ]
        if len(found) == ranks:
            return sorted(found)
        time.sleep(0.02)
    pytest.fail(f"the ranks did not start: {process.poll()}")


CHAOS = [
    "lte",
    "--hidden",
    "16",
    "--heads",
    "4",
    "--rank",
    "2",
    "--batch",
    "16",
    "--merge-every",
    "3",
    "--steps",
    "300",
    "--reset",
    "AB",
]


@pytest.mark.larger
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(count(1, 5)))
def test_chaos_killed_runs_resume_to_the_serial_runs_hash(part, tmp_path) -> None:
    """1 random kill (50 with --long), each at a random moment of a run on 1 to 4 ranks;
    each time the run resumes, on another number of ranks, to the serial run's JSON."""
    w = world("own")
    kills, most = count(1, 10), count(2, 4)
    wanted = tmp_path / "serial.json"
    ended = finish(start([sys.executable, "-m", "loko_ref", *CHAOS, "--json", str(wanted)]))
    assert ended.code == 0, ended.err
    want = json.loads(wanted.read_text())["state_sha256"]
    draw = random.Random(f"chaos {SEED} {part}")
    killed = mid_run = 0
    for attempt in range(4 * kills):
        if killed == kills:
            break
        place = tmp_path / f"run-{attempt}.npz"
        file = tmp_path / f"end-{attempt}.json"
        ranks = draw.randint(1, most)
        command = mpi_command(w, ranks, "-m", "loko_ref", *CHAOS, "--checkpoint", str(place))
        process = start(command)
        victims = wait_for_ranks(process, str(place), ranks)
        # while it trains, merges and saves; else while it starts
        if not mid_run or draw.random() < 0.8:
            while process.poll() is None and not place.exists():
                time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.8))
        victim = draw.choice(victims)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            finish(process, 60)
            continue  # it was done already
        broken = finish(process, timeout=30)
        if broken.code == 0:
            continue  # the signal came after the end
        killed += 1
        assert_no_orphan(str(place))
        mid_run += place.exists()
        again = draw.randint(1, most)
        more = ["--resume", str(place)] if place.exists() else []
        ended = finish(
            start(
                mpi_command(
                    w,
                    again,
                    "-m",
                    "loko_ref",
                    *CHAOS,
                    *more,
                    "--checkpoint",
                    str(place),
                    "--json",
                    str(file),
                )
            )
        )
        assert ended.code == 0, ended.err
        assert json.loads(file.read_text())["state_sha256"] == want
    assert killed == kills
    assert mid_run > 0, "no kill fell between the first merge and the end: widen the moments"


def test_the_launchers_environment_is_read_as_documented(monkeypatch) -> None:
    from loko_ref.lte import mpi

    for name in list(environment()):
        if name.startswith(("PMI", "OMPI", "MPI_", "SLURM")):
            monkeypatch.delenv(name)
    assert mpi.launched() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert mpi.launched() is None  # a batch script, not srun
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert mpi.launched() == 4
    monkeypatch.setenv("PMI_SIZE", "3")
    assert mpi.launched() == 3
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert mpi.launched() == 2


def test_an_interrupt_is_one_line_of_rank_0_and_ends_every_rank(tmp_path) -> None:
    w = world("own")
    token = f"interrupted-{os.getpid()}.npz"
    arguments = [*SMALL, "--steps", "100000", "--checkpoint", str(tmp_path / token)]
    process = start(mpi_command(w, 2, "-m", "loko_ref", *arguments))
    until = time.monotonic() + 60
    while not (tmp_path / token).exists() and time.monotonic() < until:
        time.sleep(0.02)
    begun = time.monotonic()
    process.process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert time.monotonic() - begun < (1 if LONG else 4)
    if w.family == "mpich":
        assert ended.code == 130, f"{ended}"
    ours = [line for line in ended.err.splitlines() if line.startswith("loko-ref: ")]
    assert len(ours) == 1, ended.err
    assert "interrupted; kept: " in ours[0]
    assert "-m mpi4py -m loko_ref lte " in ours[0].split("resume with: ")[1]
    assert "Traceback" not in ended.err + ended.out
    assert_no_orphan(token)
