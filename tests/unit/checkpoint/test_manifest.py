"""The manifest: written as documented, believed in nothing."""

import json
import re
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from thalweg.checkpoint.allowance import ALWAYS_ALLOWED, TEXT_BYTES
from thalweg.checkpoint.boxes import Box
from thalweg.checkpoint.entries import FileEntry, StoredBox, TensorEntry
from thalweg.checkpoint.manifest import (
    Manifest,
    encode_metadata,
    parse_files,
    parse_manifest,
    seal,
)
from thalweg.checkpoint.members import PIECE_BYTES
from thalweg.errors import CheckpointError

FILE = "tensors.safetensors"
MANIFEST = Manifest(
    step=12,
    files={FILE: FileEntry(400, "0123abcd")},
    tensors={
        "model/a": TensorEntry.whole(FILE, (3, 4), torch.bfloat16),
        "rng/state": TensorEntry.whole(FILE, (8,), torch.uint8),
    },
    aliases={"model/b": "model/a"},
    hyperparameters={"optimizer": {"learning_rate": {"$float": "0x1.0p-3"}}},
    values={"epoch": 3, "rng": {"state": {"$tensor": "rng/state"}}},
    metadata=encode_metadata({"accuracy": 0.97}),
)
BOX = ["tensors", "model/a", "boxes", 0]
PLACE = Path("folder/manifest.json")


def test_round_trip():
    assert parse_manifest(MANIFEST.to_json(), PLACE) == MANIFEST
    empty = Manifest()
    assert parse_manifest(empty.to_json(), PLACE) == empty


def test_the_text_is_strict_json_as_documented():
    content = json.loads(MANIFEST.to_json())
    assert content["format"] == "thalweg-checkpoint"
    assert content["format_version"] == 1
    assert content["tensors"]["model/a"] == {
        "shape": [3, 4],
        "dtype": "bfloat16",
        "boxes": [{"file": FILE, "offset": [0, 0], "shape": [3, 4]}],
    }
    assert content["metadata"] == {"accuracy": {"$float": (0.97).hex()}}


def test_resolve_follows_aliases():
    assert MANIFEST.resolve("model/a") == MANIFEST.resolve("model/b") == "model/a"
    assert MANIFEST.resolve("model/c") is None
    assert MANIFEST.user_metadata() == {"accuracy": 0.97}


def changed(path, value):
    content = json.loads(MANIFEST.to_json())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return seal(content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["format_version"], 2),
        (["more"], 1),
        (["step"], -1),
        (["step"], True),
        (["files"], []),
        (["files", "../evil.safetensors"], {"bytes": 1, "crc32": "00000000"}),
        (["files", "/etc/passwd"], {"bytes": 1, "crc32": "00000000"}),
        (["files", "a\\b.safetensors"], {"bytes": 1, "crc32": "00000000"}),
        (["files", FILE, "bytes"], -1),
        (["files", FILE, "bytes"], 2**70),
        (["files", FILE, "crc32"], 7),
        (["tensors"], None),
        ([*BOX, "file"], "missing.safetensors"),
        ([*BOX, "file"], ["x"]),
        ([*BOX, "offset"], [1, 0]),
        ([*BOX, "offset"], [-1, 0]),
        ([*BOX, "offset"], [0]),
        ([*BOX, "shape"], [4, 4]),
        ([*BOX, "shape"], [3, 2**62]),
        (["tensors", "model/a", "boxes"], []),
        (["tensors", "model/a", "boxes"], 3),
        (["tensors", "model/a", "boxes"], [3]),
        (["tensors", "model/a", "shape"], [-3]),
        (["tensors", "model/a", "shape"], [1] * 65),
        (["tensors", "model/a", "shape"], 3),
        (["tensors", "model/a", "dtype"], "float31"),
        (["tensors", "model/a"], 3),
        (["aliases"], ["model/b"]),
        (["aliases", "model/b"], "nowhere"),
        (["aliases", "model/b"], ["model/a"]),
        (["aliases", "model/a"], "model/a"),
        (["hyperparameters", "optimizer"], 3),
        (["values"], 3),
        (["values", "rng", "state", "$tensor"], "nowhere"),
        (["metadata"], []),
    ],
)
def test_a_malformed_manifest_is_refused_with_file_and_reason(path, value):
    with pytest.raises(CheckpointError, match=r"manifest\.json.*malformed manifest"):
        parse_manifest(changed(path, value), PLACE)


def two_boxes(first, second, files=(FILE, "second.safetensors")):
    entry = {"bytes": 400, "crc32": "0123abcd"}
    content = json.loads(MANIFEST.to_json())
    content["files"]["second.safetensors"] = entry
    content["tensors"]["model/a"]["boxes"] = [
        {"file": file, "offset": offset, "shape": shape}
        for file, (offset, shape) in zip(files, (first, second), strict=True)
    ]
    return seal(content)


def test_boxes_have_to_be_the_whole_tensor():
    upper, lower = ([0, 0], [1, 4]), ([1, 0], [2, 4])
    manifest = parse_manifest(two_boxes(upper, lower), PLACE)
    assert manifest.tensors["model/a"].boxes[1].box == ((1, 0), (2, 4))
    assert parse_manifest(manifest.to_json(), PLACE) == manifest
    for first, second in [
        (upper, ([0, 0], [2, 4])),
        (upper, ([1, 0], [1, 4])),
        (upper, ([1, 0], [2, 5])),
        (([0, 0], [0, 4]), ([0, 0], [3, 4])),
    ]:
        with pytest.raises(CheckpointError, match="not the whole of it"):
            parse_manifest(two_boxes(first, second), PLACE)
    with pytest.raises(CheckpointError, match="two boxes of 'model/a' in one file"):
        parse_manifest(two_boxes(upper, lower, (FILE, FILE)), PLACE)


def test_a_later_format_is_named():
    with pytest.raises(CheckpointError, match="format version 2"):
        parse_manifest(changed(["format_version"], 2), PLACE)


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"{}", b"\xff", b'{"a":1,"a":1}'])
def test_other_text_is_refused(text):
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        parse_manifest(text, PLACE)


def test_every_truncation_is_refused():
    text = replace(MANIFEST, values={}).to_json()
    for length in range(0, len(text) - 1, 7):
        with pytest.raises(CheckpointError):
            parse_manifest(text[:length], PLACE)


def test_metadata_must_be_plain():
    with pytest.raises(CheckpointError, match="metadata"):
        encode_metadata({"x": object()})
    with pytest.raises(CheckpointError, match="a dict of plain values"):
        encode_metadata(cast("Any", [1]))
    assert encode_metadata(None) == {}


def test_every_flipped_byte_is_found():
    text = MANIFEST.to_json()
    for position in range(len(text)):
        changed_text = bytearray(text)
        changed_text[position] ^= 1 << (position % 8)
        with pytest.raises(CheckpointError):
            parse_manifest(bytes(changed_text), PLACE)


HOSTILE = {
    "lists": ("[" + "[]," * 1_300_000 + "[]]"),
    "objects": ("[" + "{}," * 1_300_000 + "{}]"),
    "small objects": ("[" + '{"":0},' * 570_000 + "0]"),
    "strings": ("[" + '"ab",' * 900_000 + "0]"),
    "numbers": ("[" + "300," * 1_500_000 + "0]"),
    "deep": "[" * 2_000_000 + "]" * 2_000_000,
    "wide text": '["' + "a" * 5_000_000 + '\\ud83d\\ude00"]',
}


def sealed(values: str) -> bytes:
    """A manifest with a right checksum around a text of anybody's."""
    text = seal({**json.loads(MANIFEST.to_json()), "values": "HERE"})
    return resealed(text.replace(b'"HERE"', values.encode()))


def resealed(text: bytes) -> bytes:
    """A manifest of anybody's with a right checksum."""
    blank = re.sub(rb'"crc32": "[0-9a-f]{8}"', b'"crc32": "00000000"', text, count=1)
    crc = f'"crc32": "{zlib.crc32(blank):08x}"'.encode()
    return blank.replace(b'"crc32": "00000000"', crc, 1)


def parse_traced(text: bytes, stored: int) -> tuple[str, int]:
    """What is said against a text, and the memory that it took to find out."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as raised:
            parse_manifest(text, PLACE, stored)
        return str(raised.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_text_that_grows_when_it_is_read_is_refused_unread(kind):
    text = sealed(HOSTILE[kind])
    said, peak = parse_traced(text, stored=100)
    assert "bytes of memory, where" in said
    assert peak < len(text) + (1 << 16)  # one copy of its end


def test_a_little_of_it_stays_within_what_is_always_granted():
    text = sealed("[" + "[]," * 40_000 + "[]]")
    said, peak = parse_traced(text, stored=100)
    assert "malformed manifest" in said
    assert "twice" not in said
    assert peak < ALWAYS_ALLOWED


def dense(count: int, last: str) -> bytes:
    """Tensors told of in as few characters as possible, and something behind them."""
    entry = '"{0:x}":{{"shape":[{0}],"dtype":"bool","boxes":[{1}]}}'
    box = '{{"file":"tensors.safetensors","offset":[0],"shape":[{0}]}}'
    told = [entry.format(i, box.format(i)) for i in range(count)]
    text = replace(MANIFEST, tensors={}, aliases={}, values={}).to_json()
    tensors = f'"tensors": {{{",".join(told)}{last}}}'.encode()
    return resealed(text.replace(b'"tensors": {}', tensors))


BOX_TEXT = f'{{"file":"{FILE}","offset":[0],"shape":[0]}}'
HOSTILE_TABLES = {
    "tensors": dense(40_000, ""),
    "shape": dense(1, f',"z":{{"shape":[{"300," * 900_000}1]}}'),
    "boxes": dense(1, f',"z":{{"boxes":[{(BOX_TEXT + ",") * 90_000}{BOX_TEXT}]}}'),
    "strings": dense(
        1, f',"z":{{{"300:" * 10}{chr(34)}ab{chr(34)},{"[]," * 900_000}0}}'
    ),
    "key": dense(1, f',"{"a" * 4_000_000}\U0001f600":{{"shape":[0]}}'),
}


@pytest.mark.parametrize("kind", HOSTILE_TABLES)
def test_a_table_takes_no_more_than_twice_its_size(kind):
    text = HOSTILE_TABLES[kind]
    said, peak = parse_traced(text, stored=100)
    assert "malformed manifest" in said
    # The text itself, which is there already, is one half of it.
    assert peak < ALWAYS_ALLOWED + len(text)


@pytest.mark.parametrize(
    "tensors",
    [
        '{"a": 3}',
        '{"a": [{"shape": []}]}',
        '{"a": {"b": {"c": {}}}}',
        '{"a": {"boxes": [[]]}}',
        '{"a": {"shape": [], "shape": []}}',
        '{"a": {}} {"b": {}}',
        '{"a": {},, "b": {}}',
        "{a: {}}",
        '{"a\t": {}}',
        '{"a": {"shape": [0}}',
        '{"a": {}',
        "[]",
        "",
    ],
)
def test_a_table_of_another_form_is_refused(tensors):
    text = replace(MANIFEST, tensors={}, aliases={}, values={}).to_json()
    text = text.replace(b'"tensors": {}', f'"tensors": {tensors}'.encode())
    with pytest.raises(CheckpointError, match="malformed manifest"):
        parse_manifest(resealed(text), PLACE)


def test_a_key_that_stands_twice_is_refused():
    text = MANIFEST.to_json().replace(b'"rng/state": {', b'"model\\u002fa": {')
    with pytest.raises(CheckpointError, match="'model/a' stands twice"):
        parse_manifest(resealed(text), PLACE)


def tiny_tensors(shapes: list[tuple[int, ...]]) -> Manifest:
    names = (f"model/layers.{i}.norm/.slot/optimizer/exp_avg" for i in range(10**6))
    entries = [TensorEntry.whole(FILE, shape, torch.float32) for shape in shapes]
    files = {FILE: FileEntry(100, "0123abcd")}
    return Manifest(files=files, tensors=dict(zip(names, entries, strict=False)))


def test_any_number_of_small_tensors_is_written_and_read():
    alike = tiny_tensors([(1, 1, 1, 1)] * 21_000)
    text = alike.to_json()
    assert parse_manifest(text, PLACE, 100) == alike
    assert text.endswith(b"}")
    different = tiny_tensors([(i, 1) for i in range(9_000)])
    assert different.to_json().endswith(b"}")
    assert parse_manifest(different.to_json(), PLACE, 100) == different


def test_plain_values_that_take_more_than_their_text_are_followed_by_blanks():
    manifest = replace(MANIFEST, values={"loader": [[i] for i in range(60_000)]})
    text = manifest.to_json()
    assert text.endswith(b"  ")
    assert parse_manifest(text, PLACE, 400) == manifest
    said, _ = parse_traced(resealed(text.rstrip()), stored=400)
    assert "bytes of memory, where" in said


def test_what_nobody_would_read_is_not_written(monkeypatch):
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", 100)
    with pytest.raises(CheckpointError, match="106 bytes of names, boxes and values"):
        MANIFEST.to_json()


def test_what_is_written_is_read_up_to_the_last_byte_of_text(monkeypatch):
    text, beside = MANIFEST.to_json(), MANIFEST.text_of_files()

    def works(room: int, function: Any, *arguments: Any) -> bool:
        monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", room)
        try:
            function(*arguments)
        except CheckpointError:
            return False
        return True

    tried = range(len(text) + beside - 400 // 64, 10_000)
    written = next(room for room in tried if works(room, MANIFEST.to_json))
    read = (parse_manifest, text, PLACE, 400, beside)
    assert written > tried[0]
    assert works(written, *read)
    assert not works(written - 1, *read)
    with pytest.raises(CheckpointError, match="or save from fewer ranks"):
        MANIFEST.to_json()
    assert not works(tried[0] - 1, *read)
    with pytest.raises(CheckpointError, match="bytes of text, or what counts"):
        parse_manifest(*read[1:])


def test_boxes_of_many_ranks_are_read_beside_tensors_of_some_size():
    ranks = [f"tensors-{rank:05}-of-00064.safetensors" for rank in range(64)]
    bytes_of_a_file = 30_000 + sum(4 * 9 * number for number in range(1, 300))
    manifest = Manifest(
        files={name: FileEntry(bytes_of_a_file, "0123abcd") for name in ranks},
        tensors={
            f"model/layers.{number}.weight": TensorEntry.divided(
                (64 * number, 9),
                torch.float32,
                [
                    StoredBox(name, Box((rank * number, 0), (number, 9)))
                    for rank, name in enumerate(ranks)
                ],
            )
            for number in range(1, 300)
        },
    )
    text = manifest.to_json()
    stored = 64 * bytes_of_a_file
    assert parse_manifest(text, PLACE, stored, manifest.text_of_files()) == manifest
    with pytest.raises(CheckpointError, match="bytes of text, or what counts"):
        parse_manifest(text, PLACE, 0, TEXT_BYTES - len(text))


def rewritten(change: Any, **spelling: Any) -> bytes:
    """The manifest's content changed and spelt another way."""
    content = json.loads(MANIFEST.to_json())
    content["crc32"] = "00000000"
    change(content)
    text = json.dumps(content, **spelling).encode()
    return resealed(text.replace(b'"crc32":"', b'"crc32": "', 1))


@pytest.mark.parametrize(
    "spelling",
    [{"indent": 1}, {"indent": "\t"}, {"separators": (",", ":")}, {}],
    ids=["indented", "tabs", "compact", "one line"],
)
def test_every_spelling_of_the_same_is_read(spelling):
    def backwards(content: Any) -> None:
        for table in ("files", "tensors"):
            for key, entry in content[table].items():
                content[table][key] = dict(reversed(entry.items()))
        for entry in content["tensors"].values():
            entry["boxes"] = [dict(reversed(box.items())) for box in entry["boxes"]]

    assert (
        parse_manifest(rewritten(lambda content: None, **spelling), PLACE) == MANIFEST
    )
    assert parse_manifest(rewritten(backwards, **spelling), PLACE) == MANIFEST


def test_a_row_longer_than_a_piece_is_read():
    key = 'é\n"' + "a" * PIECE_BYTES
    entry = TensorEntry.whole(FILE, (2, 3), torch.int8)
    tensors = {"before": entry, key: entry, "behind": entry}
    manifest = replace(MANIFEST, tensors=tensors, aliases={}, values={})
    assert parse_manifest(manifest.to_json(), PLACE, 10**7) == manifest


@pytest.mark.parametrize(
    ("honest", "forged"),
    [
        (b'"dtype": "bfloat16"', b'"shape": [3, 4]'),
        (b'"dtype": "bfloat16"', b'"dtype": "bfloat16", "more": 1'),
        (b'"dtype": "bfloat16", ', b""),
        (b'"offset": [0, 0]', b'"shape": [3, 4]'),
        (b'"offset": [0, 0]', b'"offset": [0, 00]'),
        (b'"offset": [0, 0]', b'"offset": [0, 0,]'),
        (b'"offset": [0, 0]', b'"offset": [0 0]'),
        (b'"offset": [0, 0]', b'"offset": [0, -0]'),
        (b'"offset": [0, 0]', b'"offset": [0, 9223372036854775808]'),
        (b'"shape": [3, 4]}]}', b'"shape": [3, 4],}]}'),
        (b'"shape": [3, 4]}]}', b'"shape": [3, 4]},]}'),
        (b'"shape": [3, 4]}]}', b'"shape": [3, 4]}],}'),
        (b'"shape": [3, 4]}]}', b'"shape": [3, 4]} ]]}'),
        (b'"shape": [8]}]}', b'"shape": [8]}]},'),
        (b'"bytes": 400', b'"bytes": 0400'),
        (b'"step": 12', b'"step": 0012'),
        (b'"step": 12', b'"step": 99999999999999999999'),
        (b'"bytes": 400', b'"crc32": "0123abcd"'),
        (b'"0123abcd"', b'"0123ABCD"'),
        (b'"model/a"', b'"model/\\x"'),
        (b'"model/a"', b'"model/\xff"'),
    ],
)
def test_what_is_not_strictly_json_of_these_members_is_refused(honest, forged):
    text = MANIFEST.to_json()
    assert honest in text
    with pytest.raises(CheckpointError, match="malformed manifest"):
        parse_manifest(resealed(text.replace(honest, forged, 1)), PLACE)


def test_files_are_read_without_the_rest():
    text = MANIFEST.to_json()
    assert parse_files(text, PLACE) == MANIFEST.files
    cut = resealed(text[: text.index(b'"tensors"')])
    assert parse_files(cut, PLACE) == MANIFEST.files
    with pytest.raises(CheckpointError, match=r"manifest\.json.*another checksum"):
        parse_files(text.replace(b"400", b"401"), PLACE)


@pytest.mark.parametrize("tail", [b"garbage", b"\0", b"{", b'"', b"\xff", b" \n,"])
def test_nothing_but_space_follows_a_manifest(tail):
    text = MANIFEST.to_json()
    with pytest.raises(CheckpointError, match="malformed manifest"):
        parse_manifest(resealed(text + tail), PLACE)
    assert parse_manifest(resealed(text + b" \r\n\t"), PLACE) == MANIFEST


def test_the_seal_is_the_one_of_the_head():
    text = MANIFEST.to_json().replace(b'"crc32": ', b'"crc32":', 1)
    with pytest.raises(CheckpointError, match="another checksum"):
        parse_manifest(resealed(text), PLACE)  # into the entry of the first file
    blank = re.sub(rb'"crc32":"[0-9a-f]{8}"', b'"crc32":"00000000"', text, count=1)
    crc = b"%08x" % zlib.crc32(blank)
    assert parse_manifest(blank.replace(b"00000000", crc, 1), PLACE) == MANIFEST


def test_a_format_version_in_the_metadata_is_none_of_the_manifest():
    text = replace(MANIFEST, metadata={"format_version": 2}).to_json()
    text = text.replace(b'"format_version": 1', b'"format_version":1', 1)
    metadata = parse_manifest(resealed(text), PLACE).metadata
    assert metadata == {"format_version": 2}
