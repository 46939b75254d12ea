"""Every command's help has examples that its parser takes; the shell completes names."""

import os
import shlex
from unittest import mock

import pytest
import typer
from command import loko_ref

from loko_ref.cli.app import app
from loko_ref.cli.examples import EXAMPLES
from loko_ref.conformance.cases.registry import all_cases
from loko_ref.conformance.catalogue.registry import OPERATIONS
from loko_ref.explain.derivations import derivations


def commands(command=None, words=()):
    command = typer.main.get_command(app) if command is None else command
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(words): command}
    return {k: v for name, one in inner.items() for k, v in commands(one, (*words, name)).items()}


COMMANDS = commands()


def test_every_command_has_examples_in_its_help():
    assert set(EXAMPLES) == set(COMMANDS)
    for name, examples in EXAMPLES.items():
        done = loko_ref(*name.split(), "--help", columns=120)
        assert done.returncode == 0
        lines = [line.strip() for line in done.stdout.splitlines()]
        assert {f"• {example}" for example in examples} <= set(lines), name


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_parses(name):
    for example in EXAMPLES[name]:
        words = shlex.split(example)
        assert words[: 1 + len(name.split())] == ["loko-ref", *name.split()]
        context = COMMANDS[name].make_context(name, words[1 + len(name.split()) :])
        assert not context.args


def completed(*words):
    """What bash is offered behind these words."""
    env = {"_LOKO_REF_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("loko-ref", *words))}
    with mock.patch.dict(os.environ, env, COMP_CWORD=str(len(words))):
        return loko_ref().stdout.split()


CASES = [case.id for case in all_cases()]
WORDS = [
    (("ope",), ["operations"]),
    (("operations", "kalman."), [name for name in OPERATIONS if name.startswith("kalman.")]),
    (("case", "lora.delta/"), [key for key in CASES if key.startswith("lora.delta/")]),
    (("case", "lora.m"), ["lora.merge/"]),
    (("verify", "--dtype", "float6"), ["float64"]),
    (("verify", "--option", "observation=s"), ["observation=softmax"]),
    (("explain", "KAL-"), [label for label in derivations() if label.startswith("KAL-")]),
    (("init", "t"), ["torch"]),
    (("mutants", "--only", "S-JI"), ["S-JITTER"]),
    (("properties", "--only", "lora.delta/lin"), ["lora.delta/linear"]),
    (("schema", "cal"), ["calibration"]),
]


@pytest.mark.sampled(0.3)
@pytest.mark.parametrize(("words", "offered"), WORDS, ids=lambda x: "-".join(x)[:40])
def test_the_shell_completes(words, offered):
    assert completed(*words) == offered


def test_completion_can_be_installed():
    text = loko_ref("--help").stdout
    assert "--install-completion" in text
    assert "--show-completion" in text
