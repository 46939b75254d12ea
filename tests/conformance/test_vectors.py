"""Golden vectors: deterministic, complete, and a damaged or hostile file is refused."""

import hashlib
import json
import random
import shutil
import struct

import jsonschema
import numpy as np
import pytest
from command import loko_ref
from sampling import SEED, count, sample

from loko_ref.conformance.cases.registry import all_cases, select
from loko_ref.conformance.vectors import vectors
from loko_ref.conformance.vectors.manifest import MANIFEST_SCHEMA, digest, read_manifest
from loko_ref.errors import InputError

ONLY = "lora.*"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("vectors") / "set"
    vectors.export(place, select(ONLY))
    return place


@pytest.fixture
def folder(exported, tmp_path):
    place = tmp_path / "set"
    shutil.copytree(exported, place)
    return place


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def rewrite(folder, change, entry=0):
    """Change an entry, and make the digest fit."""
    manifest = manifest_of(folder)
    change(manifest["cases"][entry])
    manifest["digest"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge(folder, payload, entry=0):
    """Exchange a case's file and make the manifest's claims about its bytes true."""
    case = manifest_of(folder)["cases"][entry]
    (folder / case["file"]).write_bytes(payload)

    def change(e):
        e["bytes"], e["sha256"] = len(payload), hashlib.sha256(payload).hexdigest()

    rewrite(folder, change, entry)


def test_export_is_complete_valid_and_deterministic(exported, tmp_path):
    manifest = manifest_of(exported)
    jsonschema.validate(manifest, MANIFEST_SCHEMA)
    assert [c["id"] for c in manifest["cases"]] == [c.id for c in select(ONLY)]
    vectors.export(tmp_path / "again", select(ONLY))
    for path in exported.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert vectors.check(exported) == []


def test_set_round_trips(tmp_path):
    """Some cases, and one that is read below; all with --long."""
    drawn = sample(all_cases(), 8)
    (read,) = select("loko.step/glm/float32")
    cases = [c for c in all_cases() if c in drawn or c == read]
    vectors.export(tmp_path / "all", cases)
    found = vectors.read(tmp_path / "all")
    assert sorted(found) == sorted(case.id for case in cases)
    tensors = found["loko.step/glm/float32"]
    assert tensors["in.weights.0.W"].dtype == np.float32
    assert tensors["out.K"].dtype == tensors["tol.K"].dtype == np.float64
    assert vectors.check(tmp_path / "all") == []


def test_readable_by_the_safetensors_package(exported):
    safetensors = pytest.importorskip("safetensors.numpy")
    ours = vectors.read(exported)["lora.merge/tiny/float64"]
    theirs = safetensors.load_file(str(exported / "lora.merge--tiny--float64.safetensors"))
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes()


def test_a_changed_number_is_found(folder):
    case = manifest_of(folder)["cases"][0]
    path = folder / case["file"]
    tensors = {k: np.array(v) for k, v in vectors.read_tensors(path).items()}
    tensors["out.delta"].reshape(-1)[0] += 1e-12
    forge(folder, vectors.pack_safetensors(tensors, vectors._head(case["id"])))
    (difference,) = vectors.check(folder)
    assert difference.endswith("out.delta is beyond the roundoff of float64 of what is derived now")


def header(head, body=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


REFUSALS = {
    "truncated": (lambda f, p: p.write_bytes(p.read_bytes()[:-3]), "truncated or grown"),
    "damaged": (
        lambda f, p: p.write_bytes(p.read_bytes()[:-1] + b"\x55"),
        "a damaged or exchanged file",
    ),
    "removed": (lambda f, p: p.unlink(), "renamed, removed or a link"),
    "renamed": (lambda f, p: p.rename(f / "other.safetensors"), "renamed, removed or a link"),
    "surplus": (lambda f, p: (f / "x.txt").write_text("x"), "that no case names"),
    "link": (
        lambda f, p: (p.rename(f.parent / "o"), p.symlink_to(f.parent / "o")),
        "renamed, removed or a link",
    ),
    "exchanged": (
        lambda f, p: rewrite(f, lambda e: e.update(file=manifest_of(f)["cases"][1]["file"])),
        "Likely cause: renamed",
    ),
    "traversal": (
        lambda f, p: rewrite(f, lambda e: e.update(file="../../etc/passwd")),
        "a path that leaves the folder",
    ),
    "absolute": (
        lambda f, p: rewrite(f, lambda e: e.update(file="/etc/passwd")),
        "a path that leaves the folder",
    ),
    "huge claim": (lambda f, p: rewrite(f, lambda e: e.update(bytes=10**30)), "out of range"),
    "foreign key": (lambda f, p: rewrite(f, lambda e: e.update(x=1)), "a foreign key 'x'"),
    "twice": (lambda f, p: rewrite(f, lambda e: e.update(id="a"), 0) or twice(f), "an id twice"),
    "absurd head": (
        lambda f, p: forge(f, struct.pack("<Q", 2**63) + b"{}"),
        "a head of 9223372036854775808 bytes",
    ),
    "no head": (lambda f, p: forge(f, header(b"not json")), "head: got no JSON"),
    "deep head": (lambda f, p: forge(f, header(b"[" * 100_000)), "64 levels deep"),
    "infinite shape": (
        lambda f, p: forge(
            f, header(b'{"a":{"dtype":"F64","shape":[1e999],"data_offsets":[0,8]}}', b"\0" * 8)
        ),
        "1e999; required a number within",
    ),
    "empty but endless": (
        lambda f, p: forge(
            f,
            header({"a": {"dtype": "F64", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        ),
        "no array has shape (0, 4611686018427387904)",
    ),
    "overlap": (
        lambda f, p: forge(
            f,
            header(
                {n: {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]} for n in ("a", "b")},
                b"\0" * 8,
            ),
        ),
        "bytes 0 to 8",
    ),
    "other tensors": (
        lambda f, p: forge(
            f, header({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8)
        ),
        "unlike the manifest's",
    ),
    "empty manifest": (lambda f, p: (f / "manifest.json").write_text(""), "got no JSON"),
    "deep manifest": (
        lambda f, p: (f / "manifest.json").write_text("[" * 100_000),
        "64 levels deep",
    ),
    "key twice": (
        lambda f, p: (f / "manifest.json").write_text('{"schema":1,"schema":2}'),
        "the key 'schema' twice",
    ),
    "not ours": (lambda f, p: (f / "manifest.json").write_text("{}"), "lacks 'schema'"),
    "latin": (lambda f, p: (f / "manifest.json").write_bytes(b"\xff\xfe{"), "got no JSON ('utf-8'"),
    "no manifest": (lambda f, p: (f / "manifest.json").unlink(), "no such plain file"),
}


def twice(folder):
    manifest = manifest_of(folder)
    manifest["cases"][1]["id"] = manifest["cases"][0]["id"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(folder, name):
    spoil, message = REFUSALS[name]
    spoil(folder, folder / manifest_of(folder)["cases"][0]["file"])
    with pytest.raises(InputError) as error:
        vectors.read(folder)
    assert message in str(error.value)


def test_oversized(folder, monkeypatch):
    monkeypatch.setattr(vectors, "FILE_LIMIT", 64)
    with pytest.raises(InputError, match="required at most 64"):
        vectors.read(folder)


def test_fuzz(folder):
    """Bytes changed at random, hashes made to fit: refused or read, never another error."""
    rng = random.Random(f"vectors {SEED}")
    case = manifest_of(folder)["cases"][0]
    good = (folder / case["file"]).read_bytes()
    text = (folder / "manifest.json").read_bytes()
    entry = dict(case)
    times = count(300, 10_000)
    for _ in range(times):
        spoilt = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            where = rng.randrange(min(len(spoilt), 600)) if rng.random() < 0.8 else 0
            what = rng.random()
            if what < 0.6:
                spoilt[where] = rng.randrange(256)
            elif what < 0.8:
                del spoilt[where : where + rng.randint(1, 40)]
            else:
                spoilt[where:where] = rng.randbytes(rng.randint(1, 20))
        payload = bytes(spoilt)
        (folder / case["file"]).write_bytes(payload)
        entry |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        try:
            vectors._case_tensors(folder, entry)
        except InputError:
            continue
    for _ in range(times):
        spoilt = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        (folder / "manifest.json").write_bytes(bytes(spoilt))
        try:
            read_manifest(folder)
        except InputError:
            continue


def test_not_into_a_full_folder(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(InputError, match="a new or empty folder"):
        vectors.export(tmp_path, [])


def cli(*arguments):
    return loko_ref("vectors", *arguments)


def test_cli(tmp_path):
    result = cli("export", tmp_path / "v", "--only", "kalman.time_update")
    assert result.returncode == 0, result.stderr
    assert "14 cases of vectors/1 in" in result.stdout
    result = cli("check", tmp_path / "v")
    assert (result.returncode, result.stdout) == (0, "all vectors agree\n")
    (tmp_path / "v" / "manifest.json").write_text("{")
    result = cli("check", tmp_path / "v")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    result = cli("schema")
    assert json.loads(result.stdout) == MANIFEST_SCHEMA
