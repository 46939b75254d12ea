"""What every test shares: the sample that runs, Hypothesis profiles, warnings as errors.

Hypothesis is modest and deterministic by default, draws more from the run's seed where one is
given, and many more with ``--long``.
"""

import os
import warnings
from collections import Counter, defaultdict

import browser as in_browser
import numpy as np
import pytest
import sampling
from hypothesis import HealthCheck, Phase, settings

COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "phases": [Phase.explicit, Phase.generate, Phase.target, Phase.shrink],  # none that traces
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=10, derandomize=True, **COMMON)
settings.register_profile("ci", max_examples=60, **COMMON)
settings.register_profile("long", max_examples=300, **COMMON)


def pytest_addoption(parser):
    group = parser.getgroup("sampling")
    group.addoption("--long", action="store_true", help="everything, at full length")
    group.addoption("--sample-seed", metavar="SEED", help="the seed of what is drawn (0)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.getoption("--long"):
        os.environ["LOKO_REF_LONG"] = "1"
    if config.getoption("--sample-seed") is not None:
        os.environ["LOKO_REF_SEED"] = config.getoption("--sample-seed")
    sampling.read_environment()
    profile = "long" if sampling.LONG else "ci" if sampling.SEED != "0" else "default"
    settings.load_profile(profile)
    if profile == "ci" and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = sampling.SEED
    config.stash[LEFT_OUT] = Counter()
    if getattr(config.option, "numprocesses", None):
        # workers share the cores; those that start anew read this before NumPy is there
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


LEFT_OUT = pytest.StashKey[Counter]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Draw from the tests marked ``sampled``; leave out ``slow`` and ``larger`` ones; say so."""
    if sampling.LONG:
        return
    functions = defaultdict(list)
    kept = set()
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is not None and hasattr(item, "callspec"):
            functions[item.nodeid.split("[")[0]].append(item)
        else:
            kept.add(item)
    for group in functions.values():
        marker = group[0].get_closest_marker("sampled")
        (share,), by = marker.args, marker.kwargs.get("by")
        drawn = sampling.sample(
            group,
            share,
            by=by and (lambda item, by=by: by(**item.callspec.params)),
            name=lambda item: item.callspec.id,  # the same in every test of the same cases
        )
        kept.update(drawn)
    if sampling.SHARE == 1:  # no larger sample, as .ci/run takes
        larger = {item for item in items if item.get_closest_marker("larger")}
        kept -= larger
    slow = [item for item in items if item.get_closest_marker("slow")]
    left = [item for item in items if item not in kept and item not in slow]
    gone = {*slow, *left}
    config.stash[LEFT_OUT].update(sampled=len(left), slow=len(slow), all=len(items))
    if gone:
        config.hook.pytest_deselected(items=list(gone))
        items[:] = [item for item in items if item not in gone]


def pytest_report_header(config):
    what = "everything, at full length" if sampling.LONG else "a sample"
    return f"{what}, drawn by {sampling.repeat()}"


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the kit's tests that share units of error in one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if "test_site" in nodeid or "test_architecture" in nodeid:  # one build, one reading
                return nodeid.split("::")[0]
            shared = "conformance/" in nodeid and "test_protocol" not in nodeid
            return "units" if shared else nodeid

    few = (config.getvalue("numprocesses") or 0) <= 3  # with more, no one should take them all
    return Together(config, log) if few and config.getvalue("dist") == "load" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Every worker collects the same: one of them is heard."""
    left = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[LEFT_OUT].update(Counter(left) - node.config.stash[LEFT_OUT])


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    left = config.stash[LEFT_OUT]
    out = left["sampled"] + left["slow"]
    if out:
        terminalreporter.write_line(
            f"a sample ran: {left['all'] - out} of {left['all']} tests; not drawn {left['sampled']}"
            f", only with --long {left['slow']}; all of them: python -m pytest --long"
        )
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(
            f"to repeat one of the failures: {sampling.repeat()} python -m pytest 'NODEID'"
        )


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """A warning of NumPy's (overflow, division by zero) is a failure, also inside Hypothesis."""
    with warnings.catch_warnings(), np.errstate(over="warn", divide="warn", invalid="warn"):
        warnings.simplefilter("error")
        # JAX, where another test has loaded it, warns of its threads at every fork of a test
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(2410_11551)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def chromium():
    """Headless Chromium, one for all tests of a worker; without it they skip and say why."""
    with in_browser.running() as started:
        yield started
