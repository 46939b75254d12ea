"""Every leaf of the manifest and every byte of the files matters: what is changed is found."""

import copy
import hashlib
import json
import random
import shutil

import pytest
import sampling

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.vectors import enclosure, vectors
from loko_ref.conformance.vectors.manifest import digest
from loko_ref.errors import InputError

ONLY = "lora.delta"
APART = ("versions", "platform")  # where the set was made: any platform and version is right


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("vectors") / "set"
    vectors.export(place, select(ONLY), only=ONLY)
    assert vectors.check(place) == []
    return place


@pytest.fixture
def folder(exported, tmp_path):
    place = tmp_path / "set"
    shutil.copytree(exported, place)
    return place


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def write(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def forge(folder, manifest):
    write(folder, manifest | {"digest": digest(manifest)})


def found(folder):
    """Tell what is found: a refusal, or a list of differences."""
    try:
        return vectors.check(folder)
    except InputError as error:
        return [str(error)]


def leaves(value, path=()):
    """Paths of all scalars, of containers that are empty, and of every key."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            if path or key not in APART:
                yield from leaves(item, (*path, key))
    else:
        yield path


def changed(value):
    """Other values for a leaf, of its own type and of another."""
    if isinstance(value, bool):
        return [not value, int(value), None]
    if isinstance(value, int):
        return [value + 1, float(value), -1 - value, str(value)]
    if isinstance(value, float):
        return [value * (1 + 2**-52), -value - 1, 99, str(value)]
    if isinstance(value, str):
        return [value + "x", value[:-1], "", None] if value else ["x", None]
    return {None: [0, "none", False], (): [{"x": 1}, [1], "x"]}[None if value is None else ()]


def put(value, path, leaf):
    top = copy.deepcopy(value)
    inner = top
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = leaf
    return top


def test_every_leaf_is_checked_with_its_digest_and_without(folder):
    manifest = manifest_of(folder)
    allowed = {("only",): ""}  # says less, and nothing wrong
    tried = set()
    for path in sampling.sample(leaves(manifest), 5, by=lambda path: len(path), name=str):
        value = manifest
        for key in path:
            value = value[key]
        for other in changed(value):
            spoilt = put(manifest, path, other)
            write(folder, spoilt)
            assert found(folder), (path, other)
            if path in allowed and other == allowed[path]:
                continue
            forge(folder, spoilt)
            if path != ("digest",):
                assert found(folder), (path, other, "with a digest that fits")
        tried.add(path[-1])
    write(folder, manifest)
    assert found(folder) == []
    assert len(tried) >= 6


@pytest.mark.parametrize(
    ("key", "other", "message"),
    [
        ("options", {"alpha": 99}, 'options is {"alpha":99}, not {"alpha":'),
        ("options", {}, "options is {}"),
        ("operation", "lora.merge", 'operation is "lora.merge", not "lora.delta"'),
        ("dtype", "float32", 'dtype is "float32", not "float64"'),
        ("covers", ["nothing"], 'covers is ["nothing"], not'),
        ("undecided", ["delta[0, 0]"], 'undecided is ["delta[0, 0]"], not []'),
    ],
)
def test_what_an_entry_says_is_derived_again(folder, key, other, message):
    manifest = manifest_of(folder)
    assert manifest["cases"][0]["id"] == "lora.delta/tiny/float64"
    manifest["cases"][0][key] = other
    write(folder, manifest)
    with pytest.raises(InputError, match="edited after the export"):
        vectors.read(folder)
    forge(folder, manifest)
    (difference,) = vectors.check(folder)
    assert message in difference


def test_missing_keys_and_cases_and_their_order_are_found(folder):
    manifest = manifest_of(folder)
    for key in manifest["cases"][0]:
        spoilt = copy.deepcopy(manifest)
        del spoilt["cases"][0][key]
        forge(folder, spoilt)
        (refusal,) = found(folder)
        assert f"manifest.cases[0] lacks '{key}'" in refusal
    for key in manifest:
        write(folder, {k: v for k, v in manifest.items() if k != key})
        (refusal,) = found(folder)
        assert f"manifest lacks '{key}'" in refusal
    first, second, *rest = manifest["cases"]
    forge(folder, manifest | {"cases": [second, first, *rest]})
    (difference,) = found(folder)
    assert "in another order" in difference
    forge(folder, manifest | {"cases": []})
    (refusal,) = found(folder)
    assert "which leaves nothing to check" in refusal
    forge(folder, manifest | {"cases": [first, second, *rest, first]})
    (refusal,) = found(folder)
    assert "an id twice" in refusal
    (folder / first["file"]).unlink()
    forge(folder, manifest | {"cases": [second, *rest]})
    (difference,) = found(folder)
    assert difference == f"{first['id']}: a case that '{ONLY}' selects is missing"


def test_a_byte_of_any_file_is_found(folder):
    rng = random.Random(1)
    for path in sampling.sample(
        sorted(folder.glob("*.safetensors")), 4, name=lambda file: file.name
    ):
        good = path.read_bytes()
        for at in rng.sample(range(len(good)), sampling.count(3, 20)):
            spoilt = bytearray(good)
            spoilt[at] ^= 1 << rng.randrange(8)
            path.write_bytes(spoilt)
            (refusal,) = found(folder)
            assert "a damaged or exchanged file" in refusal
        path.write_bytes(good)
    assert found(folder) == []


def test_a_byte_of_head_or_input_is_found_with_hashes_that_fit(folder):
    rng = random.Random(2)
    manifest = manifest_of(folder)
    for k, entry in sampling.sample(list(enumerate(manifest["cases"])), 3, name=str):
        path = folder / entry["file"]
        good = path.read_bytes()
        head = 8 + int.from_bytes(good[:8], "little")
        record = json.loads(good[8:head])
        inputs = [v for name, v in record.items() if name.startswith("in.")]
        places = [(rng.randrange(head), rng.randrange(8)) for _ in range(10)]
        for one in inputs:  # the exponent of an element: its last bits may be another machine's
            size = 8 if one["dtype"] == "F64" else 4
            start, stop = one["data_offsets"]
            places.append((head + rng.randrange(start, stop, size) + size - 1, 6))
        for at, bit in places:
            spoilt = bytearray(good)
            spoilt[at] ^= 1 << bit
            path.write_bytes(spoilt)
            sha = hashlib.sha256(spoilt).hexdigest()
            forge(folder, put(manifest, ("cases", k, "sha256"), sha))
            assert found(folder), (entry["id"], at)
        path.write_bytes(good)


@pytest.mark.parametrize(("factor", "agrees"), [(1 + 2**-52, True), (1 + 1e-6, False)])
@pytest.mark.parametrize("part", ["out", "tol", "gold", "bound"])
def test_numbers_are_held_to_what_is_derived(folder, part, factor, agrees):
    """Outputs and tolerances to their roundoff, bounds to an enclosure's width, golden to a bit."""
    if part in ("gold", "bound") and not enclosure.available():
        pytest.skip("python-flint is not installed (extra 'certify')")
    manifest = manifest_of(folder)
    ids = [entry["id"] for entry in manifest["cases"]]
    k = ids.index("lora.delta/random/float32")
    path = folder / manifest["cases"][k]["file"]
    tensors = vectors.read(folder)[ids[k]]
    grown = {"tol": 1 + 1e3 * (factor - 1), "bound": 1 + 1e4 * (factor - 1)}.get(part, factor)
    tensors[f"{part}.delta"][...] *= grown
    payload = vectors.pack_safetensors(tensors, vectors._head(ids[k]))
    path.write_bytes(payload)
    manifest["cases"][k] |= {"sha256": hashlib.sha256(payload).hexdigest()}
    forge(folder, manifest)
    assert (vectors.check(folder) == []) == (agrees and part != "gold")


def test_without_balls_golden_values_are_held_to_the_outputs(folder, monkeypatch):
    if not enclosure.available():
        pytest.skip("python-flint is not installed (extra 'certify')")
    monkeypatch.setattr(enclosure, "available", lambda: False)
    assert found(folder) == []
    assert "pip install 'loko-ref[certify]'" in vectors.unchecked(folder)
    manifest = manifest_of(folder)
    key = manifest["cases"][0]["id"]
    path = folder / manifest["cases"][0]["file"]
    tensors = vectors.read(folder)[key]
    for name, other in (("gold.delta", 1e-9), ("bound.delta", -1e-300), ("bound.delta", 1.0)):
        spoilt = {**tensors, name: tensors[name] + other}
        payload = vectors.pack_safetensors(spoilt, vectors._head(key))
        path.write_bytes(payload)
        known = {"sha256": hashlib.sha256(payload).hexdigest()}
        forge(folder, put(manifest, ("cases", 0), manifest["cases"][0] | known))
        assert found(folder), name


def test_an_older_set_is_refused_by_its_schema(folder):
    manifest = manifest_of(folder)
    write(folder, manifest | {"schema": "loko-ref/vectors/1"})
    (refusal,) = found(folder)
    assert "got schema 'loko-ref/vectors/1'; required schema 'loko-ref/vectors/3'" in refusal
    assert "export it again" in refusal


def test_platform_and_versions_are_outside_the_digest(folder):
    manifest = manifest_of(folder)
    assert {"versions", "platform"} <= set(manifest)
    write(folder, manifest | {"platform": "another", "versions": manifest["versions"]})
    assert found(folder) == []


def test_nothing_is_no_set(tmp_path):
    with pytest.raises(InputError, match="at least one case"):
        vectors.export(tmp_path / "none", [])
