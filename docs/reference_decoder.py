"""A reader of ``.esp`` files in plain Python, written from SPEC.md alone, whose sections it names.

``python docs/reference_decoder.py < FILE.esp`` lists tensors, with the CRC-32 of their bytes. Slow,
and whole; but it checks only what decoding needs, and not all that SPEC.md says.
"""

import sys
import zlib
from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import reduce
from itertools import accumulate
from math import factorial, prod
from struct import pack, unpack


class Source:  # bytes that are read one after the other, and what lies in them
    def __init__(self, data):
        self.data, self.at, self.word, self.left = data, 0, 0, 0

    def take(self, n):
        assert self.at + n <= len(self.data), "it is too short"
        self.at += n
        return self.data[self.at - n : self.at]

    def part(self, n=None):
        return Source(self.take(len(self.data) - self.at if n is None else n))

    def uint(self, n=1):
        return int.from_bytes(self.take(n), "little")

    def varint(self):
        byte = self.uint()
        return byte if byte < 128 else byte - 128 + (self.varint() << 7)

    def bits(self, n):
        while self.left < n:
            self.word |= self.uint() << self.left
            self.left += 8
        value, self.word, self.left = self.word % (1 << n), self.word >> n, self.left - n
        return value

    def ones(self):  # which of all bits are set
        return [i for i in range(8 * len(self.data)) if self.data[i // 8] >> i % 8 & 1]

    def zeros(self):
        return 0 if self.bits(1) else 1 + self.zeros()  # before a one bit, which is read too

    def end(self, whole=True):  # of a bit stream, or of all
        assert self.word == 0 and (not whole or self.at == len(self.data)), "something is left over"
        self.left = 0

    def split(self, n, number):  # parts of a payload, and how many symbols each has: 4.2, 4.3
        counts = [n // number + (i < n % number) for i in range(number)]
        sizes = [self.varint() for _ in counts[1:]]
        return zip(counts, [*map(self.part, sizes), self.part()], strict=True)

    def symbols(self, coder, n, alphabet):  # 4
        width = (alphabet - 1).bit_length()
        if coder == 1:  # 4.1
            symbols = [self.bits(width) for _ in range(n)]
        elif coder == 4:
            symbols = self.context(n, width) if width else [0] * n
        else:
            by, first, span = (
                self.rans if coder == 3 else self.huffman,
                self.varint(),
                self.varint(),
            )
            symbols = by(n, first, span) if span else [first] * n
        self.end()
        return symbols

    def huffman(self, n, first, span):  # 4.2
        lengths, symbol, last = {}, first, min(16, max(1, span.bit_length()))
        while symbol <= first + span:
            if self.bits(1):
                if not self.bits(1):
                    last += -1 if self.bits(1) else 1
                elif not self.bits(1):
                    last = self.bits(4) + 1
                else:
                    symbol += (1 << (z := self.zeros())) + self.bits(z)
                    continue
            lengths[symbol] = last
            symbol += 1
        self.end(whole=False)
        words, at, symbols = {}, 0, []
        for symbol in sorted(lengths, key=lambda s: (lengths[s], s)):
            words[lengths[symbol], at >> 16 - lengths[symbol]] = symbol
            at += 2**16 >> lengths[symbol]
        for count, run in self.split(n, 1 if n < 16384 else 8 * -(-n // 2**20)):
            for _ in range(count):
                length = word = 0
                while (length, word) not in words:
                    length, word = length + 1, word << 1 | run.bits(1)
                symbols.append(words[length, word])
        return symbols

    def rans(self, n, first, span):  # 4.3
        p, m = (head := self.uint()) >> 4, head % 16 + 4
        levels, a = [], 16 << p
        while len(levels) <= span:
            fresh = not levels or levels[-1] == 0
            if levels and fresh:
                levels += [0] * ((1 << (z := self.zeros())) + self.bits(z) - 1)
            k = max(1, 3 * a // 32).bit_length() - 1
            x = (self.zeros() << k) + self.bits(k)
            a += x - a // 8
            levels.append(x + 1 if fresh else levels[-1] + (x // 2 ^ -(x % 2)))
        self.end(whole=False)
        weights, slots, symbols = {}, [], []
        for symbol, level in enumerate(levels, first):
            if (u := level - 1) >= 0:
                weights[symbol] = u if u < 2 << p else (2**p + u % 2**p) << ((u >> p) - 1)
        total, spare = max(1, sum(weights.values())), 2**m - len(weights)
        ends = [spare * c // total for c in accumulate(weights.values(), initial=0)]
        for symbol, low, high in zip(weights, ends, ends[1:], strict=False):
            slots += [(symbol, 1 + high - low, len(slots))] * (1 + high - low)
        for count, words in self.split(n, -(-n // 2**20)):
            lanes = 1 if n < 2**12 else 8
            states = [(1 << (b := words.bits(6))) + words.bits(b) for _ in range(lanes)]
            words.end(whole=False)
            for i in range(count):
                x = states[i % lanes]
                symbol, f, start = slots[x % 2**m]
                symbols.append(symbol)
                x = f * (x >> m) + x % 2**m - start
                if (m > 15 or i // lanes % 2) and x < 2**31 and words.at < len(words.data):
                    x = x << 32 | words.uint(4)
                states[i % lanes] = x
        return symbols

    def context(self, n, width):  # 4.4, as a coder of symbols
        plain, bits = Decisions(self.part()).plain, range(width)
        return [reduce(lambda a, _: 2 * a + plain(a), bits, 1) - 2**width for _ in range(n)]

    def positions(self, method, n, elements, grid=None):  # 3.2
        layout, coder = divmod(method, 16)
        if layout == 3:
            return Decisions(self).positions(*grid)
        if layout == 2:
            return Source(self.symbols(coder, -(-elements // 8), 256)).ones()
        gaps = []
        if layout == 1:
            top, direct = divmod(self.uint(), 16)
            raw = self.part(self.varint())
            for gap in self.symbols(coder, n, 256):
                if gap >= 1 << direct:
                    low, head = divmod(gap - (1 << direct), 1 << top)
                    gap = ((1 << top) + head << low + direct - top) + raw.bits(low + direct - top)
                gaps.append(gap)
        else:
            width, gaps = self.uint(), [0]
            while len(gaps) <= n:
                gaps[-1] += (field := self.bits(width))
                gaps += [0] if field < 2**width - 1 else []
        return [end - 1 for end in accumulate(gap + 1 for gap in gaps[:n])]

    def values(self, method, n, dtype):  # 3.3: the items as little-endian numbers
        layout, coder = divmod(method, 16)
        size, parts = BYTES[dtype], 2 if dtype in COMPLEX else 1
        if layout in (0, 2, 5):
            plain = Source(zlib.decompress(self.data)) if layout == 5 else self
            return [plain.uint(size)] * n if layout == 2 else [plain.uint(size) for _ in range(n)]
        if layout == 6:
            step, folded = *unpack("<d", self.take(8)), self.varint()
            first = folded // 2 ^ -(folded % 2)
            return [word_of((first + i) * step, dtype) for i in self.part().ones()]
        if layout == 4:
            runs, part = self.varint(), self.part(self.varint())
            starts = part.positions(16 + coder, runs, n)
            each = self.values(16 + coder, runs, dtype)
            return [each[bisect_right(starts, i) - 1] for i in range(n)]
        if layout == 3:
            keys, items, p = self.part(self.varint()).positions(16 + coder, n, None), [], 0
            for move in self.symbols(coder, n, n):
                p = (p + move) % len(keys)
                items.append(keys.pop(p))
            return [key ^ FLIP[dtype][key < SIGN[dtype]] for key in items]
        words, bits = [0] * (n * parts), 8 * size // parts
        for _ in range(bits // 8):
            mode = self.uint()
            plane = self.take((len(words), 0, 1)[mode]) * (len(words) if mode == 2 else 1)
            plane = self.part(self.varint()).symbols(coder, len(words), 256) if mode == 1 else plane
            words = [word << 8 | byte for word, byte in zip(words, plane, strict=True)]
        if bits > 8 and (dtype in FLOATS or dtype in COMPLEX):
            words = [word >> 1 | (word & 1) << (bits - 1) for word in words]
        if dtype in COMPLEX:
            pairs = zip(words[::2], words[1::2], strict=True)
            words = [real | imag << bits for real, imag in pairs]
        return words


FACTOR = sum(2**60 // (factorial(i) * 256**i) for i in range(9))  # 3.4
POWERS = [*accumulate(range(2047), lambda e, _: e * FACTOR >> 60, initial=2**60)]
UPPER = [2**16 * e // (2**60 + e) for e in POWERS]
STEPS = [2 * (4 + i % 4 << i // 4) - 8 for i in range(1, 32)]  # 3.5
LOGISTIC = [2**16 - t for t in UPPER[:0:-1]] + UPPER  # T(k) at k + 2047


class Decisions:  # 4.4
    def __init__(self, source):
        self.share = lambda a, n, m: (2 * a + 1) * m // (2 * n + 2)
        self.digits = iter([*(int.from_bytes(source.take(4), "big") for _ in source.data[::4]), 0])
        self.weights, self.counters = {}, defaultdict(lambda: (2**15, 0))
        self.v, self.range = next(self.digits) << 32 | next(self.digits), 2**64 - 1

    def decide(self, p):
        one = self.v < (t := (self.range >> 16) * p)
        self.v, self.range = (self.v, t) if one else (self.v - t, self.range - t)
        if self.range < 2**32:
            self.v, self.range = self.v << 32 | next(self.digits), self.range << 32
        return int(one)

    def learn(self, name, b):
        q, m = self.counters[name]
        q += ((b << 16) - q) * (2**16 // (m + 2)) >> 16
        self.counters[name] = min(max(q, 32), 2**16 - 32), min(m + 1, 1023)
        return b

    def plain(self, name):
        return self.learn(name, self.decide(self.counters[name][0]))

    def mixed(self, contexts, node, which):  # 3.4
        names = [(j, context, node) for j, context in enumerate(contexts)]
        w = self.weights.setdefault(which, [98000 // len(names)] * len(names))
        s = [
            bisect_left(LOGISTIC, self.counters[n][0] // 16 * 16 + 8, 0, 4094) - 2047 for n in names
        ]
        d = sum(a * b for a, b in zip(w, s, strict=True)) >> 16
        p = min(max(LOGISTIC[min(max(d, -2047), 2047) + 2047], 32), 2**16 - 32)
        bit = self.decide(p)
        for j, name in enumerate(names):
            w[j] += (s[j] * 6 * ((bit << 16) - p) + 2**17) >> 18
            self.learn(name, bit)
        return bit

    def positions(self, rows, columns, places):  # 3.4
        kept, in_column, in_channel = defaultdict(int), [0] * columns, [0] * (columns // places)
        for r in range(rows):
            h = in_row = 0
            for c in range(columns):
                channel, k = divmod(c, places)
                if k == 0:
                    in_kernel, d = 0, self.share(in_channel[channel], r * places, 12)
                k, g = min(k, 31), min(in_kernel, 15)
                a, b = self.share(in_row, c, 24), self.share(in_column[c], r, 12)
                near = [kept[x] for x in [(r - 2, c), (r - 1, c), (r - 1, c + 1), (r, c - places)]]
                more = [h, (d, a), (*near, h % 2, k), (g, k, d), (a, b, g)]
                bit = self.mixed([(b, k), (a, h % 8), *more], 0, 0)
                kept[r, c], h, in_row = bit, (2 * h + bit) % 1024, in_row + bit
                in_column[c], in_kernel = in_column[c] + bit, in_kernel + bit
                in_channel[channel] += bit
        return sorted(r * columns + c for (r, c), bit in kept.items() if bit)

    def ranks(self, rows, columns, places, positions, levels, zero, _):  # 3.4
        width, ranks, last, above = (levels - 1).bit_length(), [], zero, {}
        n, m, kept, channels = 2 ** max(width, 3), 8, set(positions), defaultdict(lambda: (0, 0))
        for r in range(rows):
            in_row = [c for c in range(columns) if r * columns + c in kept]
            x, y, six = 8 * n // m, 8, self.share(len(in_row), columns, 16)
            for c in in_row:
                sizes, seen = channels[c // places]
                beside = c % places > 0 and r * columns + c - 1 in kept
                two = min(31, 2**7 * x // (2**width * y))
                three = min(31, 2**7 * (sizes + 4 * n // m) // (2**width * (seen + 4)))
                five = 16 * above[c] // 2**width if c in above else 16
                seven = 1 if places == 1 else 16 * last // 2**width if beside else 16
                contexts, node = (0, two, three, abs(last - zero).bit_length(), five, six, seven), 1
                for i in reversed(range(width)):
                    node = 2 * node + self.mixed(contexts, node, i)
                last = above[c] = node - 2**width
                ranks.append(last)
                x, y, n, m = x + (size := abs(last - zero)), y + 1, n + size, m + 1
                channels[c // places] = sizes + size, seen + 1
        return ranks

    def sizes(self, _, columns, places, positions, levels, zero, least):  # 3.5
        most, ranks = max(zero, levels - 1 - zero + least).bit_length(), []
        of_column, of_channel = defaultdict(lambda: 16), defaultdict(lambda: 128)
        recent, near, before, last = 1024, 0, -1, 0
        for at in positions:
            channel, column = at % columns // places, at % columns
            means = recent >> 6, of_channel[channel] >> 3, of_column[column], near
            one, two, *three = (bisect_right(STEPS, mean) for mean in means)
            contexts, b, size = (one, two, tuple(three)), least, least
            while b < most and (self.mixed(contexts, b, b) if b < 2 else self.plain((one, b))):
                b, size = b + 1, 1
            size = 2 + self.plain(("second", b)) if b > 1 else size
            for _ in range(b - 2):
                size = 2 * size + self.plain(size)
            beside = last if at == before + 1 and column % places else 0
            name = "sign", beside < 0, bisect_right(STEPS, 16 * abs(beside)) + 2 >> 2
            before, last = at, -size if size and self.plain(name) else size
            ranks.append(zero + last - (least if last > 0 else 0))
            recent += (1024 * size - recent) >> 5
            of_channel[channel] += (128 * size - of_channel[channel]) >> 4
            of_column[column] += (16 * size - of_column[column]) >> 3
            near += (16 * size - near) >> 1
        return ranks


BYTES = [0, 4, 2, 2, 8, 1, 1, 1, 2, 4, 8, 1, 2, 4, 8, 1, 8, 16]  # of each dtype: 2.2
FLOATS, SIGNED, COMPLEX = range(1, 7), range(1, 11), range(16, 18)
SIGN = [256 ** BYTES[d] // 2 if d in SIGNED else 0 for d in range(18)]  # 3.3: the bit, or none
FLIP = [(sign, 2 * sign - 1 if d in FLOATS else sign) for d, sign in enumerate(SIGN)]


def word_of(x, dtype):  # the bits of a number, to the nearest, ties to even
    word = int.from_bytes(pack({2: "<e", 4: "<d"}.get(dtype, "<f"), x), "little")
    return word + 0x7FFF + (word >> 16 & 1) >> 16 if dtype == 3 else word


def tensor_of(kind, dtype, shape, kept, levels, numbers, streams):  # 2.2: dense, as bytes
    size, elements, positions, of = BYTES[dtype], prod(shape), range(prod(shape)), dtype
    grid = (shape[0], prod(shape[1:]), prod(shape[2:])) if len(shape) > 1 else (1, elements, 1)
    if kind in (2, 4, 10):
        positions = Source.positions(*streams.pop(0), kept, elements, grid) if kept else []
    if kind > 8:
        (first, stride, *block), blocks, wide = numbers, [0], 4 if dtype == 4 else 1
        form = "<d" if dtype == 4 else "<f"
        for d, b in zip(shape, block, strict=True):  # which block each element is in
            blocks = [at * (d // b) + i // b for at in blocks for i in range(d)]
        zeros, scales = (Source.values(*streams.pop(), len({*blocks}), of) for of in (8, wide))
        zeros = [z - (z >> 15 << 16) for z in zeros]
        scales = [scale.to_bytes(BYTES[wide], "little") for scale in scales]
        numbers = [(first // 2 ^ -(first % 2)) + stride * code for code in range(levels)]
        values, of = [(number - sum(zeros[:1])) % 2**32 for number in numbers], 9
    else:
        values = Source.values(*streams.pop(), levels if kind in (3, 4) else kept, dtype)
    if kind in (3, 4, 9, 10):
        (source, method), codes = streams.pop(), []
        if method in (0x14, 0x24):
            keys = [0 if of in COMPLEX else x ^ FLIP[of][x >= SIGN[of]] for x in values]
            order = sorted(range(levels), key=keys.__getitem__)
            decisions, zero = Decisions(source), sum(key < SIGN[of] for key in keys)
            by = decisions.ranks if method == 0x14 else decisions.sizes
            codes = [order[r] for r in by(*grid, positions, levels, zero, int(kind in (4, 10)))]
        elif kept:
            codes = source.symbols(method, kept, levels)
        values = [values[code] for code in codes]
    if kind > 8:
        pairs = zip(codes, [blocks[at] for at in positions], strict=True)
        exact = [(numbers[c] - zeros[b]) * unpack(form, scales[b])[0] for c, b in pairs]
        values = [word_of(*unpack(form, pack(form, x)), dtype) for x in exact]
    items = dict(zip(positions, values, strict=True))
    return b"".join(items.get(i, 0).to_bytes(size, "little") for i in range(elements))


def read(data):  # 1 and 2: name -> (dtype, shape, dense bytes), alias -> name, metadata, files
    end = len(data) - 12 - int.from_bytes(data[-12:-8], "little")
    chunks, source = Source(data[:end]), Source(data[end:-12])
    assert chunks.take(9) == b"\x89ESP\r\n\x1a\n\x02" and data[-4:] == b"\x89esp", "magic, version"
    assert zlib.crc32(data[:9] + data[end:-8]) == int.from_bytes(data[-8:-4], "little"), "checksum"
    assert all(source.take(source.varint()) == b"fixed-point" for _ in range(source.varint()))
    tensors, aliases, metadata, files, names, written, rests = {}, {}, "{}", {}, [], [b""], []
    packs, copies = defaultdict(lambda: Source(b"")), {}

    def name_from(source):  # 2.1
        shared, which = source.varint(), source.varint()
        rests.extend([source.take(source.varint())] if which == 0 else [])
        written.append(written[-1][:shared] + rests[which - 1])
        return written[-1].decode()

    for _ in range(source.varint()):  # 2.2
        names.append(name := name_from(source))
        dims, kind = divmod(source.uint(), 16)
        copies |= {name: names[source.varint()]} if kind == 5 else {}
        dtype = source.uint() if kind != 5 else 0
        shape = [source.varint() for _ in range(dims)]
        tensors |= {name: (dtype, shape, b"")} if kind not in (6, 7) else {}
        if kind in (5, 8):
            continue
        kept = source.varint() if kind in (2, 4, 10) else prod(shape)
        levels = source.varint() if kind in (3, 4, 9, 10) else 0
        numbers = [source.varint() for _ in range(2 + dims)] if kind > 8 else []
        fields = [(source.uint(), source.varint()) for _ in range(int("01223011034"[kind]))]
        chunk = chunks.part(sum(length for _, length in fields))
        assert source.uint(4) == zlib.crc32(chunk.data), f"checksum of {name!r}"
        streams = [(chunk.part(length), method) for method, length in fields]
        dense = tensor_of(kind, dtype, shape, kept, levels, numbers, streams)
        packs[dtype].data += dense if kind == 7 else b""
        files |= {name: files.get(name, b"") + dense} if kind == 6 else {}
        tensors |= {name: (dtype, shape, dense)} if kind not in (6, 7) else {}
    while source.at < len(source.data):
        section, payload = source.varint(), source.part(source.varint())
        if section == 1:
            aliases = {name_from(payload): names[payload.varint()] for _ in range(payload.varint())}
        metadata = payload.data.decode() if section == 2 else metadata
    for name, (dtype, shape, dense) in tensors.items():  # what lies in packs, and copies of it
        dense = dense or packs[dtype].take(BYTES[dtype] * prod(shape))
        tensors[name] = tensors[copies[name]] if name in copies else (dtype, shape, dense)
    return tensors, aliases, metadata, files


if __name__ == "__main__":
    for tensor, (dtype, shape, dense) in read(sys.stdin.buffer.read())[0].items():
        print(f"{zlib.crc32(dense):08x}  dtype {dtype:2}  {shape}  {tensor}")
