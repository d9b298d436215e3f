#!/usr/bin/env python3
"""Restores a snapshot from a repository, by docs/FORMAT.md and nothing else.

It shares no code with the program and is no tool for daily use: everything is read into memory, one object at a time. It is
here to show that the description is complete, and stops at the first thing that contradicts it.

    read_repository.py REPOSITORY SNAPSHOT TARGET [BUNDLE | --key-file FILE]

SNAPSHOT is an id or `latest`. TARGET is made. FILE holds the secret of a key slot of an encrypted repository, BUNDLE its keys, opened.
Needs the packages `blake3`, `xxhash` and `zstandard`, and for encrypted repositories `cryptography`, for key files in version 44.
"""

import os
import re
import stat
import sys
from pathlib import Path

import zstandard
from blake3 import blake3
from xxhash import xxh3_64_intdigest

CHUNK_BYTES_MAX = 1 << 24
HOLE = bytes(32)
KIND_CONFIG, KIND_TRANSACTION, KIND_SNAPSHOT, KIND_FORGOTTEN, KIND_CONDEMNED, KIND_HISTORY, KIND_TAGS = range(1, 8)
KIND_KEY_SLOT, KIND_QUARANTINE, KIND_AUDIT = 8, 9, 10
REGULAR, DIRECTORY, SYMLINK, FIFO, CHARACTER_DEVICE, BLOCK_DEVICE = range(6)


class Damaged(Exception):
    """What is stored is not what the description allows."""


def check(condition, what):
    if not condition:
        raise Damaged(what)


def digest(*parts):
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


# Encryption -----------------------------------------------------------------------------------------------------------


def derive(purpose, key, data):
    return blake3(key + data, derive_key_context=purpose).digest()


def unseal(key, nonce, associated, sealed):
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(nonce.to_bytes(8, "little") + bytes(4), bytes(sealed), bytes(associated))
    except InvalidTag:
        raise Damaged("sealed bytes do not open") from None


def open_box(private, sealed, associated):
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    own = X25519PrivateKey.from_private_bytes(private)
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(sealed[:32]))
    except ValueError:
        raise Damaged("the public key of a box is impossible") from None
    both = sealed[:32] + own.public_key().public_bytes_raw()
    return unseal(derive("ckpt sealed box v1", shared, both), 0, associated, sealed[32:])


class Bundle:
    def __init__(self, data):
        keys = record(data, "the bundle", (0, 1, 3, 4, 5, 7))
        self.id_key, self.table_key, self.document_key, self.config_hash = keys[1], keys[3], keys[4], keys[7]
        # For each kind of pack, its private key by generation.
        self.private = [{g[0]: g.get(3) for g in keys[5]}, {g[0]: g.get(4) for g in keys[5]}]

    def pack_key(self, header):
        private = self.private[header[11]].get(int.from_bytes(header[64:68], "little"))
        check(private is not None, "the bundle does not open this pack")
        return open_box(private, header[80:160], header[:80])


def stretch(secret, salt, memory_kib, passes, lanes):
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    check(8_192 <= memory_kib <= 1_048_576 and 1 <= passes <= 16 and 1 <= lanes <= 16, "a key slot asks for too much")
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory_kib).derive(secret)


def open_slot(body, repository, secret):
    """The bundle in a key slot, or None if it is of another secret or repository."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    stored = record(body, "a key slot", (0, 1, 2))
    fields = record(stored[0], "the fields of a key slot", range(14))
    if fields[1] != repository:
        return None
    root = stretch(secret, *(fields[key] for key in (5, 6, 7, 8)))
    private = derive("ckpt key slot private key v1", root, fields[0])
    if X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() != fields[9]:
        return None
    mark = blake3(stored[0], key=derive("ckpt key slot holder mark v1", root, fields[0])).digest()
    check(mark == stored[1], "a key slot was not made by an admin")
    about = fields[1] + fields[0] + fields[10].to_bytes(4, "little")
    bundle = record(unseal(open_box(private, fields[11], about), 0, about, fields[12]), "the bundle", (0, 5))
    check(bundle[0] == fields[2] and bundle[5][-1][0] == fields[10], "the keys in a slot are not those that it names")
    return unseal(open_box(private, fields[11], about), 0, about, fields[12])


def unlock(root, secret):
    """The keys that a secret gives: of the slot's newest object, while keys are rotated."""
    slots = Repository.bare(root)
    found = []
    for name in slots.list("keys", r"[0-9a-f]{32}\.[0-9]+"):
        bundle = open_slot(slots.document(f"keys/{name}", KIND_KEY_SLOT), slots.config[1], secret)
        found += [(int(name.split(".")[1]), bundle)] if bundle else []
    check(found, "the key opens no slot")
    return Bundle(max(found)[1])


class Input:
    """Bytes taken from the front, never past the end."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, count):
        check(count <= len(self.data) - self.at, f"{self.what} ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count):
        return int.from_bytes(self.take(count), "little")

    def left(self):
        return len(self.data) - self.at


# CBOR, as far as records use it ---------------------------------------------------------------------------------------


def cbor(source, depth=0):
    check(depth < 16, "CBOR is nested too deeply")
    first = source.take(1)[0]
    major, info = first >> 5, first & 31
    if major == 7:
        check(info in (20, 21, 22), f"CBOR holds the simple value {info}")
        return {20: False, 21: True, 22: None}[info]
    check(info <= 27, "CBOR of indefinite length")
    value = info if info < 24 else int.from_bytes(source.take(1 << (info - 24)), "big")
    if major == 0:
        return value
    if major == 1:
        return -1 - value
    if major == 2:
        return bytes(source.take(value))
    if major == 3:
        return source.take(value).decode("utf-8")
    if major == 4:
        check(value <= source.left(), "an array is longer than what holds it")
        return [cbor(source, depth + 1) for _ in range(value)]
    check(major == 5 and value <= source.left(), "a map is longer than what holds it")
    return {cbor(source, depth + 1): cbor(source, depth + 1) for _ in range(value)}


def record(body, what, required):
    value = cbor(Input(body, what))
    check(isinstance(value, dict), f"{what} is no map")
    value = {key: field for key, field in value.items() if field is not None}
    for key in required:
        check(key in value, f"{what} lacks field {key}")
    return value


# Documents ------------------------------------------------------------------------------------------------------------


def document_copy(copy, kind, keys=None, place=b""):
    """The body of one copy, or None if it is not sound."""
    if len(copy) < 48 or copy[:8] != b"CKPTDOC\0" or digest(copy[:-32]) != copy[-32:]:
        return None
    check(copy[9] == 1 and copy[10] <= 1, "a document needs a newer program")
    if copy[8] != kind or int.from_bytes(copy[12:16], "little") != len(copy) - 48:
        return None
    check(copy[10] == (keys is not None), "a document is sealed in another way than its repository")
    body = copy[16:-32]
    if keys is None:
        return body
    key = derive("ckpt document v1", keys.document_key, body[:32])
    return unseal(key, 0, place, body[32:])


def document(data, kind, what, keys=None, place=b""):
    half = len(data) // 2
    for copy in (data[:half], data[half:], data[: 48 + int.from_bytes(data[12:16], "little")]):
        body = document_copy(copy, kind, keys, place)
        if body is not None:
            return body
    raise Damaged(f"{what}: no copy is sound")


# Frames ---------------------------------------------------------------------------------------------------------------


def unzstd(data, length, base=b""):
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 26)
    with decompressor.stream_reader(b"\x28\xb5\x2f\xfd" + data) as reader:
        raw = reader.read(length + 1)
    check(len(raw) == length, "compressed bytes decode to another length")
    return raw


def decode_frame(frame, base):
    source = Input(frame, "a frame")
    codec, element, phase, base_count = source.take(4)
    length = source.number(4)
    check(length <= CHUNK_BYTES_MAX, "the header of a frame is impossible")
    check(codec in (3, 4, 6) or (element, phase) == (0, 0), "the header of a frame is impossible")
    check(1 <= base_count <= 8 if codec in (4, 5) else base_count == 0, "a frame has an impossible number of bases")
    if codec == 1:
        check(source.left() == length, "a raw frame has another length")
        return source.take(length)
    if codec == 2:
        return unzstd(source.take(source.left()), length)
    if codec == 3:
        return decode_planes(source, element, phase, length)
    if codec == 4:
        return decode_difference(source, element, phase, length, base)
    if codec == 5:
        return unzstd(source.take(source.left()), length, base)
    check(codec == 6, f"a frame of unknown codec {codec}")
    return decode_palette(source, element, phase, length)


def decode_planes(source, element, phase, length):
    check(element & 15 <= 3, "words are too wide")
    width, rotation = 1 << (element & 15), element >> 4
    check(rotation < 8 * width and (width > 1 or rotation == 0), "an impossible rotation")
    check(phase < width and phase <= length, "an impossible phase")
    words = (length - phase) // width
    head = source.take(phase)
    tail = source.take(length - phase - words * width)
    planes = [decode_run(source, words) for _ in range(width)]
    check(source.left() == 0, "a frame of planes is too long")
    body = bytearray(words * width)
    for weight, plane in enumerate(planes):
        body[weight::width] = plane
    if rotation:
        bits, mask = 8 * width, (1 << 8 * width) - 1
        for at in range(0, len(body), width):
            word = int.from_bytes(body[at : at + width], "little")
            word = (word >> rotation | word << (bits - rotation)) & mask
            body[at : at + width] = word.to_bytes(width, "little")
    return bytes(head) + bytes(body) + bytes(tail)


def decode_run(source, count, depth=0):
    mode = source.number(1)
    data = source.take(source.number(4))
    if mode == 0:
        check(len(data) == count, "a raw run has another length")
        return data
    if mode == 1:
        return unzstd(data, count)
    if mode == 2:
        check(len(data) == 1, "a constant run has several bytes")
        return data * count
    check(mode == 3 and depth < 4, f"a run of mode {mode} at depth {depth}")
    inner = Input(data, "a sparse run")
    common = inner.number(1)
    places = mask_places(decode_run(inner, (count + 7) // 8, depth + 1), count)
    others = decode_run(inner, len(places), 4)
    check(inner.left() == 0, "a sparse run is too long")
    run = bytearray([common]) * count
    for place, other in zip(places, others):
        run[place] = other
    return bytes(run)


def mask_places(mask, count):
    """Where the bits of a mask are set."""
    bits = int.from_bytes(mask, "little")
    check(bits >> count == 0, "a mask is longer than what it is for")
    return [place for place in range(count) if mask[place // 8] >> place % 8 & 1]


def words_of(data, width, count):
    """The first words of the data, as if zeros followed it."""
    data = data[: width * count] + bytes(max(0, width * count - len(data)))
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, width * count, width)]


def narrowed(word):
    half = word >> 16
    if word & 0x7FFFFFFF > 0x7F800000:
        return half | 0x40
    return (word + 0x7FFF + (half & 1) & 0xFFFFFFFF) >> 16


def decode_difference(source, element, phase, length, base):
    kind, limit_count = element >> 4, phase & 15
    check(element & 15 <= 3 and kind <= 4 and phase < 32, "the header of a frame is impossible")
    width = 1 << (element & 15)
    check(kind not in (0, 1) or limit_count == 0, "integers have no classes")
    check(kind != 3 or width == 4, "only numbers of four bytes can be widened")
    check(kind != 4 or width == 2, "only numbers of two bytes can be narrowed")
    count, bits = length // width, 8 * width
    top, every = 1 << (bits - 1), (1 << bits) - 1
    tail = source.take(length - count * width)
    limits = [source.number(2) for _ in range(limit_count)]
    check(all(limit <= 0x7FFF for limit in limits), "a limit is too high")
    stored = range(count)
    if phase & 16:
        stored = mask_places(decode_run(source, (count + 7) // 8), count)
    if kind == 3:
        predictions = [word << 16 for word in words_of(base, 2, count)]
    elif kind == 4:
        predictions = [narrowed(word) for word in words_of(base, 4, count)]
    else:
        predictions = words_of(base, width, count)
    members = [[] for _ in range(limit_count + 1)]
    for place in stored:
        magnitude = (predictions[place] & ~top) >> max(0, bits - 16)
        members[sum(magnitude >= limit for limit in limits)].append(place)
    differences = [0] * count
    for places in members:
        if not places and phase:
            continue
        for weight in range(width):
            for place, byte in zip(places, decode_run(source, len(places))):
                differences[place] |= byte << (8 * weight)
    check(source.left() == 0, "a frame of differences is too long")
    raw = bytearray()
    for prediction, difference in zip(predictions, differences):
        unfolded = -(difference + 1) // 2 if difference & 1 else difference // 2
        if kind == 0:
            word = prediction + unfolded & every
        elif kind == 1:
            word = prediction ^ difference
        else:
            ordered = ~prediction & every if prediction & top else prediction | top
            ordered = ordered + unfolded & every
            word = ordered & ~top if ordered & top else ~ordered & every
        raw += word.to_bytes(width, "little")
    return bytes(raw) + bytes(tail)


def decode_palette(source, element, phase, length):
    check(element <= 3, "the header of a frame is impossible")
    width = 1 << element
    check(phase < width and phase <= length, "an impossible phase")
    words = (length - phase) // width
    head = source.take(phase)
    tail = source.take(length - phase - words * width)
    entries = [source.take(width) for _ in range(source.number(1) + 1)]
    bits = 1 if len(entries) <= 2 else 2 if len(entries) <= 4 else 4 if len(entries) <= 16 else 8
    packed = decode_run(source, (words * bits + 7) // 8)
    check(source.left() == 0, "a frame with a palette is too long")
    indices = [packed[at * bits // 8] >> at * bits % 8 & (1 << bits) - 1 for at in range(words)]
    check(all(index < len(entries) for index in indices), "an index lies outside its palette")
    return bytes(head) + b"".join(entries[index] for index in indices) + bytes(tail)


# Packs and index objects ----------------------------------------------------------------------------------------------


def table(data, offset):
    """For each frame: offset, stored bytes, content bytes, [(chunk id, bytes)], [base id]; and where the last one ends."""
    source, frames = Input(data, "a table"), []
    while source.left():
        stored, raw = source.number(4), source.number(4)
        source.take(1)
        bases, count = source.number(1), source.number(2)
        check(raw <= CHUNK_BYTES_MAX and bases <= 8 and count >= 1, "a record of a table is impossible")
        bases = [source.take(32) for _ in range(bases)]
        chunks = [(source.take(32), source.number(4)) for _ in range(count)]
        check(sum(length for _, length in chunks) == raw, "chunks do not fill their frame")
        frames.append((offset, stored, raw, chunks, bases))
        offset += stored
    return frames, offset


# Parity, which restoring does not need: it is held against what is described ------------------------------------------


def check_parity(data, repository, pack, content):
    what = f"the parity of pack {pack.hex()}"
    length = len(content)
    exponent = length.bit_length() - 1
    size = 1 << max(exponent // 2 + 1, exponent - 12, 6)
    count = -(-length // size)
    parity_count = max(2, -(-count // 32))
    front = 160 + 8 * (count + parity_count)
    check(len(data) == 2 * front + parity_count * size, f"{what} has another length")
    header, checksums = data[:160], data[160:front]
    check(data[-160:] == header and data[-front:-160] == checksums, f"{what} says two things")
    source = Input(header, what)
    check(source.take(16) == b"CKPTPRTY\x01" + bytes(7), f"{what} needs a newer program")
    check(source.take(16) == repository and source.take(32) == pack, f"{what} belongs elsewhere")
    found = [source.number(width) for width in (8, 4, 4, 4)]
    check(found == [length, size, count, parity_count], f"{what} has another shape")
    check(source.take(12) == bytes(12) and source.take(32) == digest(checksums), f"the table of {what} is damaged")
    check(source.take(32) == digest(header[:128]), f"the header of {what} is damaged")
    shards = [content[at : at + size] for at in range(0, length, size)]
    parity = [data[at : at + size] for at in range(front, front + parity_count * size, size)]
    for number, shard in enumerate(shards + parity):
        check(xxh3_64_intdigest(shard).to_bytes(8, "little") == checksums[8 * number : 8 * number + 8], f"a shard of {what} is damaged")
    place = length % (size // 2) // 32 * 64 + length % 32  # of a word, so that not always the same is looked at
    words = [shard_word(shard, place) for shard in shards]
    computed = [parity_word(words, number, parity_count) for number in range(parity_count)]
    check(computed == [shard_word(shard, place) for shard in parity], f"{what} is computed otherwise")


def shard_word(shard, place):
    return sum(shard[at] << shift for at, shift in ((place, 0), (place + 32, 8)) if at < len(shard))


CANTOR = [int(word, 16) for word in (
    "0001 acca 3c0e 163e c582 ed2e 914c 4012 6c98 10d8 6a72 b900 fdb8 fb34 ff38 991e".split())]
POWERS, LOGARITHMS = [1], {1: 0}


def element(word):
    return combine(part for bit, part in enumerate(CANTOR) if word >> bit & 1)


def combine(elements):
    total = 0
    for part in elements:
        total ^= part
    return total


def logarithm(value):
    """Of an element other than zero, to the base x."""
    while len(LOGARITHMS) < 65535:
        power = POWERS[-1] << 1
        POWERS.append(power ^ 0x1002D if power >> 16 else power)
        LOGARITHMS[POWERS[-1]] = len(POWERS) - 1
    return LOGARITHMS[value]


def parity_word(words, number, parity_count):
    """The word of a parity shard from those of the data shards: the sum of polynomials, interpolated by Lagrange."""
    size = 1 << (parity_count - 1).bit_length()
    # The sum of two elements is that of their words, so all points of a group have the same distances from the others.
    below = sum(logarithm(element(n)) for n in range(1, size))
    total = 0
    for first in range(0, len(words), size):
        points = [logarithm(element(size + first + n ^ number)) for n in range(size)]
        above = sum(points)
        for word, point in zip(words[first : first + size], points):
            if word:
                total ^= POWERS[(logarithm(element(word)) + above - point - below) % 65535]
    # Back to a word: the elements of the bits are independent, so there is one way to make up the total.
    return word_of(total)


def word_of(value):
    rows = []  # (element, word), each with a highest bit of its own
    for bit, part in enumerate(CANTOR):
        word = 1 << bit
        for known, known_word in rows:
            if part ^ known < part:
                part, word = part ^ known, word ^ known_word
        rows.append((part, word))
        rows.sort(reverse=True)
    found = 0
    for known, known_word in rows:
        if value ^ known < value:
            value, found = value ^ known, found ^ known_word
    check(value == 0, "no word stands for an element")
    return found


class Repository:
    def __init__(self, root, keys=None):
        self.root, self.keys = Path(root), None
        self.config = self.read_config()
        check(self.config[8] == (keys is not None), "the repository needs a key, or has none")
        check(keys is None or keys.config_hash == self.config_hash, "the parameters are not those of the keys")
        self.keys = keys
        self.header_bytes, self.tag_bytes = (160, 16) if keys else (64, 0)
        self.dead = set()
        for name in self.list("condemned", r"[0-9]+\.end"):
            end = record(self.document(f"condemned/{name}", KIND_CONDEMNED), name, (0, 1))
            self.dead.update(end[1])
        self.homes = {}  # chunk id -> [(pack id, frame offset, stored bytes, content bytes, offset in the content, bytes, base ids)]
        self.learn_packs()

    @classmethod
    def bare(cls, root):
        """Nothing but the parameters: what stands there before there are any keys."""
        bare = cls.__new__(cls)
        bare.root, bare.keys = Path(root), None
        bare.config = bare.read_config()
        return bare

    def read(self, name):
        return (self.root / name).read_bytes()

    def list(self, folder, pattern):
        """The last components of the names in a folder that fit."""
        if not (self.root / folder).is_dir():
            return []
        return sorted(n.name for n in (self.root / folder).iterdir() if re.fullmatch(pattern, n.name))

    def document(self, name, kind):
        place = self.config[1] + bytes([kind]) + name.encode() if self.keys else b""
        return document(self.read(name), kind, name, self.keys, place)

    def read_config(self):
        failure = Damaged("not a repository")
        for copy in range(3):
            try:
                body = self.document(f"config/{copy}", KIND_CONFIG)
                config = record(body, "config", range(11))
            except (Damaged, FileNotFoundError) as error:
                failure = error
                continue
            check(config[0] == 1 and config[8] <= 1 and config[9] <= 1, "the repository needs a newer program")
            check(len(config[1]) == 16, "the id of the repository has another length")
            self.config_hash = digest(body)
            return config
        raise failure

    def learn_packs(self):
        known = set()
        for name in self.list("index", r"[0-9a-f]{32}"):
            for pack, frames in self.index_object(f"index/{name}"):
                if pack not in known:
                    known.add(pack)
                    self.learn(pack, frames)
        for folder in self.list("packs", r"[0-9a-f]{2}"):
            for name in self.list(f"packs/{folder}", folder + r"[0-9a-f]{62}"):
                if (self.root / f"quarantine/{name}").exists():
                    # It is damaged: what an index object says of it serves as far as the chunks agree with their ids.
                    continue
                pack = bytes.fromhex(name)
                frames = self.pack_frames(pack)
                if (self.root / f"parity/{folder}/{name}").exists():
                    check_parity(self.read(f"parity/{folder}/{name}"), self.config[1], pack, self.read(self.pack_name(pack)))
                if pack not in known:
                    self.learn(pack, frames)

    def learn(self, pack, frames):
        for offset, stored, raw, chunks, bases in frames:
            at = 0
            for chunk, length in chunks:
                self.homes.setdefault(chunk, []).append((pack, offset, stored, raw, at, length, bases))
                at += length

    def index_object(self, name):
        source = Input(self.read(name), name)
        header = source.take(64)
        check(header[:8] == b"CKPTINDX", f"{name} does not begin as an index object")
        check(header[8:11] == b"\x01\0" + bytes([self.keys is not None]), f"{name} needs a newer program")
        check(header[16:32] == self.config[1], f"{name} belongs to another repository")
        sections = 0
        while True:
            begin = source.at
            if source.number(1) == 0:
                check(source.number(4) == sections, f"{name} has another number of sections")
                check(digest(source.data[: source.at]) == source.take(32), f"{name} does not match its checksum")
                check(source.left() == 0, f"{name} is too long")
                return
            check(source.data[begin] == 1, f"{name} has a section of unknown kind")
            pack, length, kind = source.take(32), source.number(8), source.number(1)
            source.take(16)
            stored_table = source.take(source.number(4))
            head = source.data[begin : begin + 62]
            check(digest(source.data[begin : source.at]) == source.take(32), f"a section of {name} is damaged")
            plain = stored_table
            if self.keys:
                plain = unseal(derive("ckpt index section v1", self.keys.table_key, head), 0, b"", stored_table)
            frames, end = table(plain, self.header_bytes)
            check(end + len(stored_table) + 64 == length and kind in (0, 1), f"a section of {name} does not add up")
            sections += 1
            yield pack, frames

    def pack_name(self, pack):
        return f"packs/{pack.hex()[:2]}/{pack.hex()}"

    def pack_frames(self, pack):
        name = self.pack_name(pack)
        data = self.read(name)
        check(digest(data) == pack, f"{name} does not match its name")
        header, trailer = data[: self.header_bytes], Input(data[-64:], name)
        offset, length, count = trailer.number(8), trailer.number(4), trailer.number(4)
        stored_table = data[offset : offset + length]
        check(digest(header, stored_table, data[-64:-48]) == trailer.take(32), f"the table of {name} is damaged")
        check(trailer.take(16) == bytes(8) + b"CKPTPEND", f"{name} does not end as a pack")
        check(header[:8] == b"CKPTPACK", f"{name} does not begin as a pack")
        check(header[8:11] == b"\x01\0" + bytes([self.keys is not None]), f"{name} needs a newer program")
        check(int.from_bytes(header[12:16], "little") == self.header_bytes, f"{name} needs a newer program")
        check(header[11] in (0, 1) and header[16:32] == self.config[1], f"{name} belongs elsewhere")
        plain = stored_table
        if self.keys:
            plain = unseal(derive("ckpt pack table v1", self.keys.table_key, header), offset, b"", stored_table)
        frames, end = table(plain, self.header_bytes)
        check(end == offset and len(frames) == count, f"the table of {name} does not add up")
        check(offset + length + 64 == len(data), f"the table of {name} lies elsewhere")
        return frames

    def chunk_id(self, content):
        return blake3(content, key=self.keys.id_key).digest() if self.keys else digest(content)

    def chunk(self, chunk, needed_by=()):
        failure = Damaged(f"chunk {chunk.hex()} is in no pack")
        for pack, offset, stored, raw, at, length, bases in self.homes.get(chunk, []):
            try:
                check(not bases or chunk not in needed_by, "a frame needs itself")
                base = b"".join(self.chunk(needed, (*needed_by, chunk)) for needed in bases)
                with open(self.root / self.pack_name(pack), "rb") as file:
                    header = file.read(self.header_bytes)
                    file.seek(offset)
                    frame = file.read(stored)
                if self.keys:
                    frame = unseal(self.keys.pack_key(header), offset, digest(header), frame)
                content = decode_frame(frame, base)
                check(len(content) == raw, "a frame decodes to another length than its table says")
                found = content[at : at + length]
                check(self.chunk_id(found) == chunk, f"pack {pack.hex()} holds other bytes than it should")
                return found
            except (Damaged, OSError, zstandard.ZstdError) as error:
                failure = error
        raise failure

    def stream(self, stream):
        """The chunks of a stream's content: (id, bytes)."""
        if stream is None:
            return
        root, depth, length = stream
        check(len(root) == 32 and depth <= 8, "a stream is impossible")
        yield from self.children(root, depth, length)

    def children(self, chunk, depth, length):
        if depth == 0:
            yield chunk, length
            return
        node = self.chunk(chunk)
        check(0 < len(node) <= 4096 * 40 and len(node) % 40 == 0, "a node is impossible")
        records = [(node[at : at + 32], int.from_bytes(node[at + 32 : at + 40], "little")) for at in range(0, len(node), 40)]
        check(sum(covered for _, covered in records) == length, "a node covers other bytes than it should")
        for child, covered in records:
            yield from self.children(child, depth - 1, covered)

    def live_snapshots(self):
        forgotten = {name for name in self.list("forgotten", r"[0-9a-f]{32}") if self.counts(name)}
        for name in self.list("snapshots", r"[0-9a-f]{32}"):
            if name in forgotten:
                continue
            snapshot = record(self.document(f"snapshots/{name}", KIND_SNAPSHOT), f"snapshot {name}", (0, 13))
            check(snapshot[13].hex() == name, f"another snapshot stands under the name {name}")
            if snapshot[0] == 0:
                check(all(key in snapshot for key in (1, 2, 3, 5)), f"snapshot {name} lacks a field")
                yield name, snapshot

    def counts(self, name):
        """Whether a marker makes its snapshot forgotten: by its name alone where anybody could have made it anyway."""
        try:
            return not self.keys or bool(self.document(f"forgotten/{name}", KIND_FORGOTTEN))
        except Damaged:
            return False

    def audit(self):
        """The numbers of the records of the audit log, each of which names the one before it."""
        numbers = sorted(int(name) for name in self.list("audit", r"[1-9][0-9]*"))
        before = bytes(32)
        for number in numbers:
            body = self.document(f"audit/{number}", KIND_AUDIT)
            entry = record(body, f"audit/{number}", range(10))
            check(entry[0] == number and entry[1] == before, f"audit/{number} follows another record")
            before = digest(body)
        check(numbers == list(range(1, len(numbers) + 1)), "the audit log has gaps")
        return numbers

    def set_aside(self):
        """The packs that are set aside, each with the chunks that are bad in it, or None."""
        names = self.list("quarantine", r"[0-9a-f]{64}")
        return {name: record(self.document(f"quarantine/{name}", KIND_QUARANTINE), name, (0,)).get(1) for name in names}

    def tags(self, name, snapshot):
        numbers = [int(change.split(".")[1]) for change in self.list("tags", name + r"\.[0-9]+")]
        if not numbers:
            return snapshot.get(6, [])
        return record(self.document(f"tags/{name}.{max(numbers)}", KIND_TAGS), "tags", (0,))[0]

    def entries(self, snapshot):
        before = None
        for leaf, length in self.stream(snapshot.get(8)):
            source = Input(self.chunk(leaf), "a leaf")
            check(source.left() == length, "a leaf has another length")
            while source.left():
                entry = record(source.take(source.number(4)), "an entry", range(10))
                path = entry[1]
                parts = path.split(b"/") if path else []
                sound = all(part not in (b"", b".", b"..") and b"\0" not in part for part in parts)
                check(sound, f"an entry has the path {path!r}")
                check(entry[0] < len(snapshot[5]), "an entry lies beneath no root")
                order = (entry[0], parts)
                check(before is None or before < order, f"{path!r} is out of order")
                before = order
                content = entry.get(14)
                check((content[2] if content else 0) == entry[6], f"{path!r} has another content than it says")
                check(content is None or (entry[2] == REGULAR and content[2] > 0), f"{path!r} cannot have content")
                yield entry


# Restoring ------------------------------------------------------------------------------------------------------------


def restore(repository, snapshot, target):
    roots = snapshot[5]
    counts, links, directories = {}, {}, []
    for entry in repository.entries(snapshot):
        # One root lands in the target itself, several each under their number.
        parts = ([] if len(roots) == 1 else [str(entry[0]).encode()]) + ([entry[1]] if entry[1] else [])
        kind, mode = entry[2], entry[3] & 0o7777
        if not parts and kind != DIRECTORY:
            parts = [roots[0].rsplit(b"/", 1)[-1]]
        path = b"/".join([os.fsencode(target)] + parts)
        counts[kind] = counts.get(kind, 0) + 1
        group = tuple(entry[10]) if 10 in entry else None
        if group is not None and group in links:
            os.link(links[group], path, follow_symlinks=False)
            continue
        if group is not None:
            links[group] = path
        if kind == REGULAR:
            write_content(repository, entry, path)
        elif kind == DIRECTORY:
            os.makedirs(path, exist_ok=True)
            directories.append((path, entry))
            continue
        elif kind == SYMLINK:
            os.symlink(entry[12], path)
        else:
            check(kind in (FIFO, CHARACTER_DEVICE, BLOCK_DEVICE), f"{path!r} is of unknown kind {kind}")
            types = {FIFO: stat.S_IFIFO, CHARACTER_DEVICE: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}
            os.mknod(path, types[kind] | mode, entry.get(13, 0))
        apply(path, entry, mode)
    for path, entry in reversed(directories):
        apply(path, entry, entry[3] & 0o7777)
    return counts


def write_content(repository, entry, path):
    with open(path, "xb") as file:
        for chunk, length in repository.stream(entry.get(14)):
            if chunk == HOLE:
                file.seek(length, os.SEEK_CUR)
                continue
            content = repository.chunk(chunk)
            check(len(content) == length, "a chunk has another length")
            file.write(content)
        file.truncate(entry[6])


def apply(path, entry, mode):
    if os.geteuid() == 0:
        os.chown(path, entry[4], entry[5], follow_symlinks=False)
    if entry[2] != SYMLINK:
        os.chmod(path, mode)
    for name, value in entry.get(11, []):
        os.setxattr(path, name, value, follow_symlinks=False)
    seconds, nanoseconds = entry[7]
    check(nanoseconds <= 999_999_999, "a time is impossible")
    time = seconds * 1_000_000_000 + nanoseconds
    os.utime(path, ns=(time, time), follow_symlinks=False)


def main(arguments):
    keys = None
    if len(arguments) == 5 and arguments[3] == "--key-file":
        secret = Path(arguments[4]).read_bytes()
        keys = unlock(arguments[0], secret[:-1] if secret.endswith(b"\n") else secret)
    elif len(arguments) == 4:
        keys = Bundle(Path(arguments[3]).read_bytes())
    elif len(arguments) != 3:
        sys.exit(__doc__)
    repository = Repository(arguments[0], keys)
    live = sorted(repository.live_snapshots(), key=lambda found: (found[1][1], found[0]))
    wanted = [found for found in live if arguments[1] in ("latest", found[0])]
    check(wanted, f"no snapshot {arguments[1]}")
    name, snapshot = wanted[-1]
    target = Path(arguments[2])
    target.mkdir()
    counts = restore(repository, snapshot, target)
    tags = ",".join(sorted(repository.tags(name, snapshot)))
    if repository.audit() or repository.set_aside():
        print(f"{len(repository.audit())} records of actions, {len(repository.set_aside())} packs set aside")
    print(f"{name} [{tags}]: {counts.get(REGULAR, 0)} files, {counts.get(DIRECTORY, 0)} directories, "
          f"{sum(counts.values()) - counts.get(REGULAR, 0) - counts.get(DIRECTORY, 0)} others")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Damaged as problem:
        sys.exit(f"damaged: {problem}")
