"""The tensor file: what safetensors reads, bit for bit, and no claim believed."""

import json
import struct
import tracemalloc
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint.allowance import (
    ALWAYS_ALLOWED,
    STORED_BYTES_OF_TEXT,
    TEXT_OF_A_ROW,
)
from thalweg.checkpoint.tensor_file import (
    CODES,
    TensorFile,
    file_chunks,
    header_length,
    plan_layout,
    tensor_bytes,
)
from thalweg.errors import CheckpointError


def random_tensor(dtype, shape):
    count = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(0, high, (count,), dtype=torch.uint8)
    return data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def write(path, tensors):
    path.write_bytes(b"".join(file_chunks(tensors)))
    return path


SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 4), (7, 1, 2)]


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_every_dtype_and_shape_keeps_its_bits(tmp_path, dtype):
    tensors = {f"{shape}": random_tensor(dtype, shape) for shape in SHAPES}
    file = TensorFile(write(tmp_path / "t.safetensors", tensors))
    assert set(file.layout) == set(tensors)
    for key, tensor in tensors.items():
        assert same_bits(file.read(key), tensor)


def test_the_safetensors_library_reads_the_file(tmp_path):
    tensors = {str(dtype): random_tensor(dtype, (3, 2)) for dtype in CODES}
    tensors["empty"] = torch.empty(0, 4)
    path = write(tmp_path / "t.safetensors", tensors)
    loaded = safetensors.torch.load_file(path)
    assert set(loaded) == set(tensors)
    assert all(same_bits(loaded[key], tensor) for key, tensor in tensors.items())


def test_a_file_of_the_library_is_read_unaligned_too(tmp_path):
    path = tmp_path / "t.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    header += b'"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    data = b"\x07" + struct.pack("<f", 1.5)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert TensorFile(path).read("b").tolist() == [1.5]
    safetensors.torch.save_file({"x": torch.eye(2)}, path, metadata={"format": "pt"})
    assert torch.equal(TensorFile(path).read("x"), torch.eye(2))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(10.0)[::3],
        torch.ones(1).expand(4),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.tensor([1 + 2j, 3 - 1j]).conj(),
        torch.nn.Parameter(torch.ones(2)),
        torch.tensor([1.0 - 2.0j]).conj().imag,
    ],
    ids=["transposed", "strided", "expanded", "channels", "conj", "grad", "neg"],
)
def test_any_layout_is_written_in_row_major_order(tmp_path, tensor):
    file = TensorFile(write(tmp_path / "t.safetensors", {"x": tensor}))
    expected = tensor.detach().resolve_conj().resolve_neg()
    assert torch.equal(file.read("x"), expected)


def test_tensors_are_aligned_and_without_holes():
    dtypes = [torch.bool, torch.float64, torch.int16, torch.float32, torch.uint8]
    tensors = {str(d): torch.zeros(3, dtype=d) for d in dtypes}
    layout = plan_layout(tensors)
    places = sorted(layout.values(), key=lambda place: place.begin)
    assert all(place.begin % place.dtype.itemsize == 0 for place in places)
    assert places[0].begin == 0
    for left, right in pairwise(places):
        assert left.end == right.begin
    assert len(next(file_chunks(tensors))) % 8 == 0


def test_a_plain_tensor_is_not_copied_for_writing():
    tensor = torch.zeros(4)
    view = tensor_bytes(tensor)
    tensor.fill_(1.0)
    assert bytes(view) == struct.pack("<4f", 1, 1, 1, 1)


def test_no_tensors_make_a_readable_file(tmp_path):
    assert TensorFile(write(tmp_path / "t.safetensors", {})).layout == {}


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_HEADERS = {
    "hole": {"x": entry(offsets=(4, 12))},
    "overlap": {"x": entry(), "y": entry(offsets=(4, 12))},
    "negative": {"x": entry(offsets=(-8, 0))},
    "negative shape": {"x": entry(shape=(-2,))},
    "extent": {"x": entry(shape=(3,))},
    "beyond": {"x": entry(shape=(4,), offsets=(0, 16))},
    "huge": {"x": entry(shape=(2**62, 2**62), offsets=(0, 8))},
    "true": {"x": entry(shape=(True, 2))},
    "unknown dtype": {"x": entry(dtype="F31")},
    "fields": {"x": {"dtype": "F32"}},
    "not an object": {"x": 3},
    "list": [],
    "too few": {},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=r"t\.safetensors: expected a whole file"):
        TensorFile(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 20) + b'{"x": 1, "x": 2}    ',
    ],
)
def test_a_torn_file_is_refused(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        TensorFile(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_gives_a_typed_error_or_a_readable_file(tmp_path_factory, data):
    content = bytearray(b"".join(file_chunks({"x": torch.ones(3), "y": torch.ones(1)})))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(position, len(content))) :]
    path = tmp_path_factory.mktemp("fuzz") / "t.safetensors"
    path.write_bytes(content)
    try:
        file = TensorFile(path)
    except CheckpointError:
        return
    for key in file.layout:
        assert file.read(key).numel() >= 0


def test_twenty_thousand_scalars_are_written_and_read(tmp_path):
    tensors = {f"model/{i}": torch.tensor(float(i)) for i in range(20_000)}
    file = TensorFile(write(tmp_path / "t.safetensors", tensors))
    assert file.layout.keys() == tensors.keys()
    assert file.read("model/777").item() == 777.0
    loaded = safetensors.torch.load_file(tmp_path / "t.safetensors")
    assert loaded["model/19999"].item() == 19999.0


HOSTILE = {
    "dense": b"".join(
        b'"%x":{"dtype":"BOOL","shape":[],"data_offsets":[%d,%d]},' % (i, i, i + 1)
        for i in range(30_000)
    ),
    "numbers": b'"a":{"shape":[' + b"300," * 900_000 + b"1]},",
    "lists": b'"a":{"shape":[' + b"[]," * 900_000 + b"1]},",
    "metadata": b'"__metadata__":{' + b'"ab":"cd",' * 400_000 + b'"a":"b"},',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_takes_no_more_than_twice_the_file(tmp_path, kind):
    text = b"{" + HOSTILE[kind] + b'"z":{}}'
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="malformed header"):
            TensorFile(path)
        assert tracemalloc.get_traced_memory()[1] < ALWAYS_ALLOWED + 2 * len(text)
    finally:
        tracemalloc.stop()


def test_a_header_that_nobody_would_read_is_not_written(monkeypatch):
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", 100)
    with pytest.raises(CheckpointError, match="100 bytes of names"):
        next(file_chunks({"a" * 80: torch.zeros(1)}))


def test_a_long_header_is_read_only_beside_tensors_of_some_size(tmp_path, monkeypatch):
    names = {"a" * 80: torch.zeros(1), "b" * 80: torch.zeros(2_000, dtype=torch.int64)}
    path = write(tmp_path / "t.safetensors", names)
    length = header_length(path)
    assert length == struct.unpack("<Q", path.read_bytes()[:8])[0]
    text = length + 2 * TEXT_OF_A_ROW - 16_004 // STORED_BYTES_OF_TEXT
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", text)
    assert set(TensorFile(path).layout) == set(names)
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", text - 1)
    with pytest.raises(CheckpointError, match="bytes of text, or what counts"):
        TensorFile(path)
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", length - 251)
    for read in (TensorFile, header_length):
        with pytest.raises(CheckpointError, match=f"a header of {length} bytes"):
            read(path)


X = b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HEADERS = {
    "another order": b'{"x":{"data_offsets":[0,8],"dtype":"F32","shape":[2]}}',
    "indented": json.dumps({"x": entry()}, indent=2).encode(),
    "metadata first": b'{"__metadata__":{"a":"}","b":""},%b}' % X,
    "metadata last": b'{%b, "__metadata__" : { } }' % X,
    "backwards": b'{"y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},'
    b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_headers_of_other_programs_are_read(tmp_path, text):
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1.5, 2.5))
    assert TensorFile(path).read("x")[0] == 1.5


@pytest.mark.parametrize(
    "text",
    [
        b'{"__metadata__":{"a":1},%b}' % X,
        b'{"__metadata__":{},"__metadata__":{},%b}' % X,
        b"{%b,}" % X,
        b"{%b}" % X.replace(b"}", b",}"),
        b"{%b}" % X.replace(b",8", b",08"),
        b"{%b}" % X.replace(b'"dtype"', b'"shape":[2],"dtype"'),
        b"{%b}" % X.replace(b'"shape":[2]', b'"dtype":"F32"'),
        b"{%b,%b}" % (X, X.replace(b"[2]", b"[0]").replace(b"[0,8]", b"[8,8]")),
    ],
)
def test_headers_that_are_no_strict_json_of_tensors_are_refused(tmp_path, text):
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match="malformed header"):
        TensorFile(path)
